package org.mizzle.bridge;

import java.util.Collection;
import java.util.HashMap;
import java.util.HashSet;
import java.util.Map;
import java.util.Set;
import java.util.function.LongSupplier;

/**
 * Which executors have fallen silent: they hold ranks, so their bridges renew leases every second,
 * but nothing was heard of them for long. A frozen executor keeps its connections open, and Spark
 * waits two minutes for it. Pure: time comes from outside; guarded by this.
 */
final class Pulse {
  /** Who looks so seldom was itself not running: what was sent meanwhile is still to be read. */
  private static final long PAUSED_MS = 2_000;

  private final LongSupplier clockMs;
  private final long limitMs;
  private long lookedMs;
  private long judgedSinceMs;
  private final Map<String, Long> heardMs = new HashMap<>();
  /** By run, the executors that must be heard of, and since when. */
  private final Map<String, Expected> expected = new HashMap<>();
  private final Set<String> silent = new HashSet<>();

  private record Expected(Set<String> executorIds, long sinceMs) {}

  Pulse(LongSupplier clockMs, long limitMs) {
    this.clockMs = clockMs;
    this.limitMs = limitMs;
    lookedMs = clockMs.getAsLong();
  }

  /** A bridge has spoken: whatever was thought of it, it is there. */
  synchronized void heard(String executorId) {
    heardMs.put(executorId, clockMs.getAsLong());
    silent.remove(executorId);
  }

  /** Spark has removed it: it is gone, which is another thing. */
  synchronized void gone(String executorId) {
    heardMs.remove(executorId);
    silent.remove(executorId);
  }

  /** From now on these must be heard of, for that run, and no others. */
  synchronized void expect(String run, Collection<String> executorIds) {
    expected.put(run, new Expected(Set.copyOf(executorIds), clockMs.getAsLong()));
  }

  synchronized void end(String run) {
    expected.remove(run);
  }

  /** All that have fallen silent, now or before, and were not heard of since. */
  synchronized Set<String> silent() {
    long now = clockMs.getAsLong();
    if (now - lookedMs > PAUSED_MS) {
      judgedSinceMs = now;
    }
    lookedMs = now;
    for (Expected one : expected.values()) {
      for (String executorId : one.executorIds) {
        long since = Math.max(one.sinceMs, judgedSinceMs);
        long last = Math.max(since, heardMs.getOrDefault(executorId, since));
        if (now - last > limitMs) {
          silent.add(executorId);
        }
      }
    }
    return Set.copyOf(silent);
  }
}
