package org.mizzle.bridge;

import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.List;

/**
 * What a rank tells the driver to be admitted, and how it travels inside Spark's plugin RPC: plain
 * bytes, so that no class of ours is ever deserialized.
 */
record Join(Group group, int size, int wanted, List<Integer> preferred, long nonce,
    String executorId, String host, int port, String hostId, String control) {

  /** Its table must fit into a frame; and a joiner hangs three bells for each before it is known. */
  static final int MOST_RANKS = 4096;

  /** Answers of the driver. */
  static final int PENDING = 0;
  static final int TABLE = 1;
  static final int REFUSED = 2;

  /** Whether there can be such a group, and the wanted rank (-1: any) is one of it. */
  boolean isPossible() {
    return size > 0 && size <= MOST_RANKS && wanted >= -1 && wanted < size;
  }

  byte[] encode() {
    Frame.Builder out = new Frame.Builder().string(group.run()).u32(group.generation())
        .u64(group.number()).u16(size).u32(wanted).u16(preferred.size());
    preferred.forEach(out::u16);
    return out.u64(nonce).string(executorId).string(host).u16(port).string(hostId)
        .string(control).body();
  }

  static Join decode(ByteBuffer bytes) {
    Frame in = new Frame(0, 0, bytes);
    Group group = new Group(in.string(), in.body.getInt(), in.body.getLong());
    return new Join(group,
        Short.toUnsignedInt(in.body.getShort()), in.body.getInt(), ranks(in),
        in.body.getLong(), in.string(), in.string(), Short.toUnsignedInt(in.body.getShort()),
        in.string(), in.string());
  }

  /** A list of ranks: u16 count, u16 each. */
  static List<Integer> ranks(Frame in) {
    List<Integer> ranks = new ArrayList<>();
    int count = Short.toUnsignedInt(in.body.getShort());
    for (int i = 0; i < count; i++) {
      ranks.add(Short.toUnsignedInt(in.body.getShort()));
    }
    return ranks;
  }

  /** The peer table for the member at {@code rank}; entry i is rank i. */
  static byte[] table(int rank, List<Join> byRank) {
    Frame.Builder out = new Frame.Builder().u8(TABLE).u16(rank).u16(byRank.size());
    for (Join member : byRank) {
      out.string(member.executorId).string(member.host).u16(member.port).u64(member.nonce)
          .string(member.hostId).string(member.control);
    }
    return out.body();
  }

  static byte[] pending() {
    return new Frame.Builder().u8(PENDING).body();
  }

  static byte[] refused(String why) {
    return new Frame.Builder().u8(REFUSED).string(why).body();
  }
}
