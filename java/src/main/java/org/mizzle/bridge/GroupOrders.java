package org.mizzle.bridge;

import java.util.LinkedHashMap;
import java.util.Map;

/**
 * The orders of groups, from the tasks of this executor to its residents. Any thread may call;
 * guarded by the {@link Residents}, and nothing blocks inside.
 */
final class GroupOrders {
  /** Runs that were broken here; only the youngest ones still have attempts that could ask. */
  private static final int MAX_BROKEN = 64;

  /** Ends a rank's part: its peers and itself are told why. Does not block. */
  interface Members {
    void abort(String run, int generation, int rank, String why);
  }

  private final Residents residents;
  private final Members members;
  /** By run, the newest generation of which a rank was told to end; guarded by the residents. */
  private final Map<String, Integer> broken = new LinkedHashMap<>() {
    private static final long serialVersionUID = 1L;

    @Override
    protected boolean removeEldestEntry(Map.Entry<String, Integer> eldest) {
      return size() > MAX_BROKEN;
    }
  };

  GroupOrders(Residents residents, Members members) {
    this.residents = residents;
    this.members = members;
  }

  /**
   * Hands in a group's order for a task: to the resident whose rank is the task's number, else to
   * any other of that generation that was not given the group yet. A further attempt of the task
   * gets the same order. Whoever gets one waits until it is done, or calls {@link #abandon}.
   *
   * @return null when there is nobody to do it
   */
  Order take(Group group, int partition, byte[] payload) {
    synchronized (residents) {
      Resident best = null;
      for (Resident resident : residents.of(group.run(), group.generation())) {
        Order last = resident.lastGroup;
        if (last != null && last.group == group.number() && last.partition == partition) {
          last.waiting++;
          return last;
        }
        if (resident.isFreeFor(group.number()) && (best == null || resident.rank == partition)) {
          best = resident;
        }
      }
      if (best == null) {
        return null;
      }
      Order order = residents.give(best, Order.GROUP, payload, group.number(), partition);
      order.waiting = 1;
      best.lastGroup = order;
      return order;
    }
  }

  /** Whether a rank of that generation was told to end in this executor. */
  boolean isBroken(String run, int generation) {
    synchronized (residents) {
      return Integer.valueOf(generation).equals(broken.get(run));
    }
  }

  /**
   * An attempt was killed; when no other waits for its order, the rank is told to end.
   *
   * @return whether it was told: then its order is soon done, or its process dead
   */
  boolean abandon(Order order, String why) {
    int rank;
    synchronized (residents) {
      order.waiting--;
      Resident resident = order.waiting == 0 ? residents.doing(order) : null;
      if (resident == null) {
        return false;
      }
      residents.expectBack(resident);
      rank = resident.rank;
      broken.put(order.run, order.generation);
    }
    members.abort(order.run, order.generation, rank, why);
    return true;
  }
}
