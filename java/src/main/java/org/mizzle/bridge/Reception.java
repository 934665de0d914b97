package org.mizzle.bridge;

import java.io.IOException;
import java.nio.channels.ClosedChannelException;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;
import java.util.concurrent.Executor;
import java.util.function.Function;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/** Accepts workers until the server is closed, each with a thread of its own. */
final class Reception implements Runnable {
  private static final long PAUSE_MS = 100;
  private static final Logger LOG = LoggerFactory.getLogger(Reception.class);

  private final ServerSocketChannel server;
  private final Executor workers;
  private final Function<SocketChannel, Runnable> session;

  Reception(ServerSocketChannel server, Executor workers,
      Function<SocketChannel, Runnable> session) {
    this.server = server;
    this.workers = workers;
    this.session = session;
  }

  @Override
  public void run() {
    while (server.isOpen()) {
      try {
        serve(server.accept());
      } catch (ClosedChannelException e) {
        LOG.debug("mizzle's bridge stops");
      } catch (IOException e) {
        // Most likely out of file descriptors; others may give theirs back.
        LOG.warn("mizzle's bridge cannot accept a worker now", e);
        Deadline.afterMs(PAUSE_MS).pause(Long.MAX_VALUE);
      }
    }
  }

  /** A worker for whom there is no thread must not wait for an answer. */
  private void serve(SocketChannel channel) throws IOException {
    try {
      workers.execute(session.apply(channel));
    } catch (RuntimeException | OutOfMemoryError e) {
      channel.close();
      throw new IOException("there is no thread for a worker", e);
    }
  }
}
