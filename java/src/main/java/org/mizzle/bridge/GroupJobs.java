package org.mizzle.bridge;

import java.util.ArrayList;
import java.util.List;
import java.util.UUID;
import java.util.concurrent.atomic.AtomicReferenceArray;
import java.util.stream.IntStream;
import org.apache.spark.SparkContext;
import scala.collection.immutable.Seq;
import scala.jdk.javaapi.CollectionConverters;
import scala.reflect.ClassTag;
import scala.runtime.BoxedUnit;

/** Runs groups as Spark jobs; called by mizzle's Python driver through py4j. */
public final class GroupJobs {
  private GroupJobs() {}

  /**
   * Says where the ranks of a generation are, by rank; once a generation. The driver's half of the
   * plugin watches over these executors until the next generation, or the end of the run.
   */
  public static GroupRdd prepare(SparkContext context, String run, long generation,
      List<String> hosts, List<String> executorIds) {
    DriverSide.current().expect(run, (int) generation, executorIds);
    List<String> places = new ArrayList<>();
    for (int rank = 0; rank < hosts.size(); rank++) {
      places.add("executor_" + hosts.get(rank) + "_" + executorIds.get(rank));
    }
    return new GroupRdd(context, run, (int) generation, places);
  }

  /**
   * Runs one group, with the calling thread's local properties, and returns what became of each
   * task: u16 count, then for each u32 length and the bytes of its result. Once a task has found
   * nobody to do its part, or a process has died, the others are cancelled; those that had no result
   * by then have length 0. Whatever else ends the job is thrown.
   */
  public static byte[] run(GroupRdd ranks, long group, byte[] order) {
    int count = ranks.getNumPartitions();
    AtomicReferenceArray<byte[]> results = new AtomicReferenceArray<>(count);
    boolean[] isFutile = new boolean[1];
    SparkContext context = ranks.context();
    // Not named like the tags of runs: it is nobody else's to look for.
    String tag = "one-group-" + UUID.randomUUID();
    context.addJobTag(tag);
    try {
      context.runJob(ranks, new GroupWork(ranks.run, ranks.generation, group, order), all(count),
          (index, result) -> {
            results.set((Integer) index, result);
            if (result[0] != GroupAttempt.OUTCOME && !isFutile[0]) {
              isFutile[0] = true;
              context.cancelJobsWithTag(tag, "a rank of the group is missing");
            }
            return BoxedUnit.UNIT;
          }, ClassTag.apply(byte[].class));
    } catch (Exception e) {
      // Scala throws what it likes. Nothing of ours is thrown where the rest was cancelled by us.
      if (!isFutile[0]) {
        throw e;
      }
    } finally {
      context.removeJobTag(tag);
    }
    return together(results);
  }

  private static Seq<Object> all(int count) {
    return CollectionConverters.asScala(
        IntStream.range(0, count).<Object>mapToObj(i -> i).toList()).toSeq();
  }

  private static byte[] together(AtomicReferenceArray<byte[]> results) {
    Frame.Builder out = new Frame.Builder().u16(results.length());
    for (int i = 0; i < results.length(); i++) {
      out.blob(results.get(i) == null ? new byte[0] : results.get(i));
    }
    return out.body();
  }
}
