package org.mizzle.bridge;

import java.nio.ByteBuffer;
import java.util.List;
import org.apache.spark.util.io.ChunkedByteBuffer;

/**
 * A block that Spark's books leave out: while Spark keeps them its size is zero, because its bytes
 * are not in the heap whose budget the books protect, or are not there yet.
 */
class UnbookedBuffer extends ChunkedByteBuffer {
  private static final long serialVersionUID = 1L;
  private transient volatile boolean served;

  UnbookedBuffer(List<ByteBuffer> parts) {
    super(parts.toArray(new ByteBuffer[0]));
  }

  /** From here on the size is the true one, as the network needs it. */
  final void serve() {
    served = true;
  }

  /** Back to the books' size, before the block is removed. */
  void retire() {
    served = false;
  }

  @Override
  public final long size() {
    return served ? servedSize() : 0;
  }

  long servedSize() {
    return super.size();
  }
}
