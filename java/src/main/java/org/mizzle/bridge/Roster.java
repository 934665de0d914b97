package org.mizzle.bridge;

import java.util.Collection;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import java.util.function.Predicate;

/**
 * The executors as the driver knows them: whose bridge has reported, who holds ranks of which run,
 * who is gone or has fallen silent. Any thread may call; guarded by this.
 */
final class Roster {
  private static final int MAX_REMOVED = 1000;
  /** By executor; of those that Spark has not removed. */
  private final Map<String, String> bridges = new LinkedHashMap<>();
  /** By run, where the ranks of its newest generation of residents are. */
  private final Map<String, Generation> generations = new HashMap<>();
  private final Pulse pulse;
  /** By executor that Spark has removed, what it said: the latest ones. */
  private final Map<String, String> whyRemoved = new LinkedHashMap<>() {
    private static final long serialVersionUID = 1L;

    @Override
    protected boolean removeEldestEntry(Map.Entry<String, String> eldest) {
      return size() > MAX_REMOVED;
    }
  };

  private record Generation(int number, List<String> executorIds) {}

  Roster(Pulse pulse) {
    this.pulse = pulse;
  }

  /** A bridge is there, and describes itself. */
  synchronized void hello(String executorId, String description) {
    bridges.put(executorId, description);
    pulse.heard(executorId);
  }

  /** A bridge has renewed its leases. */
  void heard(String executorId) {
    pulse.heard(executorId);
  }

  /** Spark has removed it, and says why. */
  synchronized void removed(String executorId, String why) {
    bridges.remove(executorId);
    whyRemoved.put(executorId, why);
    pulse.gone(executorId);
  }

  /** From now on groups of this generation may be run, in these executors. */
  synchronized void expect(String run, int generation, Collection<String> executorIds) {
    generations.put(run, new Generation(generation, List.copyOf(executorIds)));
  }

  /** What Spark said when it removed an executor; empty: it has not. */
  synchronized String whyRemoved(String executorId) {
    return whyRemoved.getOrDefault(executorId, "");
  }

  synchronized void end(String run) {
    generations.remove(run);
  }

  /** Whether that is the run's newest generation of residents, and all its executors live. */
  synchronized boolean isWhole(String run, int generation) {
    Generation newest = generations.get(run);
    return newest != null && newest.number == generation
        && bridges.keySet().containsAll(newest.executorIds);
  }

  /** The executors of a run's newest generation that Spark has removed. */
  synchronized Set<String> gone(String run) {
    return gone(ofNewest(run));
  }

  /** The executors of a run's newest generation that live, and have fallen silent. */
  synchronized Set<String> hung(String run) {
    Set<String> hung = hung();
    hung.retainAll(ofNewest(run));
    return hung;
  }

  /** Those that live, and have fallen silent. */
  synchronized Set<String> hung() {
    Set<String> hung = new TreeSet<>(bridges.keySet());
    hung.retainAll(pulse.silent());
    return hung;
  }

  /** The same while any run goes on, whether it has ranks there or has moved them away; else none. */
  synchronized Set<String> hungDuringRuns() {
    Set<String> hung = hung();
    return generations.isEmpty() ? Set.of() : hung;
  }

  /** Of these executors, those that Spark has removed. */
  synchronized Set<String> gone(Collection<String> executorIds) {
    Set<String> gone = new TreeSet<>(executorIds);
    gone.removeAll(bridges.keySet());
    return gone;
  }

  /** One line an executor that lives, is not silent and stays: "executor id TAB description". */
  String[] lines(Predicate<String> isLeaving) {
    Map<String, String> heard;
    synchronized (this) {
      heard = new LinkedHashMap<>(bridges);
      heard.keySet().removeAll(pulse.silent());
    }
    // Not under the lock: Spark is asked, which has locks of its own.
    heard.keySet().removeIf(isLeaving);
    return heard.entrySet().stream()
        .map(e -> e.getKey() + "\t" + e.getValue()).toArray(String[]::new);
  }

  private Set<String> ofNewest(String run) {
    Generation newest = generations.get(run);
    return newest == null ? new TreeSet<>() : new TreeSet<>(newest.executorIds);
  }
}
