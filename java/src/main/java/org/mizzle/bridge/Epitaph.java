package org.mizzle.bridge;

import java.util.function.LongFunction;

/**
 * Why a process has died, as far as the kernel's counters tell: they are looked at when it is given
 * something to do, and again when it is gone. Guarded by {@link Residents}.
 */
final class Epitaph {
  private static final String REMEDY = ". Give executors more memory beside their heap"
      + " (spark.executor.memoryOverhead), or ranks less to hold: a smaller global_batch_size,"
      + " accumulate, or more executors";

  private final long pid;
  private final LongFunction<MemoryGroup> groupOf;
  private MemoryGroup memory;
  private long kills;
  private long killsOfMachine;

  /** {@code groupOf}: the group that a living process is in now. */
  Epitaph(long pid, LongFunction<MemoryGroup> groupOf) {
    this.pid = pid;
    this.groupOf = groupOf;
    look();
  }

  /** It lives: what was killed until now was another process. */
  void look() {
    memory = groupOf.apply(pid);
    kills = memory.kills();
    killsOfMachine = kills < 0 ? memory.killsOfMachine() : 0;
  }

  String write() {
    String ended = "process " + pid + " ended: ";
    long killed = memory.kills();
    if (kills >= 0 && killed > kills) {
      return ended + "the kernel killed it because it was out of memory (OOM): "
          + memory.describe() + REMEDY;
    }
    if (kills < 0 && memory.killsOfMachine() > killsOfMachine) {
      return ended + "it crashed or was killed, and meanwhile the kernel killed a process of this"
          + " machine that was out of memory (OOM), so probably this one: " + memory.describe()
          + REMEDY;
    }
    return ended + "it crashed or was killed" + (kills < 0 ? "" : ", and not for want of memory")
        + ". Its standard error is that of its executor";
  }
}
