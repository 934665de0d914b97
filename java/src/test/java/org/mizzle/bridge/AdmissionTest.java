package org.mizzle.bridge;

import static org.mizzle.bridge.RunTests.equal;

final class AdmissionTest {
  void largeGroupsAskTheDriverLessOften() {
    equal(20_000_000L, Admission.longestPauseNs(1));
    equal(20_000_000L, Admission.longestPauseNs(8));
    equal(160_000_000L, Admission.longestPauseNs(64));
    equal(250_000_000L, Admission.longestPauseNs(65_535));
  }
}
