package org.mizzle.bridge;

import static org.mizzle.bridge.RunTests.check;
import static org.mizzle.bridge.RunTests.equal;
import static org.mizzle.bridge.RunTests.fails;

import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;

final class GroupAttemptTest {
  private static final String RUN = "r";
  private static final long LONG_MS = 3_600_000;
  private final BlockingQueue<String> aborted = new LinkedBlockingQueue<>();
  private final Residents residents =
      new Residents(Threads.scheduler("timer"), LONG_MS, LONG_MS, () -> { });
  private final GroupOrders orders = new GroupOrders(residents,
      (run, generation, rank, why) -> aborted.add(run + generation + " " + rank + " " + why));
  private volatile boolean isSuperfluous = true;
  private final BlockingQueue<Boolean> asked = new LinkedBlockingQueue<>();

  /** An attempt under way, in a thread of its own. */
  private final class Attempt {
    final FakeTask task = new FakeTask();
    final CompletableFuture<byte[]> result;
    volatile Thread thread;

    Attempt(long group, int partition, int number) {
      GroupAttempt attempt = new GroupAttempt(orders, this::ask, "7", new Group(RUN, 0, group),
          partition, number);
      result = CompletableFuture.supplyAsync(() -> {
        thread = Thread.currentThread();
        return attempt.run(("group " + group).getBytes(StandardCharsets.UTF_8), task);
      }, action -> Threads.daemon("attempt").newThread(action).start());
    }

    private boolean ask() {
      asked.add(isSuperfluous);
      return isSuperfluous;
    }

    /** Status, rank and text. */
    String get() throws Exception {
      byte[] raw = result.get(FakeResident.SOON_S, TimeUnit.SECONDS);
      return raw[0] + " " + raw[1] + " "
          + new String(Arrays.copyOfRange(raw, 5, raw.length), StandardCharsets.UTF_8);
    }

    String failure() {
      return fails(ExecutionException.class,
          () -> result.get(FakeResident.SOON_S, TimeUnit.SECONDS)).getCause().getMessage();
    }
  }

  private FakeResident resident(int rank) throws Exception {
    return FakeResident.started(residents, RUN, 0, rank);
  }

  void theResidentOfTheTasksNumberDoesTheOrder() throws Exception {
    FakeResident zero = resident(0);
    FakeResident one = resident(1);
    Attempt attempt = new Attempt(5, 1, 0);
    equal("group 5", new String(one.next(Order.GROUP).payload, StandardCharsets.UTF_8));
    one.serve(1, "done");
    equal("0 1 done", attempt.get());
    Attempt next = new Attempt(6, 1, 0);
    one.next(Order.GROUP);
    one.serve(1, "again");
    equal("0 1 again", next.get());
    check(zero.orders.isEmpty(), "the other one was not asked");
  }

  void anyOtherThatHasNotHadTheGroupDoesAsWell() throws Exception {
    FakeResident zero = resident(0);
    Attempt elsewhere = new Attempt(5, 3, 0);
    zero.next(Order.GROUP);
    equal("1 -1 no resident process of run r is free in executor 7", new Attempt(5, 0, 0).get());
    zero.serve(0, "done");
    equal("0 0 done", elsewhere.get());
    equal("1", new Attempt(5, 0, 0).get().substring(0, 1));
    equal("1", new Attempt(4, 0, 0).get().substring(0, 1));
    check(zero.orders.isEmpty(), "it does no group twice and no earlier one");
  }

  void asFirstAttemptItSaysAtOnceThatNobodyIsThere() throws Exception {
    equal("1", new Attempt(5, 0, 0).get().substring(0, 1));
    check(asked.isEmpty(), "the driver was not asked");
  }

  void aSecondAttemptGetsTheSameOrderAndItsOutcome() throws Exception {
    FakeResident zero = resident(0);
    Attempt first = new Attempt(5, 0, 0);
    zero.next(Order.GROUP);
    Attempt second = new Attempt(5, 0, 1);
    zero.serve(0, "once");
    equal("0 0 once", first.get());
    equal("0 0 once", second.get());
    equal("0 0 once", new Attempt(5, 0, 2).get());
    check(zero.orders.isEmpty(), "it was told once");
  }

  void aResidentThatGivesUpAfterAGroupIsFreeForOtherRuns() throws Exception {
    FakeResident two = resident(2);
    Attempt attempt = new Attempt(5, 2, 0);
    two.next(Order.GROUP);
    two.serve(-1, "failed");
    equal("3 2 failed", attempt.get());
    residents.hires().add(new Hire("other", 0, new byte[0], false, new FakeAsker()), LONG_MS);
    equal("other", two.next(Order.START).run);
  }

  void aProcessThatDiesIsReported() throws Exception {
    FakeResident zero = resident(0);
    Attempt attempt = new Attempt(5, 0, 0);
    zero.next(Order.GROUP);
    zero.dies();
    check(attempt.get().startsWith("2 0 process "), attempt.get());
    equal("1", new Attempt(6, 0, 0).get().substring(0, 1));
  }

  void aKilledTaskEndsItsRankAndWaitsForItToLeave() throws Exception {
    FakeResident zero = resident(0);
    Attempt attempt = new Attempt(5, 0, 0);
    zero.next(Order.GROUP);
    attempt.task.killed = true;
    equal("r0 0 its task was killed: by the test",
        aborted.poll(FakeResident.SOON_S, TimeUnit.SECONDS));
    check(!attempt.result.isDone(), "the slot is not free yet");
    zero.serve(0, "failed");
    equal("by the test", attempt.failure());
  }

  void anInterruptedTaskDoesTheSame() throws Exception {
    FakeResident zero = resident(0);
    Attempt attempt = new Attempt(5, 0, 0);
    zero.next(Order.GROUP);
    attempt.thread.interrupt();
    equal("r0 0 its task was killed: the executor is ending",
        aborted.poll(FakeResident.SOON_S, TimeUnit.SECONDS));
    zero.serve(0, "failed");
    equal("the executor is ending", attempt.failure());
  }

  void aRankGoesOnAsLongAsAnyAttemptWaitsForIt() throws Exception {
    FakeResident zero = resident(0);
    Attempt first = new Attempt(5, 0, 0);
    Order order = zero.next(Order.GROUP);
    Order shared = orders.take(new Group(RUN, 0, 5), 0, new byte[0]);
    equal(order, shared);
    first.task.killed = true;
    equal("by the test", first.failure());
    check(aborted.isEmpty(), "somebody else waits");
    orders.abandon(shared, "too");
    equal("r0 0 too", aborted.poll());
  }

  void aKilledTasksProcessThatDoesNotComeBackIsKilled() throws Exception {
    Residents strict = new Residents(Threads.scheduler("timer"), LONG_MS, 1, () -> { });
    GroupOrders given = new GroupOrders(strict, (run, generation, rank, why) -> { });
    FakeResident zero = FakeResident.started(strict, RUN, 0, 0);
    Order order = given.take(new Group(RUN, 0, 5), 0, new byte[0]);
    check(given.abandon(order, "killed"), "it was told");
    check(zero.isClosedSoon(), "it is given up");
  }

  void aSuperfluousAttemptWaitsToBeKilled() throws Exception {
    Attempt copy = new Attempt(5, 0, 1);
    check(asked.poll(FakeResident.SOON_S, TimeUnit.SECONDS), "it asks");
    check(asked.poll(FakeResident.SOON_S, TimeUnit.SECONDS), "it asks again");
    check(!copy.result.isDone(), "it neither wins nor fails");
    copy.task.killed = true;
    equal("by the test", copy.failure());
  }

  void aRetryAfterItsRankHasGoneDoesNotWait() throws Exception {
    FakeResident zero = resident(0);
    Attempt first = new Attempt(5, 0, 0);
    zero.next(Order.GROUP);
    first.task.killed = true;
    aborted.poll(FakeResident.SOON_S, TimeUnit.SECONDS);
    zero.serve(-1, "failed");
    equal("by the test", first.failure());
    equal("1", new Attempt(5, 0, 1).get().substring(0, 1));
    check(asked.isEmpty(), "there is no need to ask");
  }

  void itWaitsNoLongerThanTheDriverKnowsOfAnotherThatWorks() throws Exception {
    Attempt copy = new Attempt(5, 0, 1);
    check(asked.poll(FakeResident.SOON_S, TimeUnit.SECONDS), "all are there");
    isSuperfluous = false;
    equal("1", copy.get().substring(0, 1));
  }
}
