package org.mizzle.bridge;

import java.util.Arrays;
import java.util.List;
import org.apache.spark.Partition;
import org.apache.spark.TaskContext;
import org.apache.spark.rdd.RDD;
import org.apache.spark.sql.catalyst.InternalRow;
import org.apache.spark.sql.classic.Dataset;
import scala.collection.Iterator;
import scala.collection.immutable.Seq;
import scala.jdk.javaapi.CollectionConverters;
import scala.reflect.ClassTag;

/**
 * The rows of a Dataset with one column of text, made by tasks that each prefer an executor. Only
 * an RDD can say where its tasks shall run; so the Dataset's last stage becomes one. Called by
 * mizzle's Python driver through py4j.
 */
public final class PlacedRows extends RDD<String> {
  private static final long serialVersionUID = 1L;

  private final RDD<InternalRow> rows;
  private final transient List<String> places;

  private PlacedRows(RDD<InternalRow> rows, List<String> places) {
    super(rows, ClassTag.apply(String.class));
    this.rows = rows;
    this.places = places;
  }

  /** By partition: where it is made if a slot is free there. Places as Spark names executors. */
  public static List<String> collect(Dataset<?> frame, List<String> places) {
    RDD<InternalRow> rows = frame.queryExecution().toRdd();
    return Arrays.asList((String[]) new PlacedRows(rows, List.copyOf(places)).collect());
  }

  @Override
  public Partition[] getPartitions() {
    return rows.partitions();
  }

  @Override
  public Seq<String> getPreferredLocations(Partition split) {
    return CollectionConverters.asScala(List.of(places.get(split.index()))).toSeq();
  }

  @Override
  public Iterator<String> compute(Partition split, TaskContext context) {
    java.util.Iterator<InternalRow> made =
        CollectionConverters.asJava(rows.iterator(split, context));
    return CollectionConverters.asScala(new java.util.Iterator<String>() {
      @Override
      public boolean hasNext() {
        return made.hasNext();
      }

      @Override
      public String next() {
        return made.next().getUTF8String(0).toString();
      }
    });
  }
}
