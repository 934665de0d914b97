package org.mizzle.bridge;

import io.netty.buffer.ByteBuf;
import io.netty.buffer.ByteBufAllocator;
import io.netty.buffer.Unpooled;
import io.netty.channel.Channel;
import io.netty.channel.DefaultMaxMessagesRecvByteBufAllocator;
import io.netty.channel.epoll.EpollChannelOption;
import io.netty.channel.epoll.EpollSocketChannel;
import io.netty.util.AttributeKey;
import java.nio.ByteBuffer;
import org.apache.spark.network.protocol.MessageEncoder;

/**
 * Says where the bytes of a connection are read to: those of a payload straight to their place in an
 * arena, all others into small buffers. Netty asks before each read, and passes on at once what it
 * has read; so while a payload is under way the next bytes are known to be its own. Where Spark
 * encrypts they are not, and everything goes through buffers. Used by the connection's event loop.
 */
final class Intake extends DefaultMaxMessagesRecvByteBufAllocator {
  private static final AttributeKey<Intake> KEY = AttributeKey.valueOf("mizzle-intake");
  private static final int READS_AT_ONCE = 16;
  /** Enough for what goes in front of a payload, and little of the payload itself. */
  private static final int FRONT_BYTES = 8 * 1024;
  /** So little that it is still in the cache when its checksum is taken. */
  private static final int PIECE_BYTES = 256 * 1024;

  /** A payload under way. */
  interface Place {
    /** Where its next bytes go, at most {@code bytes}; null: nowhere. Until {@link #lent}. */
    ByteBuffer lend(int bytes);

    /** So many were written there; they are passed on next. */
    void lent(int bytes);
  }

  private final Channel channel;
  private Place place;

  Intake(Channel channel) {
    super(READS_AT_ONCE);
    this.channel = channel;
  }

  /** Before anything is read. */
  static void install(Channel channel) {
    Intake intake = new Intake(channel);
    channel.attr(KEY).set(intake);
    channel.config().setRecvByteBufAllocator(intake);
  }

  static Intake of(Channel channel) {
    return channel.attr(KEY).get();
  }

  /** Nothing more is read. Does not wait. */
  void close() {
    channel.close();
  }

  /** The bytes that come now are of that payload; null: of none. */
  void expect(Place next) {
    place = next;
  }

  @Override
  public MaxMessageHandle newHandle() {
    return new Reads();
  }

  /** Whether bytes reach the sink as they come from the socket. */
  private boolean isPlain() {
    return channel.pipeline().first() instanceof MessageEncoder;
  }

  private final class Reads extends MaxMessageHandle {
    private Place lender;

    @Override
    public int guess() {
      return isPlain() ? FRONT_BYTES : PIECE_BYTES;
    }

    @Override
    public ByteBuf allocate(ByteBufAllocator allocator) {
      ByteBuffer lent = place == null || !isPlain() ? null : place.lend(PIECE_BYTES);
      if (lent == null) {
        return super.allocate(allocator);
      }
      lender = place;
      return Unpooled.wrappedBuffer(lent).clear();
    }

    @Override
    public void lastBytesRead(int bytes) {
      giveBack(Math.max(0, bytes));
      super.lastBytesRead(bytes);
    }

    @Override
    public void readComplete() {
      giveBack(0);
      super.readComplete();
      acknowledge();
    }

    private void giveBack(int bytes) {
      if (lender != null) {
        lender.lent(bytes);
        lender = null;
      }
    }

    /**
     * Spark's server does not set TCP_NODELAY, so it holds back the rest of a small answer until its
     * beginning is acknowledged, which our side would delay by 40 ms.
     */
    private void acknowledge() {
      if (channel instanceof EpollSocketChannel && channel.isOpen()) {
        channel.config().setOption(EpollChannelOption.TCP_QUICKACK, true);
      }
    }
  }
}
