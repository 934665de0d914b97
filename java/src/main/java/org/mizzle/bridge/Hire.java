package org.mizzle.bridge;

import java.util.concurrent.Future;

/**
 * A task's wish that a resident start with a run: it waits for one, then for what that one says.
 * Its fields are guarded by {@link Residents}.
 */
final class Hire {
  /** Told exactly once how it ended, and never if the asker went away first. Does not block. */
  interface Asker {
    /** What the resident said; null: there is none, and the task did not want to wait. */
    void answer(byte[] outcome);

    void answer(BridgeException error);

    /** It cannot be told: its connection ends, so that it does not wait for ever. */
    void drop();
  }

  final String run;
  final int generation;
  final byte[] payload;
  /** Whether to wait for a resident that is still to come. */
  final boolean patient;
  /** Whether residents of ended runs would be known as such by now. */
  boolean leasesAreFresh;
  /** The START, once a resident was found. */
  Order order;
  Future<?> timeout;
  private final Asker asker;
  /** Read without the lock where it does not matter. */
  private volatile boolean answered;

  Hire(String run, int generation, byte[] payload, boolean patient, Asker asker) {
    this.run = run;
    this.generation = generation;
    this.payload = payload;
    this.patient = patient;
    this.asker = asker;
  }

  /** Nobody is to be told any more. */
  void forget() {
    answered = true;
    if (timeout != null) {
      timeout.cancel(false);
    }
  }

  boolean isOver() {
    return answered;
  }

  void nobody() {
    if (!answered) {
      forget();
      asker.answer((byte[]) null);
    }
  }

  void fail(BridgeException error) {
    if (!answered) {
      forget();
      asker.answer(error);
    }
  }

  void drop() {
    asker.drop();
  }

  void done(Order.Outcome outcome) {
    if (!answered) {
      forget();
      asker.answer(outcome.body());
    }
  }
}
