package org.mizzle.bridge;

import java.util.ArrayList;
import java.util.Comparator;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import java.util.function.Predicate;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * All that this executor holds of each run: arenas, members and the fence. Any thread may call;
 * guarded by this, and nothing waits for a reader.
 */
final class Runs {
  /** As a fence: no generation is served any more. */
  private static final int NONE = -1;
  private static final Logger LOG = LoggerFactory.getLogger(Runs.class);

  private static final class Run {
    final List<Arena> arenas = new ArrayList<>();
    final List<Member> members = new ArrayList<>();
    /** The lowest generation that is served, unsigned. */
    int fence;
  }

  private final Counters counters;
  private final Lease lease;
  private final Map<String, Run> runs = new HashMap<>();

  Runs(Counters counters, Lease lease) {
    this.counters = counters;
    this.lease = lease;
  }

  synchronized Set<String> names() {
    return new TreeSet<>(runs.keySet());
  }

  /**
   * An arena of the run that nobody holds: first one in which the ranks may have left something that
   * were there at the boundary, generation {@code boundary} (-1: none). Then what a later generation
   * has left behind before what an earlier one has, as a process that outlived its generation may
   * do; of these the preferred rank's; else a new one.
   */
  synchronized Arena claim(String name, int preferredRank, int boundary, Object session) {
    Run run = runs.computeIfAbsent(name, absent -> new Run());
    List<Arena> byPreference = new ArrayList<>(run.arenas);
    byPreference.sort(Comparator.comparing((Arena arena) -> !arena.wasLabelledIn(boundary))
        .thenComparing(Arena::labelledIn, Comparator.reverseOrder())
        .thenComparing(arena -> arena.rank() != preferredRank));
    for (Arena arena : byPreference) {
      if (arena.claim(session)) {
        return arena;
      }
    }
    Arena arena = new Arena(name);
    arena.claim(session);
    run.arenas.add(arena);
    return arena;
  }

  /** Refuses an older generation than the fence, and all of them while the lease is over. */
  synchronized void check(String name, int generation) throws BridgeException {
    try {
      lease.check();
    } catch (BridgeException e) {
      counters.increment(Counters.Name.FENCED);
      throw e;
    }
    Run run = runs.get(name);
    if (run != null && Integer.compareUnsigned(generation, run.fence) < 0) {
      counters.increment(Counters.Name.FENCED);
      throw new BridgeException(BridgeException.Code.FENCED, "generation "
          + Integer.toUnsignedString(generation) + " was superseded by generation "
          + Integer.toUnsignedString(run.fence));
    }
  }

  /** Raises the fence; whoever waits in an older generation is told, its blocks go. */
  void fence(String name, int generation) {
    List<Member> old;
    synchronized (this) {
      Run run = runs.computeIfAbsent(name, absent -> new Run());
      if (Integer.compareUnsigned(generation, run.fence) <= 0) {
        return;
      }
      run.fence = generation;
      old = take(run, member ->
          Integer.compareUnsigned(member.group.generation(), generation) < 0);
    }
    counters.add(Counters.Name.FENCED, old.stream().filter(member -> !member.hasLeft()).count());
    String why = "superseded: generation " + Integer.toUnsignedString(generation) + " has started";
    old.forEach(member -> end(member, generation, why));
  }

  /**
   * Ends every generation that ranks here belong to: others may have taken over from them. What
   * their arenas hold stays, for the driver may come back and find that nobody has.
   */
  void isolate() {
    Map<String, Integer> fences = new HashMap<>();
    synchronized (this) {
      runs.forEach((name, run) -> run.members.stream().map(member -> member.group.generation())
          .max(Integer::compareUnsigned)
          .ifPresent(generation -> fences.put(name, generation + 1)));
    }
    fences.forEach(this::fence);
  }

  /** A rank is about to join: older generations end, and it is refused if it is of one itself. */
  void register(Member member) throws BridgeException {
    synchronized (this) {
      check(member.group.run(), member.group.generation());
    }
    fence(member.group.run(), member.group.generation());
    synchronized (this) {
      check(member.group.run(), member.group.generation());
      runs.computeIfAbsent(member.group.run(), absent -> new Run()).members.add(member);
    }
  }

  /** The rank of that generation in this executor that was admitted last, or null. */
  synchronized Member member(String name, int generation, int rank) {
    Run run = runs.get(name);
    Member last = null;
    for (Member member : run == null ? List.<Member>of() : run.members) {
      if (member.group.generation() == generation && member.rank() == rank) {
        last = member;
      }
    }
    return last;
  }

  /** How many blocks the ranks have put, and not dropped, whose name begins so. */
  synchronized long countBlocks(String prefix) {
    return runs.values().stream().flatMap(run -> run.members.stream())
        .mapToLong(member -> member.shelf.count(prefix, member.nonce)).sum();
  }

  /** A rank was not admitted, or not connected: nothing of it stays. */
  void dismiss(Member member, String why) {
    synchronized (this) {
      Run run = runs.get(member.group.run());
      if (run != null) {
        run.members.remove(member);
      }
    }
    member.fenced(0, why);
  }

  /**
   * The members of earlier groups that have left are over. Called when all ranks of a later group
   * were admitted: the driver starts it only when no rank of an earlier one runs any more.
   */
  void supersede(Group by) {
    List<Member> old;
    synchronized (this) {
      Run run = runs.get(by.run());
      old = run == null
          ? List.of() : take(run, member -> member.hasLeft() && member.group.isOlder(by));
    }
    old.forEach(member -> end(member, 0, "its group has ended"));
  }

  /** The run is over: everything of it goes. */
  void forget(String name) {
    Run run;
    synchronized (this) {
      run = runs.remove(name);
    }
    if (run != null) {
      run.members.forEach(member -> end(member, NONE, "the run has ended"));
      run.arenas.forEach(Arena::close);
    }
  }

  /** Whatever goes wrong with one, the others end as well. */
  private static void end(Member member, int fence, String why) {
    try {
      member.fenced(fence, why);
    } catch (RuntimeException e) {
      LOG.error("mizzle could not end rank {} of {}", member.rank(), member.group, e);
    }
  }

  private static List<Member> take(Run run, Predicate<Member> which) {
    List<Member> taken = run.members.stream().filter(which).toList();
    run.members.removeAll(taken);
    return taken;
  }
}
