package org.mizzle.bridge;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.zip.CRC32C;

/**
 * One message on the socket: u32 length, u8 type, u32 tag, u32 CRC32C of all the rest, body; little
 * endian (protocol/frames.md). Lengths are checked before anything is allocated. A body that is too
 * short throws BufferUnderflowException; the session answers REFUSED and closes.
 */
final class Frame {
  static final int MAX_BYTES = 1 << 20;
  private static final int LENGTH_BYTES = 4;
  private static final int TYPE_BYTES = 5;
  private static final int PREFIX_BYTES = TYPE_BYTES + Integer.BYTES;
  /** Length of the longest frame with its length word. */
  static final int LONGEST = LENGTH_BYTES + MAX_BYTES;

  final int type;
  final int tag;
  final ByteBuffer body;

  Frame(int type, int tag, ByteBuffer body) {
    this.type = type;
    this.tag = tag;
    this.body = body.order(ByteOrder.LITTLE_ENDIAN);
  }

  /**
   * The frame that {@code in}, filled from its beginning, starts with; null: it is not whole. Throws
   * if it is not as it was sent: then nobody knows either where the next one begins.
   */
  static Frame take(ByteBuffer in) throws IOException {
    if (in.position() < LENGTH_BYTES) {
      return null;
    }
    int size = in.getInt(0);
    if (size < PREFIX_BYTES || size > MAX_BYTES) {
      throw new IOException("frame of " + Integer.toUnsignedString(size)
          + " bytes refused: allowed are " + PREFIX_BYTES + " to " + MAX_BYTES);
    }
    if (in.position() < LENGTH_BYTES + size) {
      return null;
    }
    ByteBuffer frame = ByteBuffer.allocate(size).order(ByteOrder.LITTLE_ENDIAN);
    in.flip();
    frame.put(0, in, LENGTH_BYTES, size);
    in.position(LENGTH_BYTES + size);
    in.compact();
    int type = Byte.toUnsignedInt(frame.get());
    int tag = frame.getInt();
    int crc = frame.getInt();
    ByteBuffer body = frame.slice();
    if (crc != crc(size, type, tag, body.duplicate())) {
      throw new IOException("a frame of " + size + " bytes fails its CRC32C");
    }
    return new Frame(type, tag, body);
  }

  private static int crc(int size, int type, int tag, ByteBuffer body) {
    CRC32C crc = new CRC32C();
    crc.update(ByteBuffer.allocate(LENGTH_BYTES + TYPE_BYTES).order(ByteOrder.LITTLE_ENDIAN)
        .putInt(size).put((byte) type).putInt(tag).flip());
    crc.update(body);
    return (int) crc.getValue();
  }

  /** One number as it lies in frames and in control regions. */
  static byte[] bytesOf(int value) {
    return new Builder().u32(value).body();
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
      byte[] body = out.toByteArray();
      int size = PREFIX_BYTES + body.length;
      return ByteBuffer.allocate(LENGTH_BYTES + size).order(ByteOrder.LITTLE_ENDIAN)
          .putInt(size).put((byte) type).putInt(tag)
          .putInt(crc(size, type, tag, ByteBuffer.wrap(body))).put(body).flip();
    }

    private Builder put(int count, long value) {
      for (int i = 0; i < count; i++) {
        out.write((int) (value >>> (8 * i)) & 0xff);
      }
      return this;
    }
  }
}
