package org.mizzle.bridge;

/** Not run by default: shows that a failure is seen. */
final class FailingTest {
  void aFailureIsSeen() {
    RunTests.equal(1, 2);
  }
}
