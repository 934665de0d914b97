package org.mizzle.bridge;

import java.util.concurrent.ExecutionException;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.concurrent.locks.LockSupport;
import java.util.function.BooleanSupplier;

/**
 * A moment on this machine's monotonic clock after which a wait must end. Every wait of the bridge
 * takes one, but for a few that something else bounds: {@code tests/unit/test_waits.py} lists them,
 * {@link DriverLink}'s questions among them, for which Spark has a limit. As
 * {@code mizzle.blocks.deadline} in Python.
 */
final class Deadline {
  private final long atNs;

  private Deadline(long atNs) {
    this.atNs = atNs;
  }

  /** The moment so many milliseconds from now. */
  static Deadline afterMs(long ms) {
    return new Deadline(System.nanoTime() + TimeUnit.MILLISECONDS.toNanos(ms));
  }

  boolean hasPassed() {
    return remainingNs() == 0;
  }

  /** 0 when it has passed. */
  long remainingNs() {
    // The clock may overflow, a difference does not.
    return Math.max(0, atNs - System.nanoTime());
  }

  /** What the future holds, or {@link TimeoutException} at this moment. */
  <T> T get(Future<T> future) throws InterruptedException, ExecutionException, TimeoutException {
    return future.get(remainingNs(), TimeUnit.NANOSECONDS);
  }

  /** Pauses for that long, until the thread is interrupted, or until this moment. */
  void pause(long ns) {
    LockSupport.parkNanos(Math.min(ns, remainingNs()));
  }

  /**
   * Waits on a monitor that the caller holds, and that is notified, until it is so, or until this
   * moment; an interrupt is kept for later. Returns whether it is so.
   */
  boolean await(Object monitor, BooleanSupplier isSo) {
    boolean interrupted = false;
    while (!isSo.getAsBoolean() && !hasPassed()) {
      try {
        TimeUnit.NANOSECONDS.timedWait(monitor, Math.max(1, remainingNs()));
      } catch (InterruptedException e) {
        interrupted = true;
      }
    }
    if (interrupted) {
      Thread.currentThread().interrupt();
    }
    return isSo.getAsBoolean();
  }
}
