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

  private int whole(String run, int generation) {
    return ((byte[]) driver.receive(new Frame.Builder().u8(DriverSide.WHOLE).string(run)
        .u32(generation).body()))[0];
  }

  void aGenerationIsWholeUntilItIsSupersededOrLosesAnExecutorOrItsRunEnds() {
    hello("1");
    hello("2");
    equal(0, whole("r", 0));
    driver.expect("r", 0, List.of("1", "2"));
    driver.expect("s", 4, List.of("2", "2"));
    equal(1, whole("r", 0));
    equal(0, whole("r", 1));
    driver.listener().onExecutorRemoved(new SparkListenerExecutorRemoved(0, "1", "killed"));
    equal(0, whole("r", 0));
    equal(1, whole("s", 4));
    driver.expect("r", 1, List.of("2"));
    equal(0, whole("r", 0));
    equal(1, whole("r", 1));
    driver.end("r");
    equal(0, whole("r", 1));
  }

  void leasesAreCountedApart() {
    hello("1");
    driver.receive(new Frame.Builder().u8(DriverSide.LEASE).u32(0).body());
    driver.receive(new Frame.Builder().u8(DriverSide.LEASE).u32(0).body());
    equal(1L, driver.messages());
    equal(2L, driver.leases());
    RunTests.check(driver.cpuNs() > 0, "this process has used some time");
  }
}
