package org.mizzle.bridge;

import static org.mizzle.bridge.RunTests.check;
import static org.mizzle.bridge.RunTests.equal;

import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.ScheduledThreadPoolExecutor;
import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;

final class GroupResultsTest {
  private static final long LONG_MS = 3_600_000;
  private static final byte[] OUTCOME = {GroupAttempt.OUTCOME, 9};
  private static final byte[] FAILED = {GroupAttempt.FAILED};
  private final ScheduledExecutorService timer = Threads.scheduler("timer");
  private final Semaphore cancelled = new Semaphore(0);

  private GroupResults results(long failingMs) {
    return new GroupResults(3, timer, failingMs, cancelled::release);
  }

  void whereARankIsMissingTheRestIsCancelledAtOnce() {
    for (int status : new int[] {GroupAttempt.AWAY, GroupAttempt.DIED}) {
      GroupResults group = results(LONG_MS);
      group.put(0, OUTCOME);
      equal(0, cancelled.availablePermits());
      group.put(2, new byte[] {(byte) status});
      equal(1, cancelled.drainPermits());
    }
  }

  void aJobThatBeginsAfterItWasGivenUpIsCancelledTheNextTime() {
    try (GroupResults group = results(LONG_MS)) {
      group.giveUp();
      group.giveUp();
      equal(2, cancelled.drainPermits());
    }
  }

  void whereARankHasFailedTheRestHasAMoment() throws Exception {
    results(LONG_MS).put(1, FAILED);
    equal(0, cancelled.availablePermits());
    GroupResults brief = results(1);
    brief.put(1, FAILED);
    brief.put(0, FAILED);
    check(cancelled.tryAcquire(FakeResident.SOON_S, TimeUnit.SECONDS), "it is cancelled");
    equal(0, cancelled.availablePermits());
  }

  void nothingIsCancelledOnceTheJobHasEnded() {
    ScheduledThreadPoolExecutor alone = new ScheduledThreadPoolExecutor(1);
    alone.setRemoveOnCancelPolicy(true);
    GroupResults group = new GroupResults(3, alone, LONG_MS, cancelled::release);
    group.put(0, FAILED);
    equal(1, alone.getQueue().size());
    group.close();
    equal(0, alone.getQueue().size());
    group.put(1, new byte[] {GroupAttempt.AWAY});
    group.giveUp();
    equal(0, cancelled.availablePermits());
    alone.shutdown();
  }

  void tasksWithoutAResultAreEmpty() {
    GroupResults group = results(LONG_MS);
    group.put(1, OUTCOME);
    equal(new Frame.Builder().u16(3).u32(0).u32(2).raw(OUTCOME).u32(0).body(), group.together());
  }
}
