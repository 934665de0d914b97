package org.mizzle.bridge;

import java.nio.ByteBuffer;
import java.util.List;
import java.util.zip.CRC32C;

/**
 * Where the payload of one block lands, in an arena, and the checksum of what has come. Not
 * synchronized: that is {@link Sink}'s business.
 */
final class Landing {
  /** Bytes it has room for. */
  final long capacity;
  private final List<ByteBuffer> windows;
  private final CRC32C crc = new CRC32C();
  private int windowAt;

  /** Over buffers that are filled from their positions on. */
  Landing(List<ByteBuffer> windows) {
    this.windows = windows;
    capacity = windows.stream().mapToLong(ByteBuffer::remaining).sum();
  }

  CRC32C crc() {
    return crc;
  }

  /** The next place with room, or null. */
  private ByteBuffer window() {
    while (windowAt < windows.size() && !windows.get(windowAt).hasRemaining()) {
      windowAt++;
    }
    return windowAt < windows.size() ? windows.get(windowAt) : null;
  }

  /** A place for the next bytes, at most so many; null: there is none. */
  ByteBuffer lend(long bytes) {
    ByteBuffer into = window();
    return into == null
        ? null : into.slice(into.position(), (int) Math.min(bytes, into.remaining()));
  }

  /** Takes a part of the payload, unless it was written to its place already; 0: there is no room. */
  int take(ByteBuffer data, boolean inPlace) {
    ByteBuffer into = window();
    if (into == null) {
      return 0;
    }
    int count = Math.min(data.remaining(), into.remaining());
    ByteBuffer part = data.slice(data.position(), count);
    crc.update(part.duplicate());
    if (inPlace) {
      into.position(into.position() + count);
    } else {
      into.put(part);
    }
    data.position(data.position() + count);
    return count;
  }

  /** Only looks at the bytes. */
  int skip(ByteBuffer data) {
    int count = data.remaining();
    crc.update(data);
    return count;
  }
}
