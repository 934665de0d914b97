package org.mizzle.bridge;

import static org.mizzle.bridge.RunTests.equal;

import java.util.List;
import java.util.Set;
import org.apache.spark.Success$;
import org.apache.spark.scheduler.SparkListenerExecutorRemoved;
import org.apache.spark.scheduler.SparkListenerTaskEnd;
import org.apache.spark.scheduler.SparkListenerTaskStart;
import org.apache.spark.scheduler.TaskInfo;
import org.apache.spark.scheduler.TaskLocality;

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
    equal("killed", driver.whyRemoved("1"));
    equal("", driver.whyRemoved("2"));
  }

  void whoWasToldToLeaveIsNoPlaceForARank() {
    hello("1");
    hello("2");
    equal(List.of("2\tpid=2"), List.of(driver.roster().lines("1"::equals)));
  }

  private void starts(long task, int stage, int index) {
    driver.listener().onTaskStart(new SparkListenerTaskStart(stage, 0, info(task, index)));
  }

  private void ends(long task, int stage, int index) {
    driver.listener().onTaskEnd(new SparkListenerTaskEnd(stage, 0, "ResultTask",
        Success$.MODULE$, info(task, index), null, null));
  }

  private static TaskInfo info(long task, int index) {
    return new TaskInfo(task, index, 0, index, 0, "1", "h", TaskLocality.ANY(), false);
  }

  private int superfluous(String run, int generation, long task) {
    return ((byte[]) driver.receive(new Frame.Builder().u8(DriverSide.SUPERFLUOUS).string(run)
        .u32(generation).u64(task).body()))[0];
  }

  void noAttemptIsSuperfluousInAGenerationThatIsOverOrLostAnExecutor() {
    hello("1");
    hello("2");
    starts(7, 0, 0);
    starts(8, 0, 0);
    equal(0, superfluous("r", 0, 8));
    driver.roster().expect("r", 0, List.of("1", "2"));
    driver.roster().expect("s", 4, List.of("2", "2"));
    equal(1, superfluous("r", 0, 8));
    equal(0, superfluous("r", 1, 8));
    driver.listener().onExecutorRemoved(new SparkListenerExecutorRemoved(0, "1", "killed"));
    equal(0, superfluous("r", 0, 8));
    equal(1, superfluous("s", 4, 8));
    driver.roster().expect("r", 1, List.of("2"));
    equal(0, superfluous("r", 0, 8));
    equal(1, superfluous("r", 1, 8));
    driver.end("r");
    equal(0, superfluous("r", 1, 8));
  }

  void anAttemptIsSuperfluousAsLongAsAnotherOfItsTaskWorks() {
    hello("1");
    driver.roster().expect("r", 0, List.of("1"));
    equal(1, superfluous("r", 0, 8));
    starts(5, 3, 1);
    starts(6, 4, 0);
    starts(7, 3, 0);
    starts(8, 3, 0);
    starts(9, 3, 0);
    equal(1, superfluous("r", 0, 8));
    equal(1, superfluous("r", 0, 9));
    ends(7, 3, 0);
    equal(0, superfluous("r", 0, 8));
    equal(0, superfluous("r", 0, 9));
  }

  void whoHangsIsReplacedWhileARunGoesOnWhereverItsRanksAre() {
    long[] now = {50_000};
    Roster roster = new Roster(new Pulse(() -> now[0], 0));
    roster.hello("1", "");
    roster.hello("2", "");
    now[0]++;
    roster.heard("2");
    equal(Set.of(), roster.hungDuringRuns());
    roster.expect("r", 1, List.of("2"));
    equal(Set.of("1"), roster.hungDuringRuns());
    roster.end("r");
    equal(Set.of(), roster.hungDuringRuns());
  }

  void leasesAreCountedApart() {
    hello("1");
    driver.receive(new Frame.Builder().u8(DriverSide.LEASE).string("1").u32(0).body());
    driver.receive(new Frame.Builder().u8(DriverSide.LEASE).string("1").u32(0).body());
    equal(1L, driver.messages());
    equal(2L, driver.leases());
    RunTests.check(driver.cpuNs() > 0, "this process has used some time");
  }
}
