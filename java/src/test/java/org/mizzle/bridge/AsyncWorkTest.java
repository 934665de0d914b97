package org.mizzle.bridge;

import static org.mizzle.bridge.RunTests.check;
import static org.mizzle.bridge.RunTests.equal;
import static org.mizzle.bridge.RunTests.fails;

import java.io.IOException;
import java.lang.reflect.Proxy;
import java.net.StandardProtocolFamily;
import java.net.UnixDomainSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;

/** Work that the bridge hands to threads and timers, made to throw; the rest of {@link AsyncCallsTest}. */
final class AsyncWorkTest {
  private final ScheduledExecutorService timer = Threads.scheduler("timer");

  /** One that runs nothing: as when no thread can be made. */
  static ScheduledExecutorService broken() {
    return (ScheduledExecutorService) Proxy.newProxyInstance(AsyncWorkTest.class.getClassLoader(),
        new Class<?>[] {ScheduledExecutorService.class}, (proxy, method, arguments) -> {
          throw new RejectedExecutionException(method.getName());
        });
  }

  void whoCannotBeToldHowARankStartedIsLetGo() throws Exception {
    Residents residents = new Residents(timer, 3_600_000, 3_600_000, () -> { });
    BlockingQueue<String> heard = new LinkedBlockingQueue<>();
    FakeResident one = new FakeResident(residents);
    residents.hires().add(new Hire("r", 0, new byte[0], true, new Hire.Asker() {
      @Override
      public void answer(byte[] outcome) {
        throw new IllegalStateException("the answer cannot be sent");
      }

      @Override
      public void answer(BridgeException error) {
        throw new IllegalStateException("the answer cannot be sent");
      }

      @Override
      public void drop() {
        heard.add("dropped");
      }
    }), 3_600_000);
    one.next(Order.START);
    one.serve(0, "ready");
    equal("dropped", heard.poll(FakeResident.SOON_S, TimeUnit.SECONDS));
  }

  void withoutATimerNobodyIsHiredOrKeptInVain() {
    Residents residents = new Residents(broken(), 3_600_000, 3_600_000, () -> { });
    fails(RejectedExecutionException.class,
        () -> residents.hires().add(new FakeAsker().hire("r", 0, true), 5));
    fails(RejectedExecutionException.class, () -> new FakeResident(residents));
  }

  void whoCannotAskForFreshLeasesIsNotLeftWaiting() throws Exception {
    Residents residents = new Residents(timer, 3_600_000, 3_600_000, () -> {
      throw new RejectedExecutionException("the thread of the leases takes nothing");
    });
    FakeResident.started(residents, "other", 0, 0);
    fails(RejectedExecutionException.class,
        () -> residents.hires().add(new FakeAsker().hire("r", 0, false), 3_600_000));
  }

  void withoutATimerAFailedRankEndsTheJob() {
    try (GroupResults results = new GroupResults(2, broken(), 5, () -> { })) {
      fails(RejectedExecutionException.class,
          () -> results.put(0, new byte[] {GroupAttempt.FAILED}));
    }
  }

  void aBlockThatCannotBeRemovedKeepsNoOtherFromIt() {
    Removals removals = new Removals((name, buffer) -> true, broken());
    fails(RejectedExecutionException.class, () -> removals.add(new Kept("test_a", null)));
  }

  void whatSparkDoesNotTakeIsToldAgain() throws Exception {
    BlockingQueue<String> told = new LinkedBlockingQueue<>();
    Replacements replacements = new Replacements(executorId -> {
      told.add(executorId);
      if (told.size() == 1) {
        throw new IllegalStateException("the cluster manager does not answer");
      }
      return told.size() > 2;
    }, 1);
    Deadline deadline = Deadline.afterMs(TimeUnit.SECONDS.toMillis(FakeResident.SOON_S));
    while (told.size() < 3 && !deadline.hasPassed()) {
      replacements.ask("7");
      deadline.pause(1_000_000);
    }
    check(told.size() == 3, "it is asked again");
    check(replacements.isAsked("7"), "what it took is");
  }

  void whomSparkDoesNotReplaceIsNotHiddenNorAskedForAllTheTime() {
    AtomicInteger told = new AtomicInteger();
    Replacements replacements = new Replacements(executorId -> {
      told.incrementAndGet();
      return false;
    }, 3_600_000);
    replacements.ask("7");
    Deadline deadline = Deadline.afterMs(TimeUnit.SECONDS.toMillis(FakeResident.SOON_S));
    while ((told.get() == 0 || replacements.isAsked("7")) && !deadline.hasPassed()) {
      deadline.pause(1_000_000);
    }
    check(!replacements.isAsked("7"), "ranks may have it");
    replacements.ask("7");
    check(!replacements.isAsked("7"), "not so soon");
  }

  void aWorkerForWhomThereIsNoThreadIsSentAway() throws Exception {
    Path directory = Files.createTempDirectory("reception");
    UnixDomainSocketAddress address = UnixDomainSocketAddress.of(directory.resolve("s"));
    try (ServerSocketChannel server = ServerSocketChannel.open(StandardProtocolFamily.UNIX)) {
      server.bind(address);
      AtomicInteger times = new AtomicInteger();
      Threads.daemon("reception").newThread(new Reception(server, task -> {
        if (times.incrementAndGet() == 1) {
          throw new OutOfMemoryError("unable to create native thread");
        }
        throw new RejectedExecutionException("no");
      }, channel -> () -> { })).start();
      for (int worker = 0; worker < 2; worker++) {
        try (SocketChannel channel = SocketChannel.open(address)) {
          equal(-1, channel.read(ByteBuffer.allocate(1)));
        }
      }
      equal(2, times.get());
    } finally {
      Files.delete(directory.resolve("s"));
      Files.delete(directory);
    }
  }

  void aReportThatThrowsIsSentAgain() throws IOException, InterruptedException {
    BlockingQueue<Integer> sent = new LinkedBlockingQueue<>();
    Leases.tell(timer, 1, () -> {
      sent.add(1);
      if (sent.size() < 3) {
        throw new IllegalStateException("no block manager yet");
      }
    });
    Deadline deadline = Deadline.afterMs(TimeUnit.SECONDS.toMillis(FakeResident.SOON_S));
    while (sent.size() < 3 && !deadline.hasPassed()) {
      deadline.pause(1_000_000);
    }
    equal(3, sent.size());
  }
}
