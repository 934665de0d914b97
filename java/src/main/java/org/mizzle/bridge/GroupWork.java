package org.mizzle.bridge;

import java.io.Serializable;
import org.apache.spark.TaskContext;
import org.apache.spark.TaskKilledException;
import scala.Function2;
import scala.Option;
import scala.collection.Iterator;

/** What every task of a group's job does: has the order done by a resident of its executor. */
final class GroupWork implements Function2<TaskContext, Iterator<byte[]>, byte[]>, Serializable {
  private static final long serialVersionUID = 1L;

  private final String run;
  private final int generation;
  private final long group;
  private final byte[] order;

  GroupWork(String run, int generation, long group, byte[] order) {
    this.run = run;
    this.generation = generation;
    this.group = group;
    this.order = order;
  }

  @Override
  public byte[] apply(TaskContext context, Iterator<byte[]> rows) {
    Bridge bridge = ExecutorSide.current();
    if (bridge == null) {
      throw new IllegalStateException("executor has no mizzle bridge that this task can reach: "
          + "was its plugin loaded by another class loader?");
    }
    Group asked = new Group(run, generation, group);
    GroupAttempt.Driver driver =
        () -> bridge.driver().isSuperfluous(run, generation, context.taskAttemptId());
    return new GroupAttempt(bridge.groupOrders(), driver, bridge.blocks().executorId(), asked,
        context.partitionId(), context.attemptNumber()).run(order, new Task(context));
  }

  /** Spark's task, as far as an attempt needs to know it. */
  private record Task(TaskContext context) implements GroupAttempt.Task {
    @Override
    public boolean isKilled() {
      return context.isInterrupted();
    }

    @Override
    public RuntimeException killed(String otherwise) {
      Option<String> reason = context.getKillReason();
      return new TaskKilledException(reason.isDefined() ? reason.get() : otherwise);
    }
  }
}
