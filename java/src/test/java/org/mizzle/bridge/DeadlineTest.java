package org.mizzle.bridge;

import static org.mizzle.bridge.RunTests.check;
import static org.mizzle.bridge.RunTests.equal;
import static org.mizzle.bridge.RunTests.fails;

import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.concurrent.atomic.AtomicInteger;

final class DeadlineTest {
  private static final long LONG_MS = 3_600_000;
  private boolean isSo;

  void aFutureIsWaitedForUntilThen() throws Exception {
    equal("now", Deadline.afterMs(LONG_MS).get(CompletableFuture.completedFuture("now")));
    Deadline soon = Deadline.afterMs(20);
    fails(TimeoutException.class, () -> soon.get(new CompletableFuture<>()));
    check(soon.hasPassed(), "it waited until then");
    equal(0L, soon.remainingNs());
  }

  void aPauseEndsThenAtTheLatest() {
    Deadline soon = Deadline.afterMs(20);
    while (!soon.hasPassed()) {
      soon.pause(TimeUnit.MILLISECONDS.toNanos(LONG_MS));
    }
  }

  synchronized void aMonitorIsWaitedForUntilItIsSo() {
    check(!Deadline.afterMs(20).await(this, () -> isSo), "nobody did anything");
    Threads.daemon("other").newThread(() -> {
      synchronized (this) {
        isSo = true;
        notifyAll();
      }
    }).start();
    check(Deadline.afterMs(LONG_MS).await(this, () -> isSo), "the other one did");
  }

  synchronized void anInterruptIsKeptForLater() {
    Thread.currentThread().interrupt();
    check(!Deadline.afterMs(20).await(this, () -> isSo), "it goes on waiting");
    check(Thread.interrupted(), "who called still hears of it");
  }

  void whatFailsIsTriedAgainWhereItIsToBeRepeated() throws Exception {
    ScheduledExecutorService thread = Threads.scheduler("repeats");
    AtomicInteger times = new AtomicInteger();
    CountDownLatch enough = new CountDownLatch(3);
    Threads.repeat(thread, 1, () -> {
      enough.countDown();
      if (times.incrementAndGet() == 1) {
        throw new OutOfMemoryError("unable to create native thread");
      }
      throw new IllegalStateException("again");
    });
    check(enough.await(FakeResident.SOON_S, TimeUnit.SECONDS), "nothing that it throws ends it");
    thread.shutdownNow();
  }
}
