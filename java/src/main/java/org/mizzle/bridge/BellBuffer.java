package org.mizzle.bridge;

import io.netty.handler.stream.ChunkedStream;
import java.nio.ByteBuffer;
import org.apache.spark.util.io.ChunkedByteBuffer;
import org.apache.spark.util.io.ChunkedByteBufferFileRegion;

/**
 * A one-byte block whose reading is the message: a peer rings by fetching it. An upload would be the
 * obvious way to tell a peer something, but Spark reports every uploaded block to the driver, and a
 * fetch of a block that is not there yet as well; reading one that is there tells nobody.
 */
final class BellBuffer extends ChunkedByteBuffer {
  private static final long serialVersionUID = 1L;
  private final transient Runnable ring;

  BellBuffer(Runnable ring) {
    super(new ByteBuffer[] {ByteBuffer.wrap(new byte[1])});
    this.ring = ring;
  }

  @Override
  public ChunkedByteBufferFileRegion toNetty() {
    ring.run();
    return super.toNetty();
  }

  @Override
  public ChunkedStream toNettyForSsl() {
    ring.run();
    return super.toNettyForSsl();
  }
}
