package org.mizzle.bridge;

import org.apache.spark.Partition;

/** One task of a group's job: nothing but its number. */
final class GroupPartition implements Partition {
  private static final long serialVersionUID = 1L;

  private final int index;

  GroupPartition(int index) {
    this.index = index;
  }

  @Override
  public int index() {
    return index;
  }

  @Override
  public boolean equals(Object other) {
    return other instanceof GroupPartition that && that.index == index;
  }

  @Override
  public int hashCode() {
    return index;
  }
}
