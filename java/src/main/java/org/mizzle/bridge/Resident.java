package org.mizzle.bridge;

import java.time.Instant;
import java.util.Optional;
import java.util.concurrent.Future;

/**
 * A Python process that stays beside its executor and keeps a rank's model, memory and connections
 * between groups. It is idle, or belongs to a generation of a run; it waits for an order, or has one
 * under way. Its fields are guarded by the {@link Residents} that it is one of.
 */
final class Resident {
  /** Its connection. Neither call blocks. */
  interface Seat {
    void give(Order order);

    void close();
  }

  final Seat seat;
  private final long pid;
  /** When that process began: the number alone may be another's by the time it is killed. */
  private final Optional<Instant> begun;
  /** The run it belongs to; null: it is idle, or on its way out. */
  String run;
  int generation;
  int rank = -1;
  /** The run it belonged to last, of which it may still know something. */
  String formerRun;
  /** What it is doing; null: it waits for an order. */
  Order underWay;
  /** The newest group of its generation that it was given. */
  Order lastGroup;
  /** Whether it is on its way back to those that are idle. */
  boolean released;
  /** Ends its idleness, or its delay; a number of its own, because it may be on its way already. */
  private Future<?> alarm;
  private int alarms;
  private final Epitaph epitaph;

  /** The process that has this number now. */
  Resident(long pid, Seat seat) {
    this(pid, ProcessHandle.of(pid).flatMap(process -> process.info().startInstant()), seat);
  }

  Resident(long pid, Optional<Instant> begun, Seat seat) {
    this.pid = pid;
    this.begun = begun;
    this.seat = seat;
    epitaph = new Epitaph(pid, MemoryGroup::of);
  }

  long pid() {
    return pid;
  }

  /** It is told to do that. */
  Order begin(Order order) {
    epitaph.look();
    underWay = order;
    seat.give(order);
    return order;
  }

  /** Why it has died. */
  String epitaph() {
    return epitaph.write();
  }

  boolean isOf(String aRun, int aGeneration) {
    return aRun.equals(run) && aGeneration == generation && rank >= 0 && !released;
  }

  /** Whether it can be given that group: none is done twice, and none after a later one. */
  boolean isFreeFor(long group) {
    return underWay == null
        && (lastGroup == null || Long.compareUnsigned(group, lastGroup.group) > 0);
  }

  boolean isOlder(String aRun, int than) {
    return aRun.equals(run) && Integer.compareUnsigned(generation, than) < 0;
  }

  void belongTo(String aRun, int aGeneration) {
    formerRun = run == null ? formerRun : run;
    run = aRun;
    generation = aGeneration;
    rank = -1;
    lastGroup = null;
    released = false;
  }

  /** The number by which an alarm that is set now will know that it still counts. */
  int nextAlarm() {
    if (alarm != null) {
      alarm.cancel(false);
      alarm = null;
    }
    return ++alarms;
  }

  void setAlarm(Future<?> set) {
    alarm = set;
  }

  boolean isCurrent(int number) {
    return number == alarms;
  }

  /** Kills the process, if it still is the one that came, and ends the connection in any case. */
  void destroy() {
    ProcessHandle.of(pid)
        .filter(process -> begun.isPresent() && begun.equals(process.info().startInstant()))
        .ifPresent(ProcessHandle::destroyForcibly);
    seat.close();
  }
}
