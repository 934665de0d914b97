package org.mizzle.bridge;

import java.nio.ByteBuffer;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;

/**
 * What an admitted rank does, again and again: puts blocks into its readers' letterboxes, fetches
 * blocks from its own, drops what was read. Called by the session's thread; the bytes stay the worker's, in its arena.
 */
final class Trade {
  private final Bridge bridge;
  private final Arena arena;
  private final Member member;
  /** Fetches that are not answered yet, by tag; network threads take them out. */
  private final Map<Integer, Fetch> fetches = new ConcurrentHashMap<>();

  Trade(Bridge bridge, Arena arena, Member member) {
    this.bridge = bridge;
    this.arena = arena;
    this.member = member;
  }

  Member member() {
    return member;
  }

  /** Once for every block. The payload must not change until the block is dropped. */
  void put(Frame frame) throws BridgeException {
    Header header = header(frame);
    byte[] meta = frame.blob();
    Range range = Range.read(frame);
    List<Integer> readers = Join.ranks(frame);
    if (header.source() != member.rank() || header.metaBytes() != meta.length
        || meta.length > Header.MAX_META_BYTES || header.payloadBytes() != range.length()) {
      throw new BridgeException(BridgeException.Code.REFUSED,
          "the header is not that of a block of rank " + member.rank() + " with these lengths");
    }
    Letter letter = publish(header, meta, hold(range));
    for (int reader : readers) {
      PeerLink link = member.link(reader);
      if (member.letterbox(reader).add(letter)) {
        bridge.counters().increment(Counters.Name.BELLS_RUNG);
        link.ring();
      }
    }
  }

  private Letter publish(Header header, byte[] meta, Span span) throws BridgeException {
    header.seal(meta, span.parts());
    Letter letter = new Letter(header, meta, span.parts(), span.region());
    member.shelf.put(letter);
    bridge.counters().increment(Counters.Name.BLOCKS_PUT);
    bridge.counters().add(Counters.Name.BYTES_PUT, header.payloadBytes());
    return letter;
  }

  /** Once for every block; {@code asker} is told when it is in the arena, or cannot be. */
  void fetch(Frame frame, Fetch.Asker asker) throws BridgeException {
    long deadlineMs = Integer.toUnsignedLong(frame.body.getInt());
    Header wanted = header(frame);
    PeerLink link = member.link(wanted.source());
    Span span = hold(Range.read(frame));
    int tag = frame.tag;
    Fetch fetch = new Fetch(bridge.timer(), bridge.counters(), member, link, wanted, span.region(),
        span.parts(), new Fetch.Asker() {
          @Override
          public void answer(Header header, byte[] meta) {
            fetches.remove(tag);
            asker.answer(header, meta);
          }

          @Override
          public void answer(BridgeException error) {
            fetches.remove(tag);
            asker.answer(error);
          }
        });
    fetches.put(tag, fetch);
    fetch.start(deadlineMs);
  }

  /** The worker waits no longer: the fetch is answered now, if it was not. */
  void cancel(Frame frame) {
    Fetch fetch = fetches.get(frame.body.getInt());
    if (fetch != null) {
      fetch.cancel();
    }
  }

  /** Legal when all readers have the blocks that were put before. */
  void drop(Frame frame) {
    long iteration = frame.body.getLong();
    member.shelf.drop(new Moment(iteration, Short.toUnsignedInt(frame.body.getShort())));
  }

  /** A header of this member's run and generation, which must not be fenced. */
  private Header header(Frame frame) throws BridgeException {
    Header header = Header.of(frame.bytes(Header.BYTES));
    bridge.runs().check(member.group.run(), header.generation());
    if (!header.run().equals(member.group.run())
        || header.generation() != member.group.generation()) {
      throw new BridgeException(BridgeException.Code.REFUSED,
          "a block of another run or generation than the rank's own");
    }
    member.turns.check();
    return header;
  }

  /** Part of a region, as a frame names it; number -1: none. */
  private record Range(int number, long offset, long length) {
    static Range read(Frame frame) {
      return frame.body.get() == 0 ? new Range(-1, 0, 0)
          : new Range(frame.body.getInt(), frame.body.getLong(), frame.body.getLong());
    }
  }

  /** The same part, held: whoever gets it releases the region. */
  private record Span(Region region, List<ByteBuffer> parts) {}

  private Span hold(Range range) throws BridgeException {
    if (range.number() < 0) {
      return new Span(null, List.of());
    }
    Region region = arena.acquire(range.number());
    try {
      return new Span(region, region.range(range.offset(), range.length()));
    } catch (BridgeException e) {
      region.release();
      throw e;
    }
  }
}
