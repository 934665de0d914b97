package org.mizzle.bridge;

import static org.mizzle.bridge.RunTests.check;
import static org.mizzle.bridge.RunTests.equal;
import static org.mizzle.bridge.RunTests.fails;

final class RunsTest {
  private final Counters counters = new Counters();
  private final Runs runs = new Runs(counters, new Lease(() -> 0, 10_000));

  void anOlderGenerationThanTheFenceIsRefusedAndCounted() throws BridgeException {
    runs.check("r", 0);
    runs.fence("r", 2);
    runs.check("r", 2);
    runs.check("other", 0);
    BridgeException refused = fails(BridgeException.class, () -> runs.check("r", 1));
    equal(BridgeException.Code.FENCED, refused.code);
    equal(1L, counters.get(Counters.Name.FENCED));
  }

  void aFenceIsNeverLowered() {
    runs.fence("r", -1); // as unsigned the highest
    runs.fence("r", 3);
    fails(BridgeException.class, () -> runs.check("r", 3));
  }

  void anArenaThatSomebodyHoldsIsNobodyElses() {
    Arena first = runs.claim("r", 0, -1, "one");
    check(runs.claim("r", 0, -1, "two") != first, "another one");
    first.unclaim("one");
    check(runs.claim("r", 0, -1, "three") == first, "free again");
  }

  void aRankReturnsToTheArenaThatItHad() {
    Arena first = runs.claim("r", 0, -1, "one");
    Arena second = runs.claim("r", 1, -1, "two");
    first.assign(0, 4);
    second.assign(1, 4);
    first.unclaim("one");
    second.unclaim("two");
    check(runs.claim("r", 1, -1, "three") == second, "its own");
  }

  void whatALaterGenerationLeftIsFoundBeforeWhatAnOlderProcessHeldForLong() {
    Arena old = runs.claim("r", 0, -1, "zombie");
    old.assign(0, 0);
    old.label(new byte[] {1});
    Arena current = runs.claim("r", 0, -1, "rank");
    current.assign(0, 1);
    current.label(new byte[] {2});
    old.unclaim("zombie");
    current.unclaim("rank");
    check(runs.claim("r", 0, -1, "next") == current, "the state of the boundary is there");
  }

  void whatWasLeftAtTheBoundaryIsFoundBeforeWhatALaterGenerationBegan() {
    Arena boundary = runs.claim("r", 0, -1, "zombie");
    boundary.assign(0, 3);
    boundary.label(new byte[] {1});
    Arena later = runs.claim("r", 0, 3, "rank");
    check(later != boundary, "the one is still held");
    later.assign(0, 4);
    later.label(new byte[] {2});
    boundary.unclaim("zombie");
    later.unclaim("rank");
    check(runs.claim("r", 0, 3, "next") == boundary, "generation 4 did not get that far");
    boundary.assign(0, 5);
    boundary.label(new byte[] {1, 3});
    boundary.unclaim("next");
    check(runs.claim("r", 0, 3, "one more") == boundary, "what generation 3 left is still there");
    boundary.unclaim("one more");
    check(runs.claim("r", 0, 4, "and one") == later, "generation 4 had got that far after all");
  }
}
