package org.mizzle.bridge;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.Arrays;
import java.util.HexFormat;
import java.util.List;
import java.util.zip.CRC32C;

/**
 * The 64 bytes in front of every block (protocol/frames.md). Java knows only where the checksums and
 * lengths lie; what the identity means is Python's business.
 */
final class Header {
  static final int BYTES = 64;
  static final int MAX_META_BYTES = 64 * 1024;
  private static final int IDENTITY_BYTES = 40;
  private static final int KIND_AT = 3;
  private static final int RUN_AT = 4;
  private static final int GENERATION_AT = 20;
  private static final int ITERATION_AT = 24;
  private static final int OP_AT = 32;
  private static final int SLICE_AT = 34;
  private static final int SOURCE_AT = 36;
  private static final int DTYPE_AT = 38;
  private static final int PART_AT = 39;
  private static final int META_AT = 40;
  private static final int PAYLOAD_AT = 44;
  private static final int BODY_CRC_AT = 52;
  private static final int HEADER_CRC_AT = 56;

  private final ByteBuffer raw;

  private Header(byte[] bytes) {
    raw = ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN);
  }

  /** Reads 64 bytes without checking them. */
  static Header of(byte[] bytes) {
    if (bytes.length != BYTES) {
      throw new IllegalArgumentException("a header has 64 bytes, not " + bytes.length);
    }
    return new Header(bytes);
  }

  byte[] bytes() {
    return raw.array();
  }

  int metaBytes() {
    return raw.getInt(META_AT);
  }

  long payloadBytes() {
    return raw.getLong(PAYLOAD_AT);
  }

  /** The run's id, 32 hex digits. */
  String run() {
    return HexFormat.of().formatHex(raw.array(), RUN_AT, GENERATION_AT);
  }

  /** Unsigned. */
  int generation() {
    return raw.getInt(GENERATION_AT);
  }

  int source() {
    return Short.toUnsignedInt(raw.getShort(SOURCE_AT));
  }

  /** Tells blocks of one member apart; not to be changed. */
  ByteBuffer identity() {
    byte[] identity = Arrays.copyOf(raw.array(), IDENTITY_BYTES);
    identity[DTYPE_AT] = 0;
    return ByteBuffer.wrap(identity);
  }

  /** Position in the run: blocks are dropped in this order. */
  Moment moment() {
    return new Moment(raw.getLong(ITERATION_AT), Short.toUnsignedInt(raw.getShort(OP_AT)));
  }

  /** The block's name, as mizzle.blocks.ids.BlockId.name spells it. */
  String name(long nonce) {
    return "test_mizzle." + run() + '.' + Integer.toUnsignedString(generation()) + '.'
        + Long.toUnsignedString(raw.getLong(ITERATION_AT)) + '.'
        + Short.toUnsignedInt(raw.getShort(OP_AT)) + '.' + Byte.toUnsignedInt(raw.get(KIND_AT)) + '.'
        + Byte.toUnsignedInt(raw.get(PART_AT)) + '.'
        + Short.toUnsignedInt(raw.getShort(SLICE_AT)) + '.' + source() + '.'
        + String.format("%016x", nonce);
  }

  /** Writes both checksums: that of the body, then that of the header itself. */
  void seal(byte[] meta, List<ByteBuffer> payload) {
    CRC32C crc = new CRC32C();
    crc.update(meta);
    for (ByteBuffer part : payload) {
      crc.update(part.duplicate());
    }
    raw.putInt(BODY_CRC_AT, (int) crc.getValue());
    raw.putInt(HEADER_CRC_AT, ownCrc());
  }

  /** Whether no bit was changed since it was sealed; behind the checksum are zeros. */
  boolean isIntact() {
    return raw.getInt(HEADER_CRC_AT) == ownCrc() && raw.getInt(HEADER_CRC_AT + Integer.BYTES) == 0;
  }

  boolean bodyMatches(CRC32C crc) {
    return raw.getInt(BODY_CRC_AT) == (int) crc.getValue();
  }

  /** Whether every field a reader can foretell is the wanted one; dtype is learnt, not asked for. */
  boolean hasIdentity(byte[] wanted) {
    for (int i = 0; i < IDENTITY_BYTES; i++) {
      if (i != DTYPE_AT && wanted[i] != raw.get(i)) {
        return false;
      }
    }
    return true;
  }

  private int ownCrc() {
    CRC32C crc = new CRC32C();
    crc.update(raw.array(), 0, HEADER_CRC_AT);
    return (int) crc.getValue();
  }
}
