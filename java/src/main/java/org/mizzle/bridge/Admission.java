package org.mizzle.bridge;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.security.SecureRandom;
import java.util.ArrayList;
import java.util.List;
import org.apache.spark.network.client.TransportClient;

/**
 * A rank on its way into a group: hangs the bells its peers will ring, asks the driver until all are
 * there, connects to every peer. In this order, because a peer may ring as soon as it was admitted.
 * Used by the session's thread alone; it may block until the deadline the worker gave, and beyond
 * it for what is under way then: one connection (a few seconds), or one question to the driver,
 * which has Spark's own limit (spark.rpc.askTimeout).
 */
final class Admission {
  private static final long FIRST_PAUSE_NS = 500_000;
  /** For the driver's sake the pauses of large groups may grow longer: all their ranks ask. */
  private static final long LONGEST_PAUSE_NS = 20_000_000;
  private static final long LONGEST_PAUSE_OF_ALL_NS = 250_000_000;
  private static final int SMALL_GROUP = 8;
  private static final SecureRandom RANDOM = new SecureRandom();

  /** Whether the worker that asked is still there. */
  interface Patience {
    boolean isOver() throws IOException;
  }

  private final Bridge bridge;
  private final Arena arena;
  private final Member member;
  private final Join request;
  private final Deadline deadline;
  /** Why it is not connected to a peer, where it is not. */
  private BridgeException unreachable;

  Admission(Bridge bridge, Arena arena, Frame frame) throws BridgeException {
    this.bridge = bridge;
    this.arena = arena;
    Group group = new Group(arena.run, frame.body.getInt(), frame.body.getLong());
    int size = Short.toUnsignedInt(frame.body.getShort());
    int wanted = frame.body.getInt();
    deadline = Deadline.afterMs(Integer.toUnsignedLong(frame.body.getInt()));
    String control = frame.string();
    List<Integer> preferred = Join.ranks(frame);
    // It orders several ranks in one executor; the driver's list, where there is one, counts more.
    if (arena.rank() >= 0 && (preferred.isEmpty() || preferred.contains(arena.rank()))) {
      preferred.add(0, arena.rank());
    }
    Shelf shelf = new Shelf(bridge.blocks(), bridge.removals());
    member = new Member(group, size, RANDOM.nextLong(), arena, shelf, bridge.timer());
    request = new Join(group, size, wanted, preferred, member.nonce, bridge.blocks().executorId(),
        bridge.blocks().host(), bridge.blocks().port(), bridge.hostId(), control);
    if (!request.isPossible()) {
      throw new BridgeException(BridgeException.Code.REFUSED,
          "rank " + wanted + " in a group of " + size);
    }
  }

  Member member() {
    return member;
  }

  /** Returns the driver's table, as it goes on to the worker. If it throws, the member is over. */
  byte[] await(Patience patience) throws BridgeException, IOException {
    boolean admitted = false;
    bridge.runs().register(member);
    bridge.residents().supersede(member.group.run(), member.group.generation());
    try {
      for (int from = 0; from < member.size; from++) {
        hangBells(from);
      }
      byte[] table = askUntilAdmitted(patience);
      admit(new Frame(0, 0, ByteBuffer.wrap(table)));
      admitted = true;
      return table;
    } finally {
      if (!admitted) {
        new Farewell(bridge.peers(), member).abort("it could not join: "
            + (unreachable == null ? "its worker gave up" : unreachable.getMessage()));
        bridge.runs().dismiss(member, "the rank was not admitted");
      }
    }
  }

  private void hangBells(int from) throws BridgeException {
    member.shelf.hang(member.group.bell(member.nonce, from), () -> {
      bridge.counters().increment(Counters.Name.BELLS_HEARD);
      member.turns.rang(from);
    });
    member.shelf.hang(member.group.letterbox(member.nonce, from), member.letterbox(from));
    member.shelf.hang(member.group.alarm(member.nonce, from),
        () -> new Farewell(bridge.peers(), member).askWhy(from));
  }

  private byte[] askUntilAdmitted(Patience patience) throws BridgeException, IOException {
    long pause = FIRST_PAUSE_NS;
    while (true) {
      member.turns.check();
      byte[] answer = bridge.driver().join(request);
      if (answer[0] == Join.TABLE) {
        return answer;
      }
      if (answer[0] == Join.REFUSED) {
        throw new BridgeException(BridgeException.Code.FENCED,
            new Frame(0, 0, ByteBuffer.wrap(answer, 1, answer.length - 1).slice()).string());
      }
      if (patience.isOver() || Thread.currentThread().isInterrupted()) {
        bridge.driver().withdraw(request);
        throw new IOException("the worker is gone, or the executor is ending");
      }
      if (deadline.hasPassed()) {
        bridge.driver().withdraw(request);
        throw new BridgeException(BridgeException.Code.TIMEOUT, "not all " + request.size()
            + " ranks of the group started in time: are there as many free task slots?");
      }
      deadline.pause(pause);
      pause = Math.min(2 * pause, longestPauseNs(member.size));
    }
  }

  static long longestPauseNs(int size) {
    return Math.min(
        LONGEST_PAUSE_NS * Math.max(size, SMALL_GROUP) / SMALL_GROUP, LONGEST_PAUSE_OF_ALL_NS);
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
      peers.add(new Member.Peer(rank, executorId, host, port, table.body.getLong()));
      table.string();
      table.string();
    }
    member.admit(own, peers);
    arena.assign(own, member.group.generation());
    bridge.runs().supersede(member.group);
    connectAll();
  }

  /** All that can be reached in time, even if one cannot: they must be told of the failure. */
  private void connectAll() throws BridgeException {
    for (Member.Peer peer : member.others()) {
      if (!deadline.hasPassed()) {
        connect(peer);
      } else if (unreachable == null) {
        unreachable = new BridgeException(BridgeException.Code.TIMEOUT,
            "no time was left to connect to rank " + peer.rank() + " in executor "
                + peer.executorId() + " on " + peer.host(), peer.rank());
      }
    }
    if (unreachable != null) {
      throw unreachable;
    }
  }

  private void connect(Member.Peer peer) {
    try {
      TransportClient client = bridge.peers().connect(peer.host(), peer.port());
      PeerLink link = new PeerLink(client, bridge.peers().opener(client, peer.executorId()),
          member.group.bell(peer.nonce(), member.rank()),
          member.group.letterbox(peer.nonce(), member.rank()),
          error -> member.lost(peer.rank(), "it cannot be told of a block: " + error));
      Runnable unwatch = Peers.onClose(client,
          () -> member.lost(peer.rank(), "the connection to executor " + peer.executorId()
              + " on " + peer.host() + " closed"));
      if (!member.connected(peer.rank(), link, unwatch)) {
        link.close();
      }
    } catch (IOException e) {
      unreachable = new BridgeException(BridgeException.Code.UNREACHABLE, "executor "
          + peer.executorId() + " on " + peer.host() + " cannot be reached: " + e, peer.rank());
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      unreachable = new BridgeException(
          BridgeException.Code.PEER_LOST, "the executor is ending", peer.rank());
    }
  }
}
