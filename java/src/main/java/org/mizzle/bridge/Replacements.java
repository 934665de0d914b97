package org.mizzle.bridge;

import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.function.Consumer;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/** Has Spark end executors that hang, and start others in their place; each once. Any thread may call. */
final class Replacements {
  private static final Logger LOG = LoggerFactory.getLogger(Replacements.class);

  /** Tells Spark; may block. */
  private final Consumer<String> spark;
  private final Set<String> asked = ConcurrentHashMap.newKeySet();

  Replacements(Consumer<String> spark) {
    this.spark = spark;
  }

  /** Returns at once. */
  void ask(String executorId) {
    if (asked.add(executorId)) {
      Thread thread = new Thread(() -> tell(executorId), "mizzle-replace-" + executorId);
      thread.setDaemon(true);
      thread.start();
    }
  }

  /** Whether it is being replaced, and so counts as gone. */
  boolean isAsked(String executorId) {
    return asked.contains(executorId);
  }

  private void tell(String executorId) {
    try {
      spark.accept(executorId);
    } catch (RuntimeException e) {
      LOG.warn("mizzle could not have Spark replace executor {}", executorId, e);
      // Whoever sees again that it hangs asks again.
      asked.remove(executorId);
    }
  }
}
