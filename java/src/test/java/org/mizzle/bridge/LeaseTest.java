package org.mizzle.bridge;

import static org.mizzle.bridge.RunTests.check;
import static org.mizzle.bridge.RunTests.equal;
import static org.mizzle.bridge.RunTests.fails;

import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import java.util.concurrent.ScheduledExecutorService;
import org.apache.spark.SparkConf;

final class LeaseTest {
  private static final String RUN = "r";
  private long now = 50_000;
  private final Lease lease = new Lease(() -> now, 10_000);
  private final Counters counters = new Counters();
  private final Runs runs = new Runs(counters, lease);
  private final ScheduledExecutorService timer = Threads.scheduler("timer");
  private final Object holder = new Object();
  private final List<String> heard = new ArrayList<>();

  LeaseTest() {
    lease.renewed(now);
  }

  private Member member(int generation) throws BridgeException {
    Arena arena = runs.claim(RUN, 0, -1, holder);
    Shelf shelf = new Shelf(null, new Removals((name, buffer) -> true, timer));
    Member member = new Member(new Group(RUN, generation, 1), 2, 7, arena, shelf, timer);
    runs.register(member);
    return member;
  }

  private void await(Member member, String name) {
    member.turns.await(1, new Turns.Waiter() {
      @Override
      public void ready() {
        heard.add(name + " ready");
      }

      @Override
      public void failed(BridgeException error) {
        heard.add(name + " " + error.code);
      }
    });
  }

  void itIsOverWhenNoQuestionOfTheLastTenSecondsWasAnswered() {
    now += 10_000;
    check(!lease.isOver(), "not yet");
    now += 1;
    check(lease.isOver(), "now");
    lease.renewed(now);
    check(!lease.isOver(), "the driver is there");
  }

  void itBeginsWithTheFirstAnswer() {
    Lease unasked = new Lease(() -> now, 10_000);
    now += 60_000;
    check(!unasked.isOver(), "nothing was asked yet");
    unasked.renewed(now - 12_000);
    check(unasked.isOver(), "the answer tells of twelve seconds ago");
  }

  void anAnswerRenewsItFromItsQuestionOn() {
    long asked = lease.now();
    now += 12_000;
    lease.renewed(asked);
    check(lease.isOver(), "the answer tells of twelve seconds ago");
    lease.renewed(now);
    lease.renewed(asked);
    check(!lease.isOver(), "a late answer takes nothing back");
  }

  void pausesOfTwoSecondsDoNotMatter() {
    for (int pause = 0; pause < 100; pause++) {
      now += 1_000;
      long asked = lease.now();
      now += 2_000;
      check(!lease.isOver(), "renewed " + pause + " times");
      lease.renewed(asked);
    }
  }

  void whoIsAskedSeldomMayBeSilentLonger() {
    SparkConf conf = new SparkConf(false);
    equal(10_000L, Lease.limitMs(conf));
    equal(9_000L, Lease.verdictMs(conf));
    conf.set("spark.mizzle.leasePeriod", "1h");
    equal(3 * 3_600_000L, Lease.limitMs(conf));
    equal(3 * 3_600_000L, Lease.verdictMs(conf));
    conf.set("spark.mizzle.leasePeriod", "1s").set("spark.mizzle.lease", "30s");
    equal(30_000L, Lease.limitMs(conf));
  }

  void nobodyIsServedOrAdmittedWhileItIsOver() throws BridgeException {
    runs.check(RUN, 3);
    now += 10_001;
    equal(BridgeException.Code.FENCED,
        fails(BridgeException.class, () -> runs.check(RUN, 3)).code);
    equal(BridgeException.Code.FENCED, fails(BridgeException.class, () -> member(4)).code);
    equal(2L, counters.get(Counters.Name.FENCED));
    lease.renewed(now);
    runs.check(RUN, 3);
  }

  void whoTookPartIsToldAndIsOldEvenWhenTheDriverIsBack() throws BridgeException {
    Member member = member(3);
    await(member, "a");
    runs.isolate();
    equal(List.of("a FENCED"), heard);
    check(member.hasLeft(), "nothing is written to its arena any more");
    equal(1L, counters.get(Counters.Name.FENCED));
    runs.isolate();
    equal(1L, counters.get(Counters.Name.FENCED));
    equal(BridgeException.Code.FENCED,
        fails(BridgeException.class, () -> runs.check(RUN, 3)).code);
    runs.check(RUN, 4);
    equal(Set.of(RUN), runs.names());
  }

  void memoryStaysForALaterGeneration() throws BridgeException {
    Object session = new Object();
    Arena arena = runs.claim(RUN, 0, -1, session);
    arena.label(new byte[] {42});
    arena.unclaim(session);
    check(!member(3).turns.hasEnded(), "it takes part");
    runs.isolate();
    equal(Set.of(RUN), runs.names());
    arena.unclaim(holder);
    equal(List.of(42), List.of((int) runs.claim(RUN, 0, -1, new Object()).label()[0]));
  }

  void oneThatCannotBeEndedKeepsNoOtherFromIt() throws BridgeException {
    Member broken = new Member(new Group(RUN, 3, 1), 2, 8, new Arena(RUN), null, timer);
    runs.register(broken);
    Member member = member(3);
    runs.isolate();
    check(member.turns.hasEnded(), "what the first one threw is not its fault");
  }
}
