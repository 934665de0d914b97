package org.mizzle.bridge;

import java.nio.charset.StandardCharsets;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.HashMap;
import java.util.LinkedHashSet;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import java.util.function.Predicate;

/**
 * The resident processes of this executor: who is idle, who belongs to which run, and what each was
 * told to do. Any thread may call; guarded by this, and nothing blocks inside.
 */
final class Residents {
  private final ScheduledExecutorService timer;
  private final long idleMs;
  /** How long a resident may take to come back once nobody wants what it does. */
  private final long graceMs;
  private final Hires hires;
  private final Set<Resident> all = new LinkedHashSet<>();
  /** The last to come is the first to go: the others become old and end. */
  private final Deque<Resident> idle = new ArrayDeque<>();
  private long lastSerial;

  /** {@code renewLeases} as in {@link Hires}. */
  Residents(ScheduledExecutorService timer, long idleMs, long graceMs, Runnable renewLeases) {
    this.timer = timer;
    this.idleMs = idleMs;
    this.graceMs = graceMs;
    hires = new Hires(this, timer, renewLeases);
  }

  Hires hires() {
    return hires;
  }

  /** A process is there for the first time. */
  synchronized Resident enter(long pid, Resident.Seat seat) {
    Resident resident = new Resident(pid, seat);
    all.add(resident);
    rest(resident);
    return resident;
  }

  /** A process has done its order and is free for the next. Rank -1: it belongs to no run now. */
  synchronized void served(Resident resident, long serial, int rank, byte[] outcome)
      throws BridgeException {
    Order order = resident.underWay;
    if (order == null || order.serial != serial) {
      throw new BridgeException(BridgeException.Code.REFUSED, "process " + resident.pid()
          + " says that it has done order " + serial + ", which it does not have");
    }
    resident.nextAlarm();
    resident.underWay = null;
    boolean stays = rank >= 0 && resident.run != null && order.kind != Order.RELEASE;
    // One that gives up after a group did that group as the rank it was.
    boolean isGroup = order.kind == Order.GROUP;
    int doer = isGroup ? resident.rank : rank;
    Order.End end = isGroup && rank < 0 ? Order.End.FAILED : Order.End.DONE;
    resident.rank = stays ? rank : -1;
    order.done.complete(new Order.Outcome(end, doer, outcome));
    if (!stays) {
      rest(resident);
    } else if (resident.released) {
      tell(resident, Order.RELEASE);
    }
  }

  /** Its connection has ended, and so has the process or soon will. */
  synchronized void gone(Resident resident) {
    all.remove(resident);
    idle.remove(resident);
    resident.nextAlarm();
    if (resident.underWay != null) {
      resident.underWay.done.complete(new Order.Outcome(
          Order.End.DIED, resident.rank, resident.epitaph().getBytes(StandardCharsets.UTF_8)));
    }
    hires.match();
  }

  private void rest(Resident resident) {
    resident.belongTo(null, 0);
    idle.push(resident);
    alarm(resident, idleMs, () -> {
      idle.remove(resident);
      tell(resident, Order.EXIT);
    });
    hires.match();
  }

  private void alarm(Resident resident, long ms, Runnable action) {
    int number = resident.nextAlarm();
    resident.setAlarm(timer.schedule(() -> {
      synchronized (this) {
        if (resident.isCurrent(number)) {
          action.run();
        }
      }
    }, ms, TimeUnit.MILLISECONDS));
  }

  private void tell(Resident resident, int kind) {
    give(resident, kind, new byte[0], 0, -1);
    expectBack(resident);
  }

  /** From now on it has little time to come back. */
  void expectBack(Resident resident) {
    alarm(resident, graceMs, resident::destroy);
  }

  Order give(Resident resident, int kind, byte[] payload, long group, int partition) {
    String run = resident.run == null ? "" : resident.run;
    return resident.begin(
        new Order(++lastSerial, kind, run, resident.generation, payload, group, partition));
  }

  /** An idle one, which is so no more, or null: one that may know something of the run. */
  Resident takeFormer(String run) {
    return take(idle.stream().filter(r -> run.equals(r.formerRun)).findFirst().orElse(null));
  }

  /** An idle one, which is so no more, or null. */
  Resident takeAny() {
    return take(idle.peek());
  }

  private Resident take(Resident found) {
    if (found != null) {
      idle.remove(found);
      found.nextAlarm();
    }
    return found;
  }

  /** How many will be idle in a moment, by the run that they come from. */
  Map<String, Integer> returning() {
    Map<String, Integer> found = new HashMap<>();
    all.stream().filter(r -> r.released).forEach(r -> found.merge(r.run, 1, Integer::sum));
    return found;
  }

  /** Whether any belongs to another run, which may have ended. */
  boolean serveOthers(String run) {
    return all.stream().anyMatch(resident -> resident.run != null && !resident.run.equals(run));
  }

  /** Those of that generation, in the order in which they came. */
  synchronized Set<Resident> of(String run, int generation) {
    Set<Resident> found = new LinkedHashSet<>(all);
    found.removeIf(resident -> !resident.isOf(run, generation));
    return found;
  }

  /** The one that has this order under way, or null. */
  Resident doing(Order order) {
    return all.stream().filter(resident -> resident.underWay == order).findFirst().orElse(null);
  }

  /** The runs that residents belong to. */
  synchronized Set<String> runs() {
    Set<String> runs = new TreeSet<>();
    all.stream().filter(resident -> resident.run != null).forEach(r -> runs.add(r.run));
    return runs;
  }

  /** The run has ended here. */
  synchronized void end(String run) {
    releaseAll(resident -> run.equals(resident.run));
  }

  /** Generations before that one are over. */
  synchronized void supersede(String run, int generation) {
    releaseAll(resident -> resident.isOlder(run, generation));
  }

  /** They forget their run, now or when they have done what they are about. */
  void releaseAll(Predicate<Resident> which) {
    for (Resident resident : new ArrayList<>(all)) {
      if (!resident.released && which.test(resident)) {
        resident.released = true;
        if (resident.underWay == null) {
          tell(resident, Order.RELEASE);
        } else {
          expectBack(resident);
        }
      }
    }
  }
}
