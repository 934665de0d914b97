package org.mizzle.bridge;

import static org.mizzle.bridge.RunTests.check;
import static org.mizzle.bridge.RunTests.equal;
import static org.mizzle.bridge.RunTests.fails;

import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.ScheduledExecutorService;
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
    Fetch fetch = fetch(link(client, opener), AsyncWorkTest.broken());
    fails(RejectedExecutionException.class, () -> fetch.start(5));
  }

  void withoutATimerALossIsToldAtOnce() {
    Member other = member(AsyncWorkTest.broken());
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
}
