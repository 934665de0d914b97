package org.mizzle.bridge;

import java.util.Map;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.function.Predicate;
import org.apache.spark.ExecutorAllocationClient;
import org.apache.spark.SparkContext;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/** Has Spark end executors that hang, and start others in their place; each once. Any thread may call. */
final class Replacements {
  /** How soon what Spark did not take may be asked again. */
  static final long PAUSE_MS = 10_000;
  private static final Logger LOG = LoggerFactory.getLogger(Replacements.class);

  /** Tells Spark, and says whether it does so; may block. */
  private final Predicate<String> spark;
  private final long pauseMs;
  private final Set<String> asked = ConcurrentHashMap.newKeySet();
  /** Until when those that Spark did not take are left alone. */
  private final Map<String, Deadline> refused = new ConcurrentHashMap<>();

  /** {@code pauseMs}: as {@link #PAUSE_MS}. */
  Replacements(Predicate<String> spark, long pauseMs) {
    this.spark = spark;
    this.pauseMs = pauseMs;
  }

  /** Asks Spark; also true when it is ending that executor already, and so offers it no tasks. */
  static boolean begin(SparkContext context, String executorId) {
    return context.killAndReplaceExecutor(executorId)
        || (context.schedulerBackend() instanceof ExecutorAllocationClient client
        && !client.isExecutorActive(executorId));
  }

  /** Returns at once. */
  void ask(String executorId) {
    Deadline pause = refused.get(executorId);
    if ((pause == null || pause.hasPassed()) && asked.add(executorId)) {
      try {
        Thread thread = new Thread(() -> tell(executorId), "mizzle-replace-" + executorId);
        thread.setDaemon(true);
        thread.start();
      } catch (OutOfMemoryError e) {
        refuse(executorId, e);
      }
    }
  }

  /** Those that are being replaced: Spark has been asked, and has not refused. */
  Set<String> asked() {
    return Set.copyOf(asked);
  }

  /** Whether it is being replaced, and so counts as gone. */
  boolean isAsked(String executorId) {
    return asked.contains(executorId);
  }

  private void tell(String executorId) {
    try {
      if (!spark.test(executorId)) {
        refuse(executorId, null);
      }
    } catch (Throwable e) {
      refuse(executorId, e);
    }
  }

  /** It is no longer hidden; whoever sees later that it still hangs asks again. */
  private void refuse(String executorId, Throwable why) {
    LOG.warn("mizzle could not have Spark replace executor {}: it will ask again if it hangs",
        executorId, why);
    refused.put(executorId, Deadline.afterMs(pauseMs));
    asked.remove(executorId);
  }
}
