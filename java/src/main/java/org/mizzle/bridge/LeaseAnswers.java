package org.mizzle.bridge;

import java.io.IOException;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.Executor;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Does what the driver's answers to questions for leases ask for. Raising the fences comes before
 * the renewal, all the rest after it: nothing that fails, and no disk that is slow, ends a lease.
 */
final class LeaseAnswers {
  private static final Logger LOG = LoggerFactory.getLogger(LeaseAnswers.class);

  private final Runs runs;
  private final ShardFolders folders;
  private final Lease lease;
  /** Not the one that asks the driver: what it does here may take long. */
  private final Executor cleaner;
  /** Ended runs that the cleaner has been given, and has not done with. */
  private final Set<String> leaving = ConcurrentHashMap.newKeySet();

  private interface Step {
    void run() throws IOException;
  }

  LeaseAnswers(Runs runs, ShardFolders folders, Lease lease, Executor cleaner) {
    this.runs = runs;
    this.folders = folders;
    this.lease = lease;
    this.cleaner = cleaner;
  }

  /** The answer to what was asked at that moment. */
  void take(DriverLink.Leases answer, long askedMs, Residents residents) {
    // Ranks may all have moved to other executors, so that no join tells this one of it.
    answer.newest().forEach(runs::fence);
    lease.renewed(askedMs);
    answer.newest().forEach((run, generation) ->
        attempt(run, () -> residents.supersede(run, generation)));
    for (String ended : answer.ended()) {
      attempt(ended, () -> residents.end(ended));
      if (leaving.add(ended)
          && !attempt(ended, () -> cleaner.execute(() -> clean(ended)))) {
        leaving.remove(ended);
      }
    }
  }

  private void clean(String ended) {
    attempt(ended, () -> runs.forget(ended));
    attempt(ended, () -> folders.remove(ended));
    leaving.remove(ended);
  }

  /** Whether it succeeded; what fails is tried again with the next answer. */
  private static boolean attempt(String run, Step step) {
    try {
      step.run();
      return true;
    } catch (Throwable e) {
      LOG.warn("mizzle's bridge could not let go of all that it holds of run {}", run, e);
      return false;
    }
  }
}
