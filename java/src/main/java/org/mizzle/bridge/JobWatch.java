package org.mizzle.bridge;

import java.util.List;
import java.util.Set;
import java.util.TreeSet;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Future;
import java.util.function.Supplier;
import org.apache.spark.SparkContext;

/**
 * Watches over Spark's own jobs of a run: in which ranks take their places, shards are dealt, or
 * results are fetched. They would wait for a silent executor until Spark notices, after minutes.
 * Called by mizzle's Python driver through py4j; {@link GroupJobs} looks after groups itself.
 */
public final class JobWatch implements AutoCloseable {
  /** Cancels those jobs that Spark knows of by now; does not block. */
  interface Canceller {
    void cancel();
  }

  private static final int MOST_REPLACED = 2;

  private final Roster roster;
  private final List<String> needed;
  private final Supplier<Set<String>> replaced;
  /** Where tasks may be anywhere: Spark offered those none any more when the jobs began. */
  private final Set<String> replacedBefore;
  private final Canceller jobs;
  /** Those for which jobs were cancelled; guarded by this, as is the next. */
  private final Set<String> lost = new TreeSet<>();
  private int most = Integer.MAX_VALUE;
  private boolean isClosed;
  private Future<?> looking = CompletableFuture.completedFuture(null);

  /** {@code replaced}: the executors that are being replaced. */
  JobWatch(Roster roster, List<String> needed, Supplier<Set<String>> replaced, Canceller jobs) {
    this.roster = roster;
    this.needed = List.copyOf(needed);
    this.replaced = replaced;
    replacedBefore = needed.isEmpty() ? replaced.get() : Set.of();
    this.jobs = jobs;
  }

  /**
   * From now on the jobs with that tag are cancelled when one of these executors hangs or is gone;
   * empty: when any executor hangs that is not being replaced already, for tasks may be anywhere.
   * Spark starts tasks of one that is gone elsewhere by itself.
   */
  public static JobWatch begin(SparkContext context, String tag, List<String> executorIds) {
    return begin(executorIds, () -> context.cancelJobsWithTag(tag, GroupJobs.REASON),
        Integer.MAX_VALUE);
  }

  /**
   * From now on executors that hang are replaced and nothing is cancelled: for jobs of which any
   * executor may do any part, so that Spark itself starts elsewhere what they do not finish. Only a
   * few: work that makes each executor hang in turn must not cost them all.
   */
  public static JobWatch beginReplacing() {
    return begin(List.of(), () -> { }, MOST_REPLACED);
  }

  private static JobWatch begin(List<String> executorIds, Canceller jobs, int most) {
    DriverSide driver = DriverSide.current();
    JobWatch watch =
        new JobWatch(driver.roster(), executorIds, driver.replacements()::asked, jobs).atMost(most);
    watch.looking = Threads.repeat(
        GroupJobs.TIMER, GroupJobs.WATCH_MS, () -> watch.look().forEach(driver::replace));
    return watch;
  }

  /** Names no more executors than so many. */
  synchronized JobWatch atMost(int limit) {
    most = limit;
    return this;
  }

  /** The executors that hang. */
  synchronized Set<String> look() {
    Set<String> hung = roster.hung();
    if (needed.isEmpty()) {
      // One that Spark did not take after all gets tasks again.
      Set<String> leaving = new TreeSet<>(replacedBefore);
      leaving.retainAll(replaced.get());
      hung.removeAll(leaving);
    } else {
      hung.retainAll(needed);
    }
    int room = most - lost.size();
    List<String> news = hung.stream().filter(executor -> !lost.contains(executor)).toList();
    hung.removeAll(news.subList(Math.min(room, news.size()), news.size()));
    Set<String> found = roster.gone(needed);
    found.addAll(hung);
    found.addAll(lost);
    if (!found.isEmpty() && !isClosed) {
      // At every look: a job may begin between two.
      jobs.cancel();
      lost.addAll(found);
    }
    return hung;
  }

  /** The executors for which jobs were cancelled. */
  public synchronized String[] lost() {
    return lost.toArray(String[]::new);
  }

  /** After this nothing is cancelled: the next jobs have the same tag. */
  @Override
  public synchronized void close() {
    isClosed = true;
    looking.cancel(false);
  }
}
