package org.mizzle.bridge;

import java.util.List;
import org.apache.spark.Dependency;
import org.apache.spark.Partition;
import org.apache.spark.SparkContext;
import org.apache.spark.TaskContext;
import org.apache.spark.rdd.RDD;
import scala.collection.Iterator;
import scala.collection.immutable.Seq;
import scala.jdk.javaapi.CollectionConverters;
import scala.reflect.ClassTag;

/**
 * Where the ranks of one generation live: an RDD without rows, whose partition i wants to be where
 * rank i's resident is. The same for every group of the generation. Only the driver knows the
 * places, so that tasks travel light.
 */
public final class GroupRdd extends RDD<byte[]> {
  private static final long serialVersionUID = 1L;

  final String run;
  final int generation;
  private final transient List<String> places;

  /** {@code places}: by rank, Spark's name of an executor as a place for tasks. */
  GroupRdd(SparkContext context, String run, int generation, List<String> places) {
    super(context, noneBefore(), ClassTag.apply(byte[].class));
    this.run = run;
    this.generation = generation;
    this.places = places;
  }

  private static Seq<Dependency<?>> noneBefore() {
    return CollectionConverters.asScala(List.<Dependency<?>>of()).toSeq();
  }

  @Override
  public Partition[] getPartitions() {
    Partition[] partitions = new Partition[places.size()];
    for (int rank = 0; rank < partitions.length; rank++) {
      partitions[rank] = new GroupPartition(rank);
    }
    return partitions;
  }

  @Override
  public Seq<String> getPreferredLocations(Partition split) {
    return CollectionConverters.asScala(List.of(places.get(split.index()))).toSeq();
  }

  @Override
  public Iterator<byte[]> compute(Partition split, TaskContext context) {
    return CollectionConverters.asScala(List.<byte[]>of().iterator());
  }
}
