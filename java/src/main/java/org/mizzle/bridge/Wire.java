package org.mizzle.bridge;

import java.io.Closeable;
import java.io.EOFException;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.CancelledKeyException;
import java.nio.channels.ClosedByInterruptException;
import java.nio.channels.ClosedChannelException;
import java.nio.channels.SelectionKey;
import java.nio.channels.Selector;
import java.nio.channels.SocketChannel;
import java.util.ArrayDeque;
import java.util.Deque;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Future;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import java.util.function.BooleanSupplier;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Frames to and from one worker. Its session's thread reads, any thread may send, and sending never
 * blocks: a worker that has stopped must not hold up a network thread, which serves others too.
 * Frames it does not read wait here, up to a limit; then the connection is closed.
 */
final class Wire implements Closeable {
  private static final int FIRST_BYTES = 1 << 16;
  private static final long MAX_WAITING_BYTES = 64L << 20;
  private static final Logger LOG = LoggerFactory.getLogger(Wire.class);

  private final SocketChannel channel;
  private final Selector selector;
  private final SelectionKey key;
  /** What has come and is not a whole frame yet; the session's thread only. */
  private ByteBuffer in = ByteBuffer.allocate(FIRST_BYTES).order(ByteOrder.LITTLE_ENDIAN);
  private boolean ended;
  /** Frames to be sent, in order; guarded by itself, as is the next. */
  private final Deque<ByteBuffer> out = new ArrayDeque<>();
  private long outBytes;
  /** Abandons it in time; none yet. Else the timer would hold its buffers when it has long ended. */
  private volatile Future<?> abandoned = CompletableFuture.completedFuture(null);

  Wire(SocketChannel channel) throws IOException {
    this.channel = channel;
    channel.configureBlocking(false);
    selector = Selector.open();
    key = channel.register(selector, SelectionKey.OP_READ);
  }

  /** The next frame, or null at a clean end. Blocks. */
  Frame next() throws IOException {
    while (true) {
      Frame frame = Frame.take(in);
      if (frame != null) {
        return frame;
      }
      int before = in.position();
      if (hungUp()) {
        if (in.position() > 0) {
          throw new EOFException("the stream ended within a frame");
        }
        return null;
      }
      if (in.position() == before) {
        waitUntilReady();
      }
    }
  }

  private void waitUntilReady() throws IOException {
    selector.select();
    selector.selectedKeys().clear();
    if (Thread.currentThread().isInterrupted()) {
      throw new ClosedByInterruptException();
    }
  }

  /** Takes in and sends what can be now; whether the worker has closed its end. */
  boolean hungUp() throws IOException {
    flush();
    if (!in.hasRemaining()) {
      ByteBuffer larger = ByteBuffer.allocate(Math.min(4 * in.capacity(), Frame.LONGEST))
          .order(ByteOrder.LITTLE_ENDIAN);
      in = larger.put(in.flip());
    }
    if (!ended && in.hasRemaining()) {
      ended = channel.read(in) < 0;
    }
    return ended;
  }

  /** Sends a frame, now or when the worker reads again. */
  void send(ByteBuffer frame) throws IOException {
    synchronized (out) {
      out.add(frame);
      outBytes += frame.remaining();
      flush();
      if (out.isEmpty()) {
        return;
      }
      if (outBytes > MAX_WAITING_BYTES) {
        abandon();
        throw new IOException("the worker does not read its answers");
      }
    }
    selector.wakeup();
  }

  private void flush() throws IOException {
    synchronized (out) {
      while (!out.isEmpty()) {
        outBytes -= channel.write(out.peek());
        if (out.peek().hasRemaining()) {
          break;
        }
        out.poll();
      }
      int wanted = SelectionKey.OP_READ | (out.isEmpty() ? 0 : SelectionKey.OP_WRITE);
      try {
        key.interestOps(wanted);
      } catch (CancelledKeyException e) {
        throw new ClosedChannelException();
      }
    }
  }

  /** Ends the connection for whoever reads it; any thread may call. */
  void abandon() {
    try {
      channel.close();
    } catch (IOException e) {
      LOG.debug("a connection did not close", e);
    }
    selector.wakeup();
  }

  /** Ends the connection later, unless it is welcome by then. */
  void abandonUnless(BooleanSupplier welcome, ScheduledExecutorService timer, long afterMs) {
    abandoned = timer.schedule(() -> {
      if (!welcome.getAsBoolean()) {
        abandon();
      }
    }, afterMs, TimeUnit.MILLISECONDS);
  }

  @Override
  public void close() throws IOException {
    abandoned.cancel(false);
    channel.close();
    selector.close();
  }
}
