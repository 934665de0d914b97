package org.mizzle.bridge;

import static org.mizzle.bridge.RunTests.equal;

import java.util.List;
import java.util.Set;

final class PulseTest {
  private long now = 50_000;
  private final Pulse pulse = new Pulse(() -> now, 10_000);

  /** Time passes, and somebody looks now and then. */
  private void pass(long ms) {
    for (long left = ms; left > 0; left -= 1_000) {
      now += Math.min(left, 1_000);
      pulse.silent();
    }
  }

  void whoIsExpectedAndNotHeardOfIsSilent() {
    pulse.heard("1");
    pulse.heard("2");
    pass(20_000);
    equal(Set.of(), pulse.silent());
    pulse.expect("r", List.of("1", "2"));
    pass(10_000);
    equal(Set.of(), pulse.silent());
    pulse.heard("1");
    pass(1);
    equal(Set.of("2"), pulse.silent());
  }

  void whoeverWasSilentStaysSoUntilHeard() {
    pulse.expect("r", List.of("1", "2"));
    pass(9_000);
    pulse.heard("2");
    pass(2_000);
    equal(Set.of("1"), pulse.silent());
    pulse.expect("r", List.of("2"));
    equal(Set.of("1"), pulse.silent());
    pulse.heard("1");
    equal(Set.of(), pulse.silent());
  }

  void nobodyMustBeHeardOfWhenTheRunHasEndedOrTheExecutorIsGone() {
    pulse.expect("r", List.of("1"));
    pulse.expect("s", List.of("2"));
    pulse.end("r");
    pass(10_001);
    equal(Set.of("2"), pulse.silent());
    pulse.end("s");
    pulse.gone("2");
    equal(Set.of(), pulse.silent());
  }

  void aPauseOfTheDriverItselfIsNobodysSilence() {
    pulse.expect("r", List.of("1"));
    pass(1_000);
    now += 60_000;
    equal(Set.of(), pulse.silent());
    pass(10_000);
    equal(Set.of(), pulse.silent());
    pass(1);
    equal(Set.of("1"), pulse.silent());
  }
}
