package org.mizzle.bridge;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.security.SecureRandom;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.locks.LockSupport;
import org.apache.spark.network.client.StreamCallback;
import org.apache.spark.network.client.TransportClient;

/**
 * A rank on its way into a group: hangs the bells its peers will ring, asks the driver until all are
 * there, connects to every peer. In this order, because a peer may ring as soon as it was admitted.
 */
final class Admission {
  private static final long FIRST_PAUSE_NS = 500_000;
  private static final long LONGEST_PAUSE_NS = 20_000_000;
  private static final int MAX_REASON_BYTES = 8 * 1024;
  private static final SecureRandom RANDOM = new SecureRandom();

  private final Bridge bridge;
  private final Arena arena;
  private final Member member;
  private final Join request;
  private final long deadlineNs;

  Admission(Bridge bridge, Arena arena, Frame frame, Member.Loss onLoss) throws BridgeException {
    this.bridge = bridge;
    this.arena = arena;
    int generation = frame.body.getInt();
    long group = frame.body.getLong();
    int size = Short.toUnsignedInt(frame.body.getShort());
    int wanted = frame.body.getInt();
    long deadlineMs = Integer.toUnsignedLong(frame.body.getInt());
    String control = frame.string();
    List<Integer> preferred = Join.ranks(frame);
    if (arena.rank() >= 0) {
      preferred.add(0, arena.rank());
    }
    deadlineNs = System.nanoTime() + deadlineMs * 1_000_000;
    member = new Member(arena.run, generation, size, RANDOM.nextLong(), onLoss);
    bridge.runs().register(member);
    request = new Join(arena.run, generation, group, size, wanted, preferred, member.nonce,
        bridge.blocks().executorId(), bridge.blocks().host(), bridge.blocks().port(),
        bridge.identity(), control);
  }

  Member member() {
    return member;
  }

  /** The driver's table, as it goes on to the worker. */
  byte[] await() throws BridgeException {
    for (int from = 0; from < member.size; from++) {
      hangBells(from);
    }
    byte[] table = askUntilAdmitted();
    admit(new Frame(0, 0, ByteBuffer.wrap(table)));
    return table;
  }

  private void hangBells(int from) throws BridgeException {
    bridge.blocks().hang(
        Member.bell(member.run, member.generation, member.nonce, from), () -> {
          bridge.counters().increment(Counters.Name.BELLS_HEARD);
          member.rang(from);
        });
    bridge.blocks().hang(
        Member.alarm(member.run, member.generation, member.nonce, from), () -> askWhy(from));
  }

  private byte[] askUntilAdmitted() throws BridgeException {
    long pause = FIRST_PAUSE_NS;
    while (true) {
      byte[] answer = bridge.driver().join(request);
      if (answer[0] == Join.TABLE) {
        return answer;
      }
      if (answer[0] == Join.REFUSED) {
        throw new BridgeException(BridgeException.Code.FENCED,
            new Frame(0, 0, ByteBuffer.wrap(answer, 1, answer.length - 1).slice()).string());
      }
      if (System.nanoTime() - deadlineNs > 0) {
        throw new BridgeException(BridgeException.Code.TIMEOUT, "not all " + request.size()
            + " ranks of the group started in time: are there as many free task slots?");
      }
      LockSupport.parkNanos(pause);
      pause = Math.min(2 * pause, LONGEST_PAUSE_NS);
    }
  }

  private void admit(Frame table) throws BridgeException {
    table.body.get();
    int own = Short.toUnsignedInt(table.body.getShort());
    int size = Short.toUnsignedInt(table.body.getShort());
    List<Member.Peer> peers = new ArrayList<>();
    for (int rank = 0; rank < size; rank++) {
      String executorId = table.string();
      String host = table.string();
      int port = Short.toUnsignedInt(table.body.getShort());
      long nonce = table.body.getLong();
      table.string();
      table.string();
      peers.add(new Member.Peer(rank, executorId, host, port, nonce));
    }
    member.admit(own, peers);
    arena.assign(own);
    bridge.runs().supersede(member);
    for (Member.Peer peer : peers) {
      if (peer.rank() != own) {
        connect(peer);
      }
    }
  }

  private void connect(Member.Peer peer) throws BridgeException {
    try {
      TransportClient client = bridge.peers().connect(peer.host(), peer.port());
      member.connected(peer.rank(), client);
      Peers.onClose(client, () -> member.lost(peer.rank(), "the connection to executor "
          + peer.executorId() + " on " + peer.host() + " closed"));
    } catch (IOException | InterruptedException e) {
      throw new BridgeException(BridgeException.Code.PEER_LOST, "executor " + peer.executorId()
          + " on " + peer.host() + " cannot be reached: " + e, peer.rank());
    }
  }

  /** A peer gives up; its reason is a block of its own, which may be gone. */
  private void askWhy(int from) {
    try {
      Member.Peer peer = member.peer(from);
      String name = Member.reason(member.run, member.generation, peer.nonce());
      bridge.peers().fetch(member.client(from), peer.executorId(), name, new Reason(from),
          error -> member.lost(from, "it gave up"));
    } catch (BridgeException e) {
      member.lost(from, "it gave up");
    }
  }

  /** Collects a peer's reason. */
  private final class Reason implements StreamCallback {
    private final int from;
    private final ByteBuffer text = ByteBuffer.allocate(MAX_REASON_BYTES);

    Reason(int from) {
      this.from = from;
    }

    @Override
    public void onData(String streamId, ByteBuffer data) {
      int count = Math.min(data.remaining(), text.remaining());
      text.put(data.slice(data.position(), count));
      data.position(data.limit());
    }

    @Override
    public void onComplete(String streamId) {
      member.lost(from, new String(text.array(), 0, text.position(), StandardCharsets.UTF_8));
    }

    @Override
    public void onFailure(String streamId, Throwable cause) {
      member.lost(from, "it gave up");
    }
  }
}
