package org.mizzle.bridge;

import java.util.concurrent.Future;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;

/**
 * What became of the tasks of one group so far. Once the group cannot succeed the rest is
 * cancelled: at once when a rank is missing; a moment later when one has failed, because its peers
 * then fail as well, and one of them may know the cause. Who says nothing by then hangs, or has
 * nobody to do it. Any thread may call; guarded by this.
 */
final class GroupResults implements AutoCloseable {
  private final byte[][] results;
  private final ScheduledExecutorService timer;
  private final long failingMs;
  /** Cancels what Spark knows of by now; does not block. */
  private final Runnable cancelRest;
  /** The cancelling that is to come, or has come. */
  private Future<?> cancelling;
  private boolean isClosed;

  GroupResults(int count, ScheduledExecutorService timer, long failingMs, Runnable cancelRest) {
    results = new byte[count][];
    this.timer = timer;
    this.failingMs = failingMs;
    this.cancelRest = cancelRest;
  }

  /** A task has ended; the first byte of its result says how. */
  synchronized void put(int task, byte[] result) {
    results[task] = result;
    if (result[0] == GroupAttempt.FAILED) {
      if (cancelling == null) {
        cancelling = timer.schedule(this::giveUp, failingMs, TimeUnit.MILLISECONDS);
      }
    } else if (result[0] != GroupAttempt.OUTCOME) {
      giveUp();
    }
  }

  /** Who has said nothing yet will not: the rest is cancelled, again each time, for it may begin only now. */
  synchronized void giveUp() {
    if (!isClosed) {
      cancelRest.run();
    }
  }

  /** u16 count, then for each task u32 length and its result; length 0: there was none. */
  synchronized byte[] together() {
    Frame.Builder out = new Frame.Builder().u16(results.length);
    for (byte[] result : results) {
      out.blob(result == null ? new byte[0] : result);
    }
    return out.body();
  }

  /** The job has ended: nothing is cancelled any more. */
  @Override
  public synchronized void close() {
    isClosed = true;
    if (cancelling != null) {
      cancelling.cancel(false);
    }
  }
}
