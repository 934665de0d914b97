package org.mizzle.bridge;

import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;

/**
 * What one member keeps for its peers: the blocks it has put, which are dropped by their place in
 * the run, and bells, letterboxes and reasons, which Spark's block manager holds as long as the
 * member lives. Those are removed exactly once, by {@link Removals}. Any thread may call; guarded by
 * this.
 */
final class Shelf {
  private final Blocks blocks;
  private final Removals removals;
  /** By identity: a name is used once. */
  private final TreeMap<Moment, Map<ByteBuffer, Letter>> byMoment = new TreeMap<>();
  private final List<Kept> lasting = new ArrayList<>();
  private boolean closed;

  Shelf(Blocks blocks, Removals removals) {
    this.blocks = blocks;
    this.removals = removals;
  }

  /** Keeps a block until {@link #drop}, or drops it at once and throws. */
  void put(Letter letter) throws BridgeException {
    BridgeException refused;
    synchronized (this) {
      Map<ByteBuffer, Letter> siblings =
          byMoment.computeIfAbsent(letter.header().moment(), key -> new HashMap<>());
      if (closed) {
        refused = ended();
      } else if (siblings.putIfAbsent(letter.header().identity(), letter) == null) {
        return;
      } else {
        refused = new BridgeException(BridgeException.Code.EXISTS, "the block was put before");
      }
    }
    letter.drop();
    throw refused;
  }

  private static BridgeException ended() {
    return new BridgeException(BridgeException.Code.FENCED, "the membership has ended");
  }

  /** Publishes bytes that stay until the member ends. */
  void leave(String name, byte[] text) throws BridgeException {
    keep(new Kept(name, blocks.put(name, List.of(ByteBuffer.wrap(text)))));
  }

  /** Hangs a bell that stays until the member ends. */
  void hang(String name, Runnable ring) throws BridgeException {
    keep(new Kept(name, blocks.hang(name, ring)));
  }

  /** Hangs a letterbox that stays until the member ends. */
  void hang(String name, Letterbox box) throws BridgeException {
    keep(new Kept(name, blocks.hang(name, box)));
  }

  private void keep(Kept block) throws BridgeException {
    synchronized (this) {
      if (!closed) {
        lasting.add(block);
        return;
      }
    }
    removals.add(block);
    throw ended();
  }

  /** Drops what was put before that moment; what is on its way to a reader still gets there. */
  void drop(Moment before) {
    List<Letter> gone = new ArrayList<>();
    synchronized (this) {
      Map<Moment, Map<ByteBuffer, Letter>> old = byMoment.headMap(before, false);
      old.values().forEach(letters -> gone.addAll(letters.values()));
      old.clear();
    }
    gone.forEach(Letter::drop);
  }

  /** How many blocks are kept whose name begins so. */
  synchronized long count(String prefix, long nonce) {
    return byMoment.values().stream().flatMap(letters -> letters.values().stream())
        .filter(letter -> letter.header().name(nonce).startsWith(prefix)).count();
  }

  /** Removes everything, now and from now on. */
  void close() {
    List<Letter> gone = new ArrayList<>();
    List<Kept> taken;
    synchronized (this) {
      closed = true;
      byMoment.values().forEach(letters -> gone.addAll(letters.values()));
      byMoment.clear();
      taken = new ArrayList<>(lasting);
      lasting.clear();
    }
    gone.forEach(Letter::drop);
    taken.forEach(removals::add);
  }
}
