package org.mizzle.bridge;

import java.io.Serializable;
import org.apache.spark.Partition;
import org.apache.spark.rdd.PartitionCoalescer;
import org.apache.spark.rdd.PartitionGroup;
import org.apache.spark.rdd.RDD;
import scala.Option;

/**
 * Puts neighbouring partitions of an RDD together, balanced to one, wherever they lie. Spark's own
 * coalescer follows locality and scatters them; neighbours make whole subtrees of mizzle's sum, so
 * that a rank sends a few partial sums instead of one for every partition.
 */
public final class Neighbours implements PartitionCoalescer, Serializable {
  private static final long serialVersionUID = 1L;

  @Override
  public PartitionGroup[] coalesce(int maxPartitions, RDD<?> parent) {
    Partition[] partitions = parent.partitions();
    int count = Math.min(maxPartitions, partitions.length);
    PartitionGroup[] groups = new PartitionGroup[count];
    for (int group = 0; group < count; group++) {
      groups[group] = new PartitionGroup(Option.empty());
      int stop = (int) ((long) (group + 1) * partitions.length / count);
      for (int at = (int) ((long) group * partitions.length / count); at < stop; at++) {
        groups[group].partitions().append(partitions[at]);
      }
    }
    return groups;
  }
}
