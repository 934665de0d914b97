package org.mizzle.bridge;

import java.util.HashMap;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import java.util.function.LongSupplier;

/**
 * Which executors have fallen silent: their bridges have reported once, so they renew their leases
 * every second, but nothing was heard of them for long. A frozen executor keeps its connections
 * open, and Spark waits two minutes for it. Pure: time comes from outside; guarded by this.
 */
final class Pulse {
  /** Who looks so seldom was itself not running: what was sent meanwhile is still to be read. */
  private static final long PAUSED_MS = 2_000;

  private final LongSupplier clockMs;
  private final long limitMs;
  private long lookedMs;
  private long judgedSinceMs;
  private final Map<String, Long> heardMs = new HashMap<>();
  private final Set<String> silent = new TreeSet<>();

  Pulse(LongSupplier clockMs, long limitMs) {
    this.clockMs = clockMs;
    this.limitMs = limitMs;
    lookedMs = clockMs.getAsLong();
    judgedSinceMs = lookedMs;
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

  /**
   * All that have fallen silent, now or before, and were not heard of since. To be called at least
   * every second: only so a pause of the caller is known from one of theirs.
   */
  synchronized Set<String> silent() {
    long now = clockMs.getAsLong();
    if (now - lookedMs > PAUSED_MS) {
      judgedSinceMs = now;
    }
    lookedMs = now;
    heardMs.forEach((executorId, last) -> {
      if (now - Math.max(last, judgedSinceMs) > limitMs) {
        silent.add(executorId);
      }
    });
    return Set.copyOf(silent);
  }
}
