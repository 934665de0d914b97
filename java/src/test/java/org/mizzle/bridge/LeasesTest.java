package org.mizzle.bridge;

import static org.mizzle.bridge.RunTests.check;
import static org.mizzle.bridge.RunTests.equal;

import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;

final class LeasesTest {
  private final ScheduledExecutorService thread = Threads.scheduler("timer");

  void theDriverIsToldUntilItHasHeard() throws Exception {
    AtomicInteger sent = new AtomicInteger();
    CountDownLatch heard = new CountDownLatch(1);
    Leases.tell(thread, 1, () -> {
      if (sent.incrementAndGet() < 3) {
        throw new BridgeException(BridgeException.Code.TIMEOUT, "the driver does not answer");
      }
      heard.countDown();
    });
    check(heard.await(FakeResident.SOON_S, TimeUnit.SECONDS), "the driver hears it");
    thread.shutdown();
    check(thread.awaitTermination(FakeResident.SOON_S, TimeUnit.SECONDS), "nothing is left to do");
    equal(3, sent.get());
  }
}
