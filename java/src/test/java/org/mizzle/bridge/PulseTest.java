package org.mizzle.bridge;

import static org.mizzle.bridge.RunTests.equal;

import java.util.List;
import java.util.Set;

final class PulseTest {
  private long now = 50_000;
  private final Pulse pulse = new Pulse(() -> now, 10_000);

  void whoIsExpectedAndNotHeardOfIsSilent() {
    pulse.heard("1");
    pulse.heard("2");
    now += 20_000;
    equal(Set.of(), pulse.silent());
    pulse.expect("r", List.of("1", "2"));
    now += 10_000;
    equal(Set.of(), pulse.silent());
    pulse.heard("1");
    now += 1;
    equal(Set.of("2"), pulse.silent());
  }

  void whoeverWasSilentStaysSoUntilHeard() {
    pulse.expect("r", List.of("1", "2"));
    now += 10_001;
    pulse.heard("2");
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
    now += 10_001;
    equal(Set.of("2"), pulse.silent());
    pulse.end("s");
    pulse.gone("2");
    equal(Set.of(), pulse.silent());
  }
}
