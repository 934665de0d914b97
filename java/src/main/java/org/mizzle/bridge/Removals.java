package org.mizzle.bridge;

import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import java.util.function.BiPredicate;
import org.apache.spark.util.io.ChunkedByteBuffer;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Takes blocks out of the BlockManager once nobody reads them. A reader that is stuck holds up its
 * own blocks only: nothing here waits. Any thread may add.
 */
final class Removals {
  private static final long RETRY_MS = 20;
  private static final Logger LOG = LoggerFactory.getLogger(Removals.class);

  /** Removes a block by name, unless somebody reads it: {@link Blocks#remove}. */
  private final BiPredicate<String, ChunkedByteBuffer> unlessRead;
  /** The one thread that removes. */
  private final ScheduledExecutorService janitor;
  /** Blocks that somebody was reading; touched by the janitor only. */
  private final List<Kept> inUse = new ArrayList<>();

  Removals(
      BiPredicate<String, ChunkedByteBuffer> unlessRead, ScheduledExecutorService janitor) {
    this.unlessRead = unlessRead;
    this.janitor = janitor;
  }

  void add(Kept block) {
    janitor.execute(() -> {
      if (!remove(block)) {
        inUse.add(block);
        if (inUse.size() == 1) {
          retryLater();
        }
      }
    });
  }

  private void retryLater() {
    janitor.schedule(() -> {
      try {
        inUse.removeIf(this::remove);
      } finally {
        if (!inUse.isEmpty()) {
          retryLater();
        }
      }
    }, RETRY_MS, TimeUnit.MILLISECONDS);
  }

  /** Whether the block is done with; what fails is not tried again. */
  private boolean remove(Kept block) {
    try {
      return unlessRead.test(block.name(), block.buffer());
    } catch (RuntimeException | AssertionError e) {
      // Spark's checks of its own state throw either; other blocks must not suffer.
      LOG.warn("mizzle could not remove block {}", block.name(), e);
      return true;
    }
  }
}
