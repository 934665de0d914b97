package org.mizzle.bridge;

import static org.mizzle.bridge.RunTests.equal;

import java.util.List;
import org.apache.spark.scheduler.SparkListenerExecutorRemoved;

final class DriverSideTest {
  private final DriverSide driver = new DriverSide();

  private void hello(String executorId) {
    driver.receive(new Frame.Builder().u8(DriverSide.HELLO).string(executorId)
        .string("pid=" + executorId).body());
  }

  void aBridgeIsForgottenWithItsExecutor() {
    hello("1");
    hello("2");
    driver.listener().onExecutorRemoved(new SparkListenerExecutorRemoved(0, "1", "killed"));
    driver.listener().onExecutorRemoved(new SparkListenerExecutorRemoved(0, "3", "unknown"));
    equal(List.of("2\tpid=2"), List.of(driver.bridges()));
  }
}
