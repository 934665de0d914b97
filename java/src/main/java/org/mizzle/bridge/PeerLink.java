package org.mizzle.bridge;

import io.netty.channel.EventLoop;
import java.io.Closeable;
import java.io.IOException;
import java.util.Queue;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.function.Consumer;
import org.apache.spark.network.buffer.ManagedBuffer;
import org.apache.spark.network.client.ChunkReceivedCallback;
import org.apache.spark.network.client.StreamCallback;
import org.apache.spark.network.client.TransportClient;
import org.apache.spark.network.server.OneForOneStreamManager;

/**
 * A member's own connection to one peer: rings the peer's bell, and takes blocks out of the
 * letterbox that the peer keeps for this member. Requests are made on the connection's event loop,
 * whatever thread asks for them: only so they leave in the order in which they are counted.
 */
final class PeerLink implements Closeable {
  private final TransportClient client;
  private final EventLoop loop;
  private final Intake intake;
  private final Chunks bell;
  private final Chunks letterbox;
  private final Consumer<Throwable> unheard;
  /** Who wants the next blocks, in order. */
  private final Queue<StreamCallback> wanted = new ConcurrentLinkedQueue<>();
  /** Sinks so far; touched by who expects. */
  private int expected;
  /** Blocks asked for; the event loop's alone. */
  private int asked;

  /** {@code unheard} is called if a ring may not have been heard. */
  PeerLink(TransportClient client, Chunks.Opener opener, String bell, String letterbox,
      Consumer<Throwable> unheard) {
    this.client = client;
    this.unheard = unheard;
    loop = client.getChannel().eventLoop();
    intake = Intake.of(client.getChannel());
    this.bell = new Chunks(opener, bell);
    this.letterbox = new Chunks(opener, letterbox);
    run(() -> {
      this.letterbox.openAhead();
      this.bell.openAhead();
    });
  }

  TransportClient client() {
    return client;
  }

  Intake intake() {
    return intake;
  }

  private void run(Runnable request) {
    if (loop.inEventLoop()) {
      request.run();
    } else {
      loop.execute(request);
    }
  }

  /** Any thread. */
  void ring() {
    run(() -> bell.read(new Ring()));
  }

  /** The n-th sink gets the peer's n-th block, when that is asked for; n. One thread at a time. */
  int expect(StreamCallback sink) {
    wanted.add(sink);
    return ++expected;
  }

  /** Any thread: the peer's blocks up to the n-th are there, and expected. */
  void ask(int upTo) {
    run(() -> {
      while (asked < upTo) {
        asked++;
        letterbox.read(new Asked(wanted.remove()));
      }
    });
  }

  /** The peer gets back what it holds open for this connection. Does not wait. */
  @Override
  public void close() {
    client.getChannel().close();
  }

  private final class Asked implements Chunks.Reading {
    private final StreamCallback sink;

    Asked(StreamCallback sink) {
      this.sink = sink;
    }

    @Override
    public void start(long stream, int chunk) {
      client.stream(OneForOneStreamManager.genStreamChunkId(stream, chunk), sink);
    }

    @Override
    public void failed(Throwable error) {
      try {
        sink.onFailure("", error);
      } catch (IOException e) {
        unheard.accept(e);
      }
    }
  }

  private final class Ring implements Chunks.Reading, ChunkReceivedCallback {
    @Override
    public void start(long stream, int chunk) {
      client.fetchChunk(stream, chunk, this);
    }

    @Override
    public void failed(Throwable error) {
      unheard.accept(error);
    }

    @Override
    public void onSuccess(int chunk, ManagedBuffer buffer) {
      // The answer carries nothing: that it was read is the message.
    }

    @Override
    public void onFailure(int chunk, Throwable error) {
      unheard.accept(error);
    }
  }
}
