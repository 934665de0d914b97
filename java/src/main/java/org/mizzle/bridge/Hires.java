package org.mizzle.bridge;

import java.nio.charset.StandardCharsets;
import java.util.ArrayDeque;
import java.util.Deque;
import java.util.Iterator;
import java.util.Map;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * The tasks that wait for a resident, the oldest first. Any thread may call; guarded by the
 * {@link Residents}, and nothing blocks inside.
 */
final class Hires {
  private static final Logger LOG = LoggerFactory.getLogger(Hires.class);

  private final Residents residents;
  private final ScheduledExecutorService timer;
  private final Runnable renewLeases;
  private final Deque<Hire> waiting = new ArrayDeque<>();

  /** {@code renewLeases} does not block, and has {@link #leasesAreFresh} called in the end. */
  Hires(Residents residents, ScheduledExecutorService timer, Runnable renewLeases) {
    this.residents = residents;
    this.timer = timer;
    this.renewLeases = renewLeases;
  }

  /** A task wants a resident to start with that generation, which ends the older ones here. */
  void add(Hire hire, long timeoutMs) {
    synchronized (residents) {
      residents.supersede(hire.run, hire.generation);
      hire.leasesAreFresh = !residents.serveOthers(hire.run);
      hire.timeout = timer.schedule(() -> expire(hire), timeoutMs, TimeUnit.MILLISECONDS);
      waiting.add(hire);
      match();
      if (!hire.isOver() && !hire.patient && !hire.leasesAreFresh) {
        renewLeases.run();
      }
    }
  }

  /** Residents of runs that have ended are idle by now, or on their way back. */
  void leasesAreFresh() {
    synchronized (residents) {
      waiting.forEach(hire -> hire.leasesAreFresh = true);
      match();
    }
  }

  /**
   * Brings together who waits and who is idle, and sends away those who do not want to wait and
   * need not: as many as there are residents on their way back wait for these. One that comes from
   * the same run is waited for even if others are idle: it has the rank's state, they have none.
   */
  void match() {
    Map<String, Integer> kin = residents.returning();
    long returning = kin.values().stream().mapToInt(Integer::intValue).sum();
    for (Iterator<Hire> each = waiting.iterator(); each.hasNext();) {
      Hire hire = each.next();
      Resident found = residents.takeFormer(hire.run);
      if (found == null && kin.merge(hire.run, -1, Integer::sum) >= 0) {
        returning--;
        continue;
      }
      found = found == null ? residents.takeAny() : found;
      if (found != null) {
        each.remove();
        start(hire, found);
      } else if (!hire.patient && hire.leasesAreFresh && returning-- <= 0) {
        each.remove();
        hire.nobody();
      }
    }
  }

  private void start(Hire hire, Resident resident) {
    resident.belongTo(hire.run, hire.generation);
    hire.order = residents.give(resident, Order.START, hire.payload, 0, -1);
    hire.order.done.thenAccept(outcome -> tell(hire, outcome)).exceptionally(thrown -> {
      LOG.error("mizzle could not tell how a rank of run {} started", hire.run, thrown);
      hire.drop();
      return null;
    });
  }

  private static void tell(Hire hire, Order.Outcome outcome) {
    if (outcome.died()) {
      hire.fail(new BridgeException(BridgeException.Code.GONE, "a rank could not start: "
          + new String(outcome.body(), StandardCharsets.UTF_8)));
    } else {
      hire.done(outcome);
    }
  }

  private void expire(Hire hire) {
    synchronized (residents) {
      hire.fail(new BridgeException(BridgeException.Code.TIMEOUT, hire.order == null
          ? "no resident process of this executor became free before the deadline"
          : "the resident process did not get ready before the deadline"));
      dismiss(hire);
    }
  }

  /** Who asked waits no more: nobody starts for it, and who does comes back. */
  void dismiss(Hire hire) {
    synchronized (residents) {
      hire.forget();
      waiting.remove(hire);
      if (hire.order != null && !hire.order.done.isDone()) {
        residents.releaseAll(resident -> resident.underWay == hire.order);
      }
    }
  }
}
