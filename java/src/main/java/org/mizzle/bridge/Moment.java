package org.mizzle.bridge;

/** Where in a run a block belongs; {@code iteration} is unsigned. */
record Moment(long iteration, int op) implements Comparable<Moment> {
  @Override
  public int compareTo(Moment other) {
    int byIteration = Long.compareUnsigned(iteration, other.iteration);
    return byIteration != 0 ? byIteration : Integer.compare(op, other.op);
  }
}
