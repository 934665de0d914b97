package org.mizzle.bridge;

import java.util.List;
import java.util.Set;
import java.util.TreeSet;
import java.util.concurrent.Future;
import org.apache.spark.SparkContext;

/**
 * Watches over Spark's own jobs of a run: in which ranks take their places, shards are dealt, or
 * results are fetched. They would wait for a silent executor until Spark notices, after minutes.
 * Called by mizzle's Python driver through py4j; {@link GroupJobs} looks after groups itself.
 */
public final class JobWatch implements AutoCloseable {
  /** Cancels the jobs; does not block. */
  interface Canceller {
    void cancel();
  }

  private final Roster roster;
  private final List<String> needed;
  private final Canceller jobs;
  /** Those for which jobs were cancelled; guarded by this. */
  private final Set<String> lost = new TreeSet<>();
  private Future<?> looking;

  JobWatch(Roster roster, List<String> needed, Canceller jobs) {
    this.roster = roster;
    this.needed = List.copyOf(needed);
    this.jobs = jobs;
  }

  /**
   * From now on the jobs with that tag are cancelled when one of these executors hangs or is gone;
   * empty: when any executor hangs, for tasks may be anywhere. Spark starts tasks of one that is
   * gone elsewhere by itself.
   */
  public static JobWatch begin(SparkContext context, String tag, List<String> executorIds) {
    DriverSide driver = DriverSide.current();
    JobWatch watch = new JobWatch(driver.roster(), executorIds,
        () -> context.cancelJobsWithTag(tag, GroupJobs.REASON));
    watch.looking = Threads.repeat(
        GroupJobs.TIMER, GroupJobs.WATCH_MS, () -> watch.look().forEach(driver::replace));
    return watch;
  }

  /** The executors that hang and had not before. */
  synchronized Set<String> look() {
    Set<String> hung = roster.hung();
    if (!needed.isEmpty()) {
      hung.retainAll(needed);
    }
    hung.removeAll(lost);
    Set<String> gone = roster.gone(needed);
    gone.removeAll(lost);
    if (!hung.isEmpty() || !gone.isEmpty()) {
      jobs.cancel();
    }
    lost.addAll(hung);
    lost.addAll(gone);
    return hung;
  }

  /** The executors for which jobs were cancelled. */
  public synchronized String[] lost() {
    return lost.toArray(String[]::new);
  }

  @Override
  public void close() {
    looking.cancel(false);
  }
}
