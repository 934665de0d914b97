package org.mizzle.bridge;

import java.util.HashMap;
import java.util.Map;

/**
 * The attempts of tasks that run, as Spark reports them, a little late. Any thread may call;
 * guarded by this.
 */
final class Attempts {
  private static final class Attempt {
    final int stage;
    final int index;
    /** Whether it has found nothing to do. */
    boolean isParked;

    Attempt(int stage, int index) {
      this.stage = stage;
      this.index = index;
    }

    boolean worksFor(Attempt other) {
      return !isParked && stage == other.stage && index == other.index;
    }
  }

  private final Map<Long, Attempt> running = new HashMap<>();

  synchronized void begin(long id, int stage, int index) {
    running.put(id, new Attempt(stage, index));
  }

  synchronized void end(long id) {
    running.remove(id);
  }

  /**
   * An attempt has found nothing to do; from now on it is nobody's reason to wait. Returns whether
   * another one of its task works; of one whose start is not known yet it must be assumed.
   */
  synchronized boolean park(long id) {
    Attempt parked = running.get(id);
    if (parked == null) {
      return true;
    }
    parked.isParked = true;
    return running.values().stream().anyMatch(attempt -> attempt.worksFor(parked));
  }
}
