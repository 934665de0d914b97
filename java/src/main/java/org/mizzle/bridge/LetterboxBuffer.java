package org.mizzle.bridge;

import io.netty.handler.stream.ChunkedStream;
import java.util.List;
import org.apache.spark.util.io.ChunkedByteBufferFileRegion;

/**
 * A letterbox as Spark's block manager holds it: a block whose n-th reading hands out the n-th
 * block for that reader. The reader opens it once for many readings, so that a block costs one round
 * trip, and Spark keeps no books about blocks that live for milliseconds.
 */
final class LetterboxBuffer extends UnbookedBuffer {
  private static final long serialVersionUID = 1L;
  private final transient Letterbox box;
  /** Taken out and not given to the network yet: Spark asks for the size before it asks for it. */
  private transient Handout next;

  LetterboxBuffer(Letterbox box) {
    super(List.of());
    this.box = box;
  }

  @Override
  synchronized long servedSize() {
    if (next == null) {
      next = box.next();
    }
    return next.size();
  }

  private synchronized Handout take() {
    servedSize();
    Handout taken = next;
    next = null;
    return taken;
  }

  @Override
  public ChunkedByteBufferFileRegion toNetty() {
    return take().toNetty();
  }

  @Override
  public ChunkedStream toNettyForSsl() {
    return take().toNettyForSsl();
  }

  @Override
  synchronized void retire() {
    super.retire();
    if (next != null) {
      next.letGo();
      next = null;
    }
  }
}
