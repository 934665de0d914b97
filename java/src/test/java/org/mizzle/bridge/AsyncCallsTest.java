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
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;

/**
 * Every asynchronous call of the bridge made to throw, one at a time: whoever waits for it is told,
 * at once, and is told once. tests/unit/test_async_calls.py sees to it that none is forgotten.
 */
final class AsyncCallsTest implements Fetch.Asker {
  private static final String RUN = "0".repeat(32);
  private final ScheduledExecutorService timer = Threads.scheduler("timer");
  private final FaultyClient client = FaultyClient.make();
  private final List<String> answers = new ArrayList<>();
  private final List<String> unheard = new ArrayList<>();
  private final Member member = member(timer);
  private final Chunks.Opener opener = new Peers(null, "app").opener(client, "1");

  private static Member member(ScheduledExecutorService timer) {
    Shelf shelf = new Shelf(null, new Removals((name, buffer) -> true, timer));
    Member made = new Member(new Group(RUN, 0, 1), 3, 1, new Arena(RUN), shelf, timer);
    List<Member.Peer> peers = new ArrayList<>();
    for (int rank = 0; rank < 3; rank++) {
      peers.add(new Member.Peer(rank, String.valueOf(rank), "h", 1, rank));
    }
    made.admit(0, peers);
    return made;
  }

  /** One that runs nothing: as when no thread can be made. */
  private static ScheduledExecutorService broken() {
    return (ScheduledExecutorService) Proxy.newProxyInstance(AsyncCallsTest.class.getClassLoader(),
        new Class<?>[] {ScheduledExecutorService.class}, (proxy, method, arguments) -> {
          throw new RejectedExecutionException(method.getName());
        });
  }

  @Override
  public void answer(Header header, byte[] meta) {
    answers.add("arrived");
  }

  @Override
  public void answer(BridgeException error) {
    answers.add(error.code + " " + error.rank);
  }

  private PeerLink link(FaultyClient to, Chunks.Opener with) {
    PeerLink made = new PeerLink(to, with, "bell", "letters", error -> unheard.add(error.getMessage()));
    to.channel().runPendingTasks();
    return made;
  }

  private Fetch fetch(PeerLink link, ScheduledExecutorService with) {
    Header wanted = Header.of(new byte[Header.BYTES]);
    return new Fetch(with, new Counters(), member, link, wanted, null, List.<ByteBuffer>of(), this);
  }

  /** A block of a peer is asked for, with one of the calls broken. */
  private void asked(FaultyClient.Call call, FaultyClient.How how) {
    client.broken.add(call);
    client.how = how;
    Fetch fetch = fetch(link(client, opener), timer);
    fetch.start(3_600_000);
    equal(List.of(), answers);
    member.turns.rang(0);
    client.channel().runPendingTasks();
    equal(List.of("PEER_LOST 0"), answers);
    fetch.cancel();
    equal(1, answers.size());
  }

  void aLetterboxThatCannotBeOpenedFailsItsFetch() {
    asked(FaultyClient.Call.SEND_RPC, FaultyClient.How.THROWS);
  }

  void aLetterboxThatIsNotOpenedFailsItsFetch() {
    asked(FaultyClient.Call.SEND_RPC, FaultyClient.How.FAILS);
  }

  void anAnswerThatIsNoStreamFailsItsFetch() {
    asked(FaultyClient.Call.SEND_RPC, FaultyClient.How.ANSWERS_NONSENSE);
  }

  void aBlockThatCannotBeAskedForFailsItsFetch() {
    asked(FaultyClient.Call.STREAM, FaultyClient.How.THROWS);
  }

  void aBlockThatDoesNotComeFailsItsFetch() {
    asked(FaultyClient.Call.STREAM, FaultyClient.How.FAILS);
  }

  void aBellThatCannotBeRungIsUnheard() {
    client.broken.add(FaultyClient.Call.FETCH_CHUNK);
    for (FaultyClient.How how : List.of(FaultyClient.How.THROWS, FaultyClient.How.FAILS)) {
      client.how = how;
      link(client, opener).ring();
      client.channel().runPendingTasks();
    }
    equal(List.of("FETCH_CHUNK is broken", "FETCH_CHUNK failed"), unheard);
  }

  void anEventLoopThatTakesNothingFailsTheFetch() {
    PeerLink link = link(client, opener);
    Fetch fetch = fetch(link, timer);
    fetch.start(3_600_000);
    client.refuses = true;
    member.turns.rang(0);
    equal(List.of("PEER_LOST 0"), answers);
  }

  void withoutATimerAFetchIsRefused() {
    Fetch fetch = fetch(link(client, opener), broken());
    fails(RejectedExecutionException.class, () -> fetch.start(5));
  }

  void withoutATimerALossIsToldAtOnce() {
    Member other = member(broken());
    List<String> told = new ArrayList<>();
    other.turns.await(2, new Turns.Waiter() {
      @Override
      public void ready() {
        told.add("ready");
      }

      @Override
      public void failed(BridgeException error) {
        told.add(error.code + " " + error.rank);
      }
    });
    other.lost(1, "gone");
    equal(List.of("PEER_LOST 1"), told);
  }

  void aConnectionThatClosesIsNoticed() {
    AtomicInteger gone = new AtomicInteger();
    Peers.onClose(client, () -> {
      gone.incrementAndGet();
      throw new IllegalStateException("nobody catches it");
    });
    client.channel().close();
    client.channel().runPendingTasks();
    equal(1, gone.get());
  }

  /** Connections to both peers, that to the first with everything broken. */
  private FaultyClient connect() {
    FaultyClient whole = FaultyClient.make();
    client.broken.addAll(List.of(FaultyClient.Call.values()));
    check(member.connected(1, link(client, opener), () -> { }), "it takes part");
    check(member.connected(2, link(whole, new Peers(null, "app").opener(whole, "2")), () -> { }),
        "it takes part");
    return whole;
  }

  void aPeerThatCannotBeToldKeepsNoOtherFromBeingTold() {
    FaultyClient whole = connect();
    AtomicInteger told = new AtomicInteger();
    new Farewell(new Peers(null, "app") {
      @Override
      void ring(org.apache.spark.network.client.TransportClient to, String executorId, String bell,
          java.util.function.Consumer<Throwable> failed) {
        super.ring(to, executorId, bell, failed);
        told.addAndGet(to == whole ? 1 : 0);
      }
    }, member).abort("it failed");
    equal(1, told.get());
    check(member.turns.hasEnded(), "its own waits end");
  }

  void aReasonThatCannotBeAskedForIsALossAllTheSame() {
    connect();
    member.turns.await(1, new Turns.Waiter() {
      @Override
      public void ready() {
        answers.add("ready");
      }

      @Override
      public void failed(BridgeException error) {
        answers.add(error.code + " " + error.rank);
      }
    });
    new Farewell(new Peers(null, "app"), member).askWhy(1);
    equal(List.of("PEER_LOST 1"), answers);
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
      throw new IllegalStateException("the cluster manager does not answer");
    });
    Deadline deadline = Deadline.afterMs(TimeUnit.SECONDS.toMillis(FakeResident.SOON_S));
    while (told.size() < 2 && !deadline.hasPassed()) {
      replacements.ask("7");
      deadline.pause(1_000_000);
    }
    check(told.size() >= 2, "it is asked again");
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
