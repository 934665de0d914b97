package org.mizzle.bridge;

import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;

/**
 * What one member has put into the BlockManager: blocks, which are dropped by their place in the
 * run, and bells and reasons, which stay as long as the member. Each is removed exactly once, by
 * {@link Removals}. Any thread may call; guarded by this.
 */
final class Shelf {
  private final Blocks blocks;
  private final Removals removals;
  private final TreeMap<Moment, List<Kept>> byMoment = new TreeMap<>();
  private final List<Kept> lasting = new ArrayList<>();
  private boolean closed;

  Shelf(Blocks blocks, Removals removals) {
    this.blocks = blocks;
    this.removals = removals;
  }

  /**
   * Publishes a block. The bytes are not copied and must not change until {@link #drop}. Takes over
   * one reference to {@code region}, also when it throws.
   */
  void put(Moment moment, String name, List<ByteBuffer> parts, Region region)
      throws BridgeException {
    keep(new Kept(name, put(name, parts, region), region), moment);
  }

  private ArenaBuffer put(String name, List<ByteBuffer> parts, Region region)
      throws BridgeException {
    boolean stored = false;
    try {
      ArenaBuffer buffer = blocks.put(name, parts);
      stored = true;
      return buffer;
    } finally {
      if (!stored && region != null) {
        region.release();
      }
    }
  }

  /** Publishes bytes that stay until the member ends. */
  void leave(String name, byte[] text) throws BridgeException {
    keep(new Kept(name, blocks.put(name, List.of(ByteBuffer.wrap(text))), null), null);
  }

  /** Hangs a bell that stays until the member ends. */
  void hang(String name, Runnable ring) throws BridgeException {
    keep(new Kept(name, blocks.hang(name, ring), null), null);
  }

  private void keep(Kept block, Moment moment) throws BridgeException {
    synchronized (this) {
      if (!closed) {
        (moment == null ? lasting : byMoment.computeIfAbsent(moment, key -> new ArrayList<>()))
            .add(block);
        return;
      }
    }
    removals.add(block);
    throw new BridgeException(BridgeException.Code.FENCED, "the membership has ended");
  }

  /** Removes what was put before that moment; returns at once, readers may still finish. */
  void drop(Moment before) {
    List<Kept> gone = new ArrayList<>();
    synchronized (this) {
      Map<Moment, List<Kept>> old = byMoment.headMap(before, false);
      old.values().forEach(gone::addAll);
      old.clear();
    }
    gone.forEach(removals::add);
  }

  /** Removes everything, now and from now on. */
  void close() {
    List<Kept> gone = new ArrayList<>();
    synchronized (this) {
      closed = true;
      byMoment.values().forEach(gone::addAll);
      byMoment.clear();
      gone.addAll(lasting);
      lasting.clear();
    }
    gone.forEach(removals::add);
  }
}
