package org.mizzle.bridge;

import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.List;

/**
 * A block that a rank has put, for one reader or for several: header and meta, and a payload that
 * stays where it lies, in the arena. Any thread may call; guarded by this.
 */
final class Letter {
  /** Payloads up to this are copied, so that a small block leaves the host in one piece. */
  private static final int EAGER_BYTES = 16 * 1024;

  private final Header header;
  private final byte[] meta;
  private final List<ByteBuffer> payload;
  /** What the payload lies in, with one reference, given back by {@link #drop}; null: no payload. */
  private final Region region;
  private boolean dropped;

  Letter(Header header, byte[] meta, List<ByteBuffer> payload, Region region) {
    this.header = header;
    this.meta = meta;
    this.payload = payload;
    this.region = region;
  }

  Header header() {
    return header;
  }

  /** Its bytes for one reader, who is told that {@code behind} more wait for him. */
  synchronized Handout handOut(int behind) {
    if (dropped) {
      return Handout.ofNothing(behind);
    }
    boolean eager = header.payloadBytes() <= EAGER_BYTES;
    int eagerBytes = eager ? (int) header.payloadBytes() : 0;
    ByteBuffer first = Handout.front(behind, true, Header.BYTES + meta.length + eagerBytes)
        .put(header.bytes()).put(meta);
    List<ByteBuffer> parts = new ArrayList<>();
    parts.add(first);
    for (ByteBuffer part : payload) {
      if (eager) {
        first.put(part.duplicate());
      } else {
        parts.add(part);
      }
    }
    first.flip();
    return new Handout(parts, eager ? null : region);
  }

  /** Nobody needs it any more; what is on its way still gets there. */
  synchronized void drop() {
    if (!dropped) {
      dropped = true;
      if (region != null) {
        region.release();
      }
    }
  }
}
