package org.mizzle.bridge;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.function.LongSupplier;

/**
 * The driver's side of admission: collects the N ranks of a group, gives each its rank (the one it
 * wants, always; else the first free one it prefers) and all the same peer table. One table per
 * (run, generation, group); whoever comes later is refused. Pure: time comes from outside.
 */
final class Rendezvous {
  /** A joiner that has not asked again for so long is dead: its place is free. */
  private static final long STALE_MS = 5_000;

  private static final class Gathering {
    final int size;
    final Map<Long, Join> members = new LinkedHashMap<>();
    final Map<Long, Long> lastSeenMs = new HashMap<>();
    /** By wanted rank, who was the last to come and want it. */
    final Map<Integer, Long> newest = new HashMap<>();
    /** By rank; null until all were there at once. */
    List<Join> table;

    Gathering(int size) {
      this.size = size;
    }

    /** Counts it in; false if a newer joiner wants the same rank, and so takes its place. */
    boolean add(Join join, long nowMs) {
      boolean isNew = lastSeenMs.put(join.nonce(), nowMs) == null;
      if (join.wanted() >= 0) {
        if (isNew) {
          // A retry of a task: its first attempt is dead, whether or not it still counts as here.
          members.remove(newest.put(join.wanted(), join.nonce()));
        } else if (!newest.get(join.wanted()).equals(join.nonce())) {
          return false;
        }
      }
      members.put(join.nonce(), join);
      members.keySet().removeIf(nonce -> nowMs - lastSeenMs.get(nonce) > STALE_MS);
      if (members.size() == size) {
        table = assign(members.values(), size);
      }
      return true;
    }
  }

  private final LongSupplier clockMs;
  private final Map<String, Map<Group, Gathering>> runs = new HashMap<>();

  Rendezvous(LongSupplier clockMs) {
    this.clockMs = clockMs;
  }

  synchronized void begin(String run) {
    runs.putIfAbsent(run, new HashMap<>());
  }

  synchronized void end(String run) {
    runs.remove(run);
  }

  /** Of these runs, those that have ended. */
  synchronized Set<String> ended(Set<String> asked) {
    Set<String> gone = new TreeSet<>(asked);
    gone.removeAll(runs.keySet());
    return gone;
  }

  /** Of these runs, the generation that last began to gather, where one did. */
  synchronized Map<String, Integer> newest(Set<String> asked) {
    Map<String, Integer> newest = new TreeMap<>();
    for (String run : asked) {
      runs.getOrDefault(run, Map.of()).keySet().stream().map(Group::generation)
          .max(Integer::compareUnsigned).ifPresent(generation -> newest.put(run, generation));
    }
    return newest;
  }

  /** One question of a joiner, repeated by it until the answer is not PENDING. */
  synchronized byte[] join(Join join) {
    if (!join.isPossible()) {
      return Join.refused("rank " + join.wanted() + " in a group of " + join.size());
    }
    Map<Group, Gathering> groups = runs.get(join.group().run());
    if (groups == null) {
      return Join.refused("run " + join.group().run() + " has ended");
    }
    // Only the newest gathering of a run is of use: the one before it ended with its job.
    if (groups.keySet().stream().anyMatch(join.group()::isOlder)) {
      return Join.refused("superseded: a later group of the run has started");
    }
    groups.keySet().removeIf(other -> other.isOlder(join.group()));
    Gathering gathering = groups.computeIfAbsent(join.group(), absent -> new Gathering(join.size()));
    if (gathering.size != join.size()) {
      return Join.refused("the group has " + gathering.size + " ranks, not " + join.size());
    }
    if (gathering.table == null && !gathering.add(join, clockMs.getAsLong())) {
      return Join.refused("superseded: a later attempt wants rank " + join.wanted());
    }
    if (gathering.table == null) {
      return Join.pending();
    }
    for (int rank = 0; rank < gathering.table.size(); rank++) {
      if (gathering.table.get(rank).nonce() == join.nonce()) {
        return Join.table(rank, gathering.table);
      }
    }
    return Join.refused("superseded: all " + join.size() + " ranks of this group were admitted");
  }

  /** A joiner gives up: it counts no more, unless its group is complete already. */
  synchronized void withdraw(Join join) {
    Gathering gathering = runs.getOrDefault(join.group().run(), Map.of()).get(join.group());
    if (gathering != null && gathering.table == null) {
      gathering.members.remove(join.nonce());
    }
  }

  private static List<Join> assign(Iterable<Join> members, int size) {
    Join[] byRank = new Join[size];
    List<Join> rest = new ArrayList<>();
    for (Join member : members) {
      if (!place(byRank, member.wanted(), member)) {
        rest.add(member);
      }
    }
    // First choices before second ones: a rank returns to the memory that holds its state.
    int most = rest.stream().mapToInt(member -> member.preferred().size()).max().orElse(0);
    for (int choice = 0; choice < most; choice++) {
      int nth = choice;
      rest.removeIf(member -> nth < member.preferred().size()
          && place(byRank, member.preferred().get(nth), member));
    }
    // Neighbours in rank share an executor and a host where they can: sums stay local.
    rest.sort(Comparator.comparing(Join::hostId).thenComparing(Join::executorId)
        .thenComparing(Join::nonce));
    int next = 0;
    for (Join member : rest) {
      while (byRank[next] != null) {
        next++;
      }
      byRank[next] = member;
    }
    return Arrays.asList(byRank);
  }

  private static boolean place(Join[] byRank, int rank, Join member) {
    if (rank < 0 || rank >= byRank.length || byRank[rank] != null) {
      return false;
    }
    byRank[rank] = member;
    return true;
  }
}
