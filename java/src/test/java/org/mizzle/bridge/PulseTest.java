package org.mizzle.bridge;

import static org.mizzle.bridge.RunTests.equal;

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

  void whoHasReportedAndIsNotHeardOfIsSilent() {
    pulse.heard("1");
    pulse.heard("2");
    pass(10_000);
    equal(Set.of(), pulse.silent());
    pulse.heard("1");
    pass(1);
    equal(Set.of("2"), pulse.silent());
  }

  void whoeverWasSilentStaysSoUntilHeard() {
    pulse.heard("1");
    pass(11_000);
    equal(Set.of("1"), pulse.silent());
    now += 60_000;
    equal(Set.of("1"), pulse.silent());
    pulse.heard("1");
    equal(Set.of(), pulse.silent());
  }

  void nobodyMustBeHeardOfWhenItsExecutorIsGone() {
    pulse.heard("1");
    pulse.heard("2");
    pulse.gone("1");
    pass(10_001);
    equal(Set.of("2"), pulse.silent());
    pulse.gone("2");
    equal(Set.of(), pulse.silent());
  }

  void aPauseOfTheDriverItselfIsNobodysSilence() {
    pulse.heard("1");
    pass(1_000);
    now += 60_000;
    equal(Set.of(), pulse.silent());
    pass(10_000);
    equal(Set.of(), pulse.silent());
    pass(1);
    equal(Set.of("1"), pulse.silent());
  }

  void pausesOfTwoSecondsAreNoSilence() {
    pulse.heard("1");
    for (int pause = 0; pause < 100; pause++) {
      now += 2_000;
      pulse.silent();
      pulse.heard("1");
      equal(Set.of(), pulse.silent());
      pass(8_000);
      equal(Set.of(), pulse.silent());
      pulse.heard("1");
    }
  }
}
