package org.mizzle.bridge;

import static org.mizzle.bridge.RunTests.check;

import org.apache.spark.SparkException;
import org.apache.spark.errors.SparkCoreErrors;

final class GroupJobsTest {
  private static SparkException cancelled(String reason) {
    return SparkCoreErrors.sparkJobCancelled(3, reason, null);
  }

  void aCancellationByAnybodyElseIsNotOurs() {
    check(GroupJobs.isOurs(cancelled(GroupJobs.REASON)), "this one is");
    check(!GroupJobs.isOurs(cancelled("part of cancelled job tag mizzle-r")), "the user's is not");
    check(!GroupJobs.isOurs(new IllegalStateException()), "nor what says nothing");
  }
}
