package org.mizzle.bridge;

import java.util.concurrent.CancellationException;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Future;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.ScheduledThreadPoolExecutor;
import java.util.concurrent.ThreadFactory;
import java.util.concurrent.ThreadPoolExecutor;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/** The kinds of threads the bridge runs: all daemons, so that no executor is kept from ending. */
final class Threads {
  private static final Logger LOG = LoggerFactory.getLogger(Threads.class);

  private Threads() {}

  /** One thread; forgets what was cancelled, and drops what comes after its end. */
  static ScheduledExecutorService scheduler(String name) {
    ScheduledThreadPoolExecutor executor = new ScheduledThreadPoolExecutor(
        1, daemon(name), new ThreadPoolExecutor.DiscardPolicy()) {
      @Override
      protected void afterExecute(Runnable task, Throwable thrown) {
        report(name, task);
      }
    };
    executor.setRemoveOnCancelPolicy(true);
    return executor;
  }

  /** What a task throws lies in a future that nobody looks into: it would never be heard of. */
  private static void report(String name, Runnable task) {
    if (task instanceof Future<?> future && future.isDone()) {
      try {
        Deadline.afterMs(0).get(future);
      } catch (CancellationException e) {
        LOG.trace("a task of {} was cancelled", name);
      } catch (ExecutionException e) {
        LOG.error("a task of mizzle's thread {} failed", name, e.getCause());
      } catch (Exception e) {
        LOG.trace("a task of {} did not end", name, e);
      }
    }
  }

  /**
   * Again and again, whatever it throws, an error too, as when no thread can be made: with the
   * scheduler alone the first one ends it.
   */
  static Future<?> repeat(ScheduledExecutorService thread, long periodMs, Runnable task) {
    return thread.scheduleWithFixedDelay(() -> {
      try {
        task.run();
      } catch (Throwable e) {
        LOG.error("mizzle will try again what failed", e);
      }
    }, periodMs, periodMs, TimeUnit.MILLISECONDS);
  }

  static ThreadFactory daemon(String name) {
    AtomicInteger count = new AtomicInteger();
    return task -> {
      Thread thread = new Thread(task, name + "-" + count.getAndIncrement());
      thread.setDaemon(true);
      return thread;
    };
  }
}
