package org.mizzle.bridge;

import java.nio.charset.StandardCharsets;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeoutException;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * One attempt of one task of a group. It finds a resident to do the order and waits for it; it ends
 * soon when it is killed. A superfluous attempt (a speculative copy) finds nobody free and must not
 * win, so it waits to be killed; but no longer than another attempt of its task works, here or
 * elsewhere: after that nobody would kill it, and the rank may be gone.
 */
final class GroupAttempt {
  /** First byte of a result. */
  static final int OUTCOME = 0;
  static final int AWAY = 1;
  static final int DIED = 2;
  static final int FAILED = 3;
  private static final long LOOK_MS = 200;
  private static final long LOOK_NS = LOOK_MS * 1_000_000;
  private static final long ASK_MS = 1_000;
  /** A resident that does not come back is killed after five seconds; then its session must end. */
  private static final long LEAVE_MS = 10_000;
  private static final Logger LOG = LoggerFactory.getLogger(GroupAttempt.class);

  /** The driver, as far as an attempt that found nobody asks it. */
  interface Driver {
    /** Whether the generation and its executors live, and another attempt of the task works. */
    boolean isSuperfluous() throws BridgeException;
  }

  /** The task that makes the attempt. */
  interface Task {
    boolean isKilled();

    /** What a killed task throws; {@code otherwise}: why, if Spark does not say. */
    RuntimeException killed(String otherwise);
  }

  private final GroupOrders orders;
  private final Driver driver;
  private final String executorId;
  private final Group group;
  private final int partition;
  private final int number;

  GroupAttempt(GroupOrders orders, Driver driver, String executorId, Group group, int partition,
      int number) {
    this.orders = orders;
    this.driver = driver;
    this.executorId = executorId;
    this.group = group;
    this.partition = partition;
    this.number = number;
  }

  /** The result: u8 status, i32 rank or -1, and what there is to say. */
  byte[] run(byte[] payload, Task task) {
    Order order = orders.take(group, partition, payload);
    if (order != null) {
      return await(order, task);
    }
    if (number > 0 && !waitInVain(task)) {
      throw task.killed("it was superfluous");
    }
    return result(AWAY, -1, ("no resident process of run " + group.run() + " is free in executor "
        + executorId).getBytes(StandardCharsets.UTF_8));
  }

  private static byte[] result(int status, int rank, byte[] body) {
    return new Frame.Builder().u8(status).u32(rank).raw(body).body();
  }

  private static int status(Order.End end) {
    return switch (end) {
      case DONE -> OUTCOME;
      case FAILED -> FAILED;
      case DIED -> DIED;
    };
  }

  private byte[] await(Order order, Task task) {
    try {
      while (!task.isKilled()) {
        try {
          Order.Outcome outcome = Deadline.afterMs(LOOK_MS).get(order.done);
          return result(status(outcome.end()), outcome.rank(), outcome.body());
        } catch (TimeoutException e) {
          LOG.trace("group {} still runs", group);
        }
      }
    } catch (InterruptedException e) {
      LOG.debug("the task of group {} is interrupted", group);
    } catch (ExecutionException e) {
      throw new IllegalStateException("orders do not fail", e);
    }
    RuntimeException killed = task.killed("the executor is ending");
    if (orders.abandon(order, "its task was killed: " + killed.getMessage())) {
      letGo(order);
    }
    throw killed;
  }

  /** The slot is not free before its process has left the group, or is dead. */
  private static void letGo(Order order) {
    Deadline deadline = Deadline.afterMs(LEAVE_MS);
    boolean interrupted = Thread.interrupted();
    while (!order.done.isDone() && !deadline.hasPassed()) {
      try {
        deadline.get(order.done);
      } catch (InterruptedException e) {
        interrupted = true;
      } catch (ExecutionException | TimeoutException e) {
        LOG.trace("a killed group's process is still there", e);
      }
    }
    if (interrupted) {
      Thread.currentThread().interrupt();
    }
  }

  /** Returns true when nobody else will do it, false when the task was killed. */
  private boolean waitInVain(Task task) {
    while (!orders.isBroken(group.run(), group.generation()) && isSuperfluous()) {
      Deadline askAgain = Deadline.afterMs(ASK_MS);
      while (!askAgain.hasPassed()) {
        askAgain.pause(LOOK_NS);
        if (task.isKilled() || Thread.interrupted()) {
          return false;
        }
      }
    }
    return true;
  }

  private boolean isSuperfluous() {
    try {
      return driver.isSuperfluous();
    } catch (BridgeException e) {
      // A driver that is too busy to answer has not lost an attempt for all we know.
      LOG.warn("mizzle's bridge could not ask whether group {} has another attempt", group, e);
      return true;
    }
  }
}
