package org.mizzle.bridge;

import static org.mizzle.bridge.RunTests.check;
import static org.mizzle.bridge.RunTests.equal;
import static org.mizzle.bridge.RunTests.fails;

import java.io.IOException;
import java.net.StandardProtocolFamily;
import java.net.UnixDomainSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.ScheduledThreadPoolExecutor;

final class WireTest {
  private final SocketChannel worker;
  private final Wire wire;

  WireTest() throws IOException {
    Path path = Files.createTempDirectory("wire").resolve("s");
    try (ServerSocketChannel server = ServerSocketChannel.open(StandardProtocolFamily.UNIX)) {
      server.bind(UnixDomainSocketAddress.of(path));
      worker = SocketChannel.open(UnixDomainSocketAddress.of(path));
      wire = new Wire(server.accept());
    }
  }

  private static ByteBuffer frame(int bytes) {
    return new Frame.Builder().raw(new byte[bytes]).frame(1, 7);
  }

  void framesComeInOrderAndTheEndIsClean() throws IOException {
    worker.write(frame(3));
    worker.write(frame(100_000));
    worker.close();
    equal(3, wire.next().body.remaining());
    equal(100_000, wire.next().body.remaining());
    check(wire.next() == null, "the end");
    wire.close();
  }

  void whoIsNotWelcomeInTimeIsNotWaitedFor() throws IOException {
    ScheduledExecutorService timer = Threads.scheduler("timer");
    wire.abandonUnless(() -> false, timer, 1);
    fails(IOException.class, wire::next);
    wire.close();
    timer.shutdown();
  }

  void whoHasEndedIsNotHeldByTheTimer() throws IOException {
    ScheduledThreadPoolExecutor timer = (ScheduledThreadPoolExecutor) Threads.scheduler("timer");
    wire.abandonUnless(() -> false, timer, 60_000);
    equal(1, timer.getQueue().size());
    wire.close();
    equal(0, timer.getQueue().size());
    timer.shutdown();
  }

  void withoutATimerNobodyIsWaitedFor() throws IOException {
    fails(RejectedExecutionException.class,
        () -> wire.abandonUnless(() -> false, AsyncWorkTest.broken(), 1));
    wire.close();
  }

  void anEndWithinAFrameIsAnError() throws IOException {
    worker.write(frame(100).limit(50));
    worker.close();
    fails(IOException.class, wire::next);
    wire.close();
  }

  void theLargestFrameIsTakenIn() throws Exception {
    Thread sender = new Thread(() -> {
      try {
        worker.write(frame(Frame.MAX_BYTES - 9));
        worker.write(frame(0));
      } catch (IOException e) {
        throw new java.io.UncheckedIOException(e);
      }
    });
    sender.start();
    equal(Frame.MAX_BYTES - 9, wire.next().body.remaining());
    equal(0, wire.next().body.remaining());
    sender.join();
    wire.close();
  }

  void itIsSeenThatTheWorkerHungUp() throws IOException {
    check(!wire.hungUp(), "still there");
    worker.write(frame(3));
    worker.close();
    wire.hungUp();
    check(wire.hungUp(), "gone");
    equal(3, wire.next().body.remaining());
    wire.close();
  }

  void sendingToAWorkerThatDoesNotReadNeverBlocksAndEndsTheConnection() throws IOException {
    int bytes = 1 << 20;
    for (int sent = 0; sent < 60; sent++) {
      wire.send(frame(bytes));
    }
    fails(IOException.class, () -> {
      for (int sent = 0; sent < 10; sent++) {
        wire.send(frame(bytes));
      }
    });
    fails(IOException.class, wire::next);
    wire.close();
  }

  void whatWaitedIsSentWhenTheWorkerReadsAgain() throws Exception {
    int frames = 40;
    for (int sent = 0; sent < frames; sent++) {
      wire.send(frame(50_000));
    }
    Thread session = new Thread(() -> {
      try {
        wire.next();
      } catch (IOException e) {
        throw new java.io.UncheckedIOException(e);
      }
    });
    session.start();
    ByteBuffer all = ByteBuffer.allocate(frames * (50_000 + 13));
    while (all.hasRemaining()) {
      check(worker.read(all) >= 0, "whole");
    }
    worker.close();
    session.join();
    wire.close();
  }
}
