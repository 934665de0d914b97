package org.mizzle.bridge;

import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import java.util.concurrent.Executor;

/** All that this executor holds of each run: arenas, members and the fence. Guarded by this. */
final class Runs {
  private static final class Run {
    final List<Arena> arenas = new ArrayList<>();
    final List<Member> members = new ArrayList<>();
    int fence;
  }

  private final Blocks blocks;
  private final Counters counters;
  private final Executor janitor;
  private final Map<String, Run> runs = new HashMap<>();

  Runs(Blocks blocks, Counters counters, Executor janitor) {
    this.blocks = blocks;
    this.counters = counters;
    this.janitor = janitor;
  }

  synchronized Set<String> names() {
    return new TreeSet<>(runs.keySet());
  }

  /** An arena of the run that nobody holds: the preferred rank's, else any, else a new one. */
  synchronized Arena claim(String name, int preferredRank, Object session) {
    Run run = runs.computeIfAbsent(name, absent -> new Run());
    List<Arena> byPreference = new ArrayList<>(run.arenas);
    byPreference.sort((a, b) -> Boolean.compare(
        b.rank() == preferredRank, a.rank() == preferredRank));
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

  /** Refuses an older generation than the fence. */
  synchronized void check(String name, int generation) throws BridgeException {
    Run run = runs.get(name);
    if (run != null && generation < run.fence) {
      counters.increment(Counters.Name.FENCED);
      throw new BridgeException(BridgeException.Code.FENCED, "generation " + generation
          + " was superseded by " + run.fence);
    }
  }

  /** Raises the fence; whoever waits in an older generation is told, its blocks go. */
  void fence(String name, int generation) {
    List<Member> old = new ArrayList<>();
    synchronized (this) {
      Run run = runs.computeIfAbsent(name, absent -> new Run());
      if (generation > run.fence) {
        run.fence = generation;
        run.members.removeIf(member -> member.generation < generation && old.add(member));
      }
    }
    retire(old, "a newer generation (" + generation + ") has started");
  }

  void register(Member member) throws BridgeException {
    fence(member.run, member.generation);
    synchronized (this) {
      check(member.run, member.generation);
      runs.get(member.run).members.add(member);
    }
  }

  /** The members of earlier groups of this run are over: all peers have been admitted anew. */
  void supersede(Member by) {
    List<Member> old = new ArrayList<>();
    synchronized (this) {
      Run run = runs.get(by.run);
      if (run != null) {
        run.members.removeIf(member -> member.hasLeft() && old.add(member));
      }
    }
    retire(old, "its group has ended");
  }

  /** The run is over: everything of it goes. */
  void forget(String name) {
    Run run;
    synchronized (this) {
      run = runs.remove(name);
    }
    if (run != null) {
      retire(run.members, "the run has ended");
      janitor.execute(() -> run.arenas.forEach(Arena::close));
    }
  }

  /** Removes blocks where waiting for their readers holds nobody up. */
  void remove(List<Runnable> work) {
    work.forEach(janitor::execute);
  }

  private void retire(List<Member> members, String why) {
    for (Member member : members) {
      member.end(new BridgeException(BridgeException.Code.FENCED, why));
      remove(member.drop(null, blocks));
      janitor.execute(() -> takeDownBells(member));
    }
  }

  private void takeDownBells(Member member) {
    blocks.remove(Member.reason(member.run, member.generation, member.nonce), null);
    for (int peer = 0; peer < member.size; peer++) {
      blocks.remove(Member.bell(member.run, member.generation, member.nonce, peer), null);
      blocks.remove(Member.alarm(member.run, member.generation, member.nonce, peer), null);
    }
  }
}
