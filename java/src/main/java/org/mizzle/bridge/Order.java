package org.mizzle.bridge;

import java.util.concurrent.CompletableFuture;

/** What a resident is told to do, once. Its payload is Python's business. */
final class Order {
  /** Kinds, as they travel. */
  static final int START = 1;
  static final int GROUP = 2;
  static final int RELEASE = 3;
  static final int EXIT = 4;

  /** In what way it ended: FAILED is a group after which the resident gave its rank up. */
  enum End { DONE, FAILED, DIED }

  /** {@code rank}: the resident's own, or -1; {@code body}: what it said, or why it died. */
  record Outcome(End end, int rank, byte[] body) {
    boolean died() {
      return end == End.DIED;
    }
  }

  /** New for every order of this bridge; 0 stands for none. */
  final long serial;
  final int kind;
  final String run;
  final int generation;
  final byte[] payload;
  /** Of a GROUP, its number and the task that handed it in. */
  final long group;
  final int partition;
  /** Completed when the resident comes back, or has died. */
  final CompletableFuture<Outcome> done = new CompletableFuture<>();
  /** Attempts that wait for it; guarded by {@link Residents}. */
  int waiting;

  Order(long serial, int kind, String run, int generation, byte[] payload, long group,
      int partition) {
    this.serial = serial;
    this.kind = kind;
    this.run = run;
    this.generation = generation;
    this.payload = payload;
    this.group = group;
    this.partition = partition;
  }
}
