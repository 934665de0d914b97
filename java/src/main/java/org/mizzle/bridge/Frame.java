package org.mizzle.bridge;

import java.io.ByteArrayOutputStream;
import java.io.EOFException;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.ReadableByteChannel;
import java.nio.charset.StandardCharsets;

/**
 * One message on the socket: u32 length, u8 type, u32 tag, body; little endian (protocol/frames.md).
 * Lengths are checked before anything is allocated. A reader may throw BufferUnderflowException on a
 * short body; the session answers REFUSED and closes.
 */
final class Frame {
  static final int MAX_BYTES = 1 << 20;
  private static final int PREFIX_BYTES = 5;

  final int type;
  final int tag;
  final ByteBuffer body;

  Frame(int type, int tag, ByteBuffer body) {
    this.type = type;
    this.tag = tag;
    this.body = body.order(ByteOrder.LITTLE_ENDIAN);
  }

  /** The next frame, or null at a clean end of the stream. */
  static Frame read(ReadableByteChannel channel) throws IOException {
    ByteBuffer length = ByteBuffer.allocate(4).order(ByteOrder.LITTLE_ENDIAN);
    if (!fill(channel, length)) {
      return null;
    }
    int size = length.flip().getInt();
    if (size < PREFIX_BYTES || size > MAX_BYTES) {
      throw new IOException("frame of " + size + " bytes refused: allowed are " + PREFIX_BYTES
          + " to " + MAX_BYTES);
    }
    ByteBuffer frame = ByteBuffer.allocate(size).order(ByteOrder.LITTLE_ENDIAN);
    if (!fill(channel, frame)) {
      throw new EOFException("the stream ended within a frame");
    }
    frame.flip();
    int type = Byte.toUnsignedInt(frame.get());
    int tag = frame.getInt();
    return new Frame(type, tag, frame.slice());
  }

  private static boolean fill(ReadableByteChannel channel, ByteBuffer into) throws IOException {
    boolean started = false;
    while (into.hasRemaining()) {
      if (channel.read(into) < 0) {
        if (started) {
          throw new EOFException("the stream ended within a frame");
        }
        return false;
      }
      started = true;
    }
    return true;
  }

  byte[] bytes(int count) {
    byte[] out = new byte[count];
    body.get(out);
    return out;
  }

  /** A string or blob: u32 length, bytes. */
  byte[] blob() {
    int count = body.getInt();
    if (count < 0 || count > body.remaining()) {
      throw new IllegalArgumentException("a blob of " + count + " bytes in a frame with "
          + body.remaining() + " left");
    }
    return bytes(count);
  }

  String string() {
    return new String(blob(), StandardCharsets.UTF_8);
  }

  /** Builds a body. */
  static final class Builder {
    private final ByteArrayOutputStream out = new ByteArrayOutputStream(128);

    Builder u8(int value) {
      out.write(value);
      return this;
    }

    Builder u16(int value) {
      return put(2, value);
    }

    Builder u32(long value) {
      return put(4, value);
    }

    Builder u64(long value) {
      return put(8, value);
    }

    Builder raw(byte[] bytes) {
      out.write(bytes, 0, bytes.length);
      return this;
    }

    Builder blob(byte[] bytes) {
      return u32(bytes.length).raw(bytes);
    }

    Builder string(String text) {
      return blob(text.getBytes(StandardCharsets.UTF_8));
    }

    byte[] body() {
      return out.toByteArray();
    }

    /** The whole frame, ready to write. */
    ByteBuffer frame(int type, int tag) {
      ByteBuffer frame = ByteBuffer.allocate(4 + PREFIX_BYTES + out.size())
          .order(ByteOrder.LITTLE_ENDIAN);
      frame.putInt(PREFIX_BYTES + out.size()).put((byte) type).putInt(tag).put(out.toByteArray());
      return frame.flip();
    }

    private Builder put(int count, long value) {
      for (int i = 0; i < count; i++) {
        out.write((int) (value >>> (8 * i)) & 0xff);
      }
      return this;
    }
  }
}
