package org.mizzle.bridge;

import java.nio.ByteBuffer;
import java.util.List;
import org.apache.spark.util.io.ChunkedByteBuffer;

/**
 * A block's bytes where they lie: in an arena. Two things differ from Spark's own buffer. Spark may
 * not dispose of it, because that would unmap memory still in use. And while Spark keeps its books
 * the size is zero, because the bytes are not in the heap whose budget the books protect.
 */
final class ArenaBuffer extends ChunkedByteBuffer {
  private static final long serialVersionUID = 1L;
  private transient volatile boolean served;

  ArenaBuffer(List<ByteBuffer> parts) {
    super(parts.toArray(new ByteBuffer[0]));
  }

  /** From here on the size is the true one, as the network needs it. */
  void serve() {
    served = true;
  }

  /** Back to the books' size, before the block is removed. */
  void retire() {
    served = false;
  }

  @Override
  public long size() {
    return served ? super.size() : 0;
  }

  @Override
  public void dispose() {
    // The region owns the memory.
  }
}
