package org.mizzle.bridge;

/** A task that is killed when the test says so. */
final class FakeTask implements GroupAttempt.Task {
  volatile boolean killed;

  @Override
  public boolean isKilled() {
    return killed;
  }

  @Override
  public RuntimeException killed(String otherwise) {
    return new IllegalMonitorStateException(killed ? "by the test" : otherwise);
  }
}
