package org.mizzle.bridge;

import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;

/**
 * Takes blocks out of the BlockManager once nobody reads them. A reader that is stuck holds up its
 * own blocks only: nothing here waits. Any thread may add.
 */
final class Removals {
  private static final long RETRY_MS = 20;

  private final Blocks blocks;
  /** The one thread that removes. */
  private final ScheduledExecutorService janitor;
  /** Blocks that somebody was reading; touched by the janitor only. */
  private final List<Kept> inUse = new ArrayList<>();

  Removals(Blocks blocks, ScheduledExecutorService janitor) {
    this.blocks = blocks;
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
      inUse.removeIf(this::remove);
      if (!inUse.isEmpty()) {
        retryLater();
      }
    }, RETRY_MS, TimeUnit.MILLISECONDS);
  }

  private boolean remove(Kept block) {
    boolean gone = blocks.remove(block.name(), block.buffer());
    if (gone && block.region() != null) {
      block.region().release();
    }
    return gone;
  }
}
