package org.mizzle.bridge;

import static org.mizzle.bridge.RunTests.equal;

import java.util.List;
import java.util.Set;
import java.util.TreeSet;

final class JobWatchTest {
  private long now = 50_000;
  private final Roster roster = new Roster(new Pulse(() -> now, 10_000));
  private final Set<String> replaced = new TreeSet<>();
  private int cancelled;

  private JobWatch watch(String... needed) {
    return new JobWatch(roster, List.of(needed), () -> Set.copyOf(replaced), () -> cancelled++);
  }

  private void hello(String... executorIds) {
    for (String executorId : executorIds) {
      roster.hello(executorId, "host=h");
    }
  }

  /** Time passes, and all of these are heard of. */
  private void pass(long ms, String... heard) {
    for (long left = ms; left > 0; left -= 1_000) {
      now += Math.min(left, 1_000);
      roster.hung();
      for (String executorId : heard) {
        roster.heard(executorId);
      }
    }
  }

  void jobsEndWhenAnExecutorTheyNeedHangs() {
    hello("1", "2", "3");
    JobWatch watch = watch("1", "2");
    pass(10_000, "1");
    equal(Set.of(), watch.look());
    pass(1, "1");
    equal(Set.of("2"), watch.look());
    equal(1, cancelled);
    equal(List.of("2"), List.of(watch.lost()));
  }

  void aJobThatBeginsLaterEndsToo() {
    hello("1");
    JobWatch watch = watch("1");
    pass(10_001);
    watch.look();
    roster.heard("1");
    equal(Set.of(), watch.look());
    equal(2, cancelled);
    equal(List.of("1"), List.of(watch.lost()));
  }

  void afterItsEndNothingIsCancelled() {
    hello("1");
    JobWatch watch = watch("1");
    pass(10_001);
    watch.close();
    watch.look();
    equal(0, cancelled);
  }

  void whereTasksMayBeAnywhereOneThatIsBeingReplacedGetsNoneOfThem() {
    hello("1", "2");
    pass(10_001, "2");
    replaced.add("1");
    JobWatch watch = watch();
    equal(Set.of(), watch.look());
    equal(0, cancelled);
    pass(10_001);
    replaced.add("2");
    equal(Set.of("2"), watch.look());
    equal(1, cancelled);
    replaced.remove("1");
    equal(Set.of("1", "2"), watch.look());
    replaced.add("1");
    equal(1, watch("1").look().size());
  }

  void jobsEndWhenAnExecutorTheyNeedIsGone() {
    hello("1", "2");
    JobWatch watch = watch("1");
    roster.removed("2", "");
    equal(Set.of(), watch.look());
    roster.removed("1", "");
    equal(Set.of(), watch.look());
    equal(1, cancelled);
    equal(List.of("1"), List.of(watch.lost()));
  }

  void whereTasksMayBeAnywhereAnyThatHangsCountsAndNoneThatIsGone() {
    hello("1", "2");
    JobWatch watch = watch();
    roster.removed("1", "");
    equal(Set.of(), watch.look());
    pass(10_001);
    equal(Set.of("2"), watch.look());
    equal(1, cancelled);
    hello("3");
    pass(10_001);
    equal(Set.of("2", "3"), watch.look());
    equal(2, cancelled);
  }

  void workThatMakesEachExecutorHangInTurnDoesNotCostThemAll() {
    hello("1", "2", "3");
    JobWatch watch = watch().atMost(2);
    pass(10_001, "2", "3");
    equal(Set.of("1"), watch.look());
    pass(10_001);
    equal(Set.of("1", "2"), watch.look());
    equal(Set.of("1", "2"), watch.look());
  }

  void whatCouldNotBeCancelledIsTriedAgain() {
    hello("1");
    JobWatch watch = new JobWatch(roster, List.of("1"), Set::of, () -> {
      cancelled++;
      throw new IllegalStateException("the scheduler is busy");
    });
    pass(10_001);
    RunTests.fails(IllegalStateException.class, watch::look);
    RunTests.fails(IllegalStateException.class, watch::look);
    equal(2, cancelled);
    equal(List.of(), List.of(watch.lost()));
  }
}
