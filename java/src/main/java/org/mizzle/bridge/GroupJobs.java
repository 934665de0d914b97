package org.mizzle.bridge;

import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import java.util.UUID;
import java.util.concurrent.Future;
import java.util.concurrent.ScheduledExecutorService;
import java.util.stream.IntStream;
import org.apache.spark.SparkContext;
import scala.collection.immutable.Seq;
import scala.jdk.javaapi.CollectionConverters;
import scala.reflect.ClassTag;
import scala.runtime.BoxedUnit;

/** Runs groups as Spark jobs; called by mizzle's Python driver through py4j. */
public final class GroupJobs {
  /** How long the peers of a rank that failed have to say what they know. */
  private static final String FAILING = "spark.mizzle.groupFailing";
  /** By this the exception of a job that was cancelled here is known from any other. */
  static final String REASON = "a rank of the group is missing or has failed";
  static final long WATCH_MS = 100;
  /** Posts cancellations: never blocks. */
  static final ScheduledExecutorService TIMER = Threads.scheduler("mizzle-groups");

  private GroupJobs() {}

  /**
   * Says where the ranks of a generation are, by rank; once a generation. The driver's half of the
   * plugin watches over these executors until the next generation, or the end of the run.
   */
  public static GroupRdd prepare(SparkContext context, String run, long generation,
      List<String> hosts, List<String> executorIds) {
    DriverSide.current().roster().expect(run, (int) generation, executorIds);
    List<String> places = new ArrayList<>();
    for (int rank = 0; rank < hosts.size(); rank++) {
      places.add("executor_" + hosts.get(rank) + "_" + executorIds.get(rank));
    }
    return new GroupRdd(context, run, (int) generation, places);
  }

  /**
   * Runs one group, with the calling thread's local properties, and returns what became of each
   * task: u16 count, then for each u32 length and the bytes of its result. Once a task has found
   * nobody to do its part, or a process has died, the others are cancelled, and a moment after a
   * rank has failed too, or an executor is gone or hangs; those that had no result by then have
   * length 0. Whatever else ends the job is thrown, a cancellation by anybody else too.
   */
  public static byte[] run(GroupRdd ranks, long group, byte[] order) {
    int count = ranks.getNumPartitions();
    SparkContext context = ranks.context();
    long failingMs = context.conf().getTimeAsMs(FAILING, "2s");
    // Not named like the tags of runs: it is nobody else's to look for.
    String tag = "one-group-" + UUID.randomUUID();
    context.addJobTag(tag);
    Future<?> watch = null;
    try (GroupResults results = new GroupResults(count, TIMER, failingMs,
        () -> context.cancelJobsWithTag(tag, REASON))) {
      watch = Threads.repeat(TIMER, WATCH_MS, () -> giveUpLost(ranks.run, results));
      try {
        context.runJob(ranks, new GroupWork(ranks.run, ranks.generation, group, order), all(count),
            (index, result) -> {
              results.put((Integer) index, result);
              return BoxedUnit.UNIT;
            }, ClassTag.apply(byte[].class));
      } catch (Exception e) {
        // Scala throws what it likes.
        if (!isOurs(e)) {
          throw e;
        }
      }
      return results.together();
    } finally {
      if (watch != null) {
        watch.cancel(false);
      }
      context.removeJobTag(tag);
    }
  }

  /** Gives the group up when an executor is gone, or hangs: its peers would wait for long. */
  private static void giveUpLost(String run, GroupResults results) {
    DriverSide driver = DriverSide.current();
    if (driver != null) {
      Set<String> hung = driver.roster().hung(run);
      if (!hung.isEmpty() || !driver.roster().gone(run).isEmpty()) {
        results.giveUp();
      }
      hung.forEach(driver::replace);
    }
  }

  /** Whether that ended a job because it was cancelled here, and not by its user or by Spark. */
  static boolean isOurs(Exception thrown) {
    return String.valueOf(thrown.getMessage()).contains(REASON);
  }

  private static Seq<Object> all(int count) {
    return CollectionConverters.asScala(
        IntStream.range(0, count).<Object>mapToObj(i -> i).toList()).toSeq();
  }
}
