package org.mizzle.bridge;

import io.netty.handler.stream.ChunkedStream;
import java.io.FilterInputStream;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.List;
import org.apache.spark.util.io.ChunkedByteBuffer;
import org.apache.spark.util.io.ChunkedByteBufferFileRegion;

/**
 * A block on its way to one reader. Eight bytes go in front (protocol/frames.md): how many more
 * blocks wait for that reader, and whether the block is still there. Holds the memory that it lies
 * in until the network has sent it, or has lost the connection.
 */
final class Handout extends ChunkedByteBuffer {
  static final int FRONT_BYTES = 8;
  private static final int PRESENT = 1;
  private static final long serialVersionUID = 1L;
  /** The most that is given to a socket at once. */
  private static final int PIECE_BYTES = 4 << 20;
  /** Null: nothing is held, or not any more; guarded by this. */
  private transient Region held;

  /** Takes a reference of its own to {@code region}, which the caller holds open (null: none). */
  Handout(List<ByteBuffer> parts, Region region) {
    super(parts.toArray(new ByteBuffer[0]));
    held = region;
    if (region != null) {
      region.retain();
    }
  }

  /** What is said of a block that its owner has dropped. */
  static Handout ofNothing(int behind) {
    return new Handout(List.of(front(behind, false, 0).flip()), null);
  }

  /** The first eight bytes, and room for {@code more}. */
  static ByteBuffer front(int behind, boolean present, int more) {
    return ByteBuffer.allocate(FRONT_BYTES + more).order(ByteOrder.LITTLE_ENDIAN)
        .putInt(behind).putInt(present ? PRESENT : 0);
  }

  static boolean isPresent(ByteBuffer front) {
    return front.getInt(Integer.BYTES) == PRESENT;
  }

  /** Lets go of the memory; once is enough, more do no harm. */
  synchronized void letGo() {
    if (held != null) {
      held.release();
      held = null;
    }
  }

  @Override
  public ChunkedByteBufferFileRegion toNetty() {
    return new ChunkedByteBufferFileRegion(this, PIECE_BYTES) {
      @Override
      public void deallocate() {
        letGo();
      }
    };
  }

  @Override
  public ChunkedStream toNettyForSsl() {
    return new ChunkedStream(new FilterInputStream(toInputStream(false)) {
      @Override
      public void close() throws IOException {
        super.close();
        letGo();
      }
    }, PIECE_BYTES);
  }

  @Override
  public void dispose() {
    letGo();
  }
}
