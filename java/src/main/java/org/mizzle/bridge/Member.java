package org.mizzle.bridge;

import java.nio.ByteBuffer;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import org.apache.spark.network.client.TransportClient;

/**
 * One rank of one generation of a run, as its own bridge sees it: the blocks it put, the bells its
 * peers ring, the fetches that wait for a ring. All state is guarded by this; nothing blocks inside.
 */
final class Member {
  /** Says how a wait ended; called outside the lock, on any thread. */
  interface Waiter {
    void ready();

    void failed(BridgeException error);
  }

  /** Told once of each peer that is lost. */
  interface Loss {
    void accept(int peer, BridgeException error);
  }

  /** Where a peer of this generation is. */
  record Peer(int rank, String executorId, String host, int port, long nonce) {}

  private record Stored(String name, ArenaBuffer buffer, List<Region> regions) {}

  final String run;
  final int generation;
  final int size;
  /** This bridge's admission ticket for the rank: part of the name of everything it puts. */
  final long nonce;
  private int rank = -1;
  private final Map<Integer, Peer> peers = new HashMap<>();
  private final Map<Integer, TransportClient> clients = new HashMap<>();
  private final Map<Integer, Integer> rings = new HashMap<>();
  private final Map<Integer, Integer> awaited = new HashMap<>();
  private final Map<Integer, Deque<Waiter>> waiters = new HashMap<>();
  private final Map<Integer, BridgeException> lost = new HashMap<>();
  private final Set<Waiter> running = new HashSet<>();
  private final TreeMap<Moment, List<Stored>> stored = new TreeMap<>();
  private BridgeException ended;
  private boolean left;
  /** Also told of a lost peer: the ranks that watch shared memory instead of this bridge. */
  private final Loss onLoss;
  /** Set when the group cannot succeed any more. */
  private BridgeException doomed;

  Member(String run, int generation, int size, long nonce, Loss onLoss) {
    this.run = run;
    this.generation = generation;
    this.size = size;
    this.nonce = nonce;
    this.onLoss = onLoss;
  }

  /** Name of the bell that the peer of that rank rings at the member with that nonce. */
  static String bell(String run, int generation, long nonce, int from) {
    return String.format("test_mizzle.%s.%d.bell.%016x.%d", run, generation, nonce, from);
  }

  /** Name of the block in which that member says why it gave up. */
  static String reason(String run, int generation, long nonce) {
    return String.format("test_mizzle.%s.%d.reason.%016x", run, generation, nonce);
  }

  /** Name of the bell by which that peer says that it gives up. */
  static String alarm(String run, int generation, long nonce, int from) {
    return String.format("test_mizzle.%s.%d.alarm.%016x.%d", run, generation, nonce, from);
  }

  synchronized void admit(int newRank, List<Peer> table) {
    rank = newRank;
    table.forEach(peer -> peers.put(peer.rank(), peer));
  }

  synchronized int rank() {
    return rank;
  }

  synchronized List<Peer> peers() {
    return new ArrayList<>(peers.values());
  }

  synchronized void connected(int peer, TransportClient client) {
    clients.put(peer, client);
  }

  synchronized Peer peer(int of) throws BridgeException {
    Peer peer = peers.get(of);
    if (peer == null) {
      throw new BridgeException(BridgeException.Code.REFUSED, "no rank " + of + " of " + size);
    }
    return peer;
  }

  synchronized TransportClient client(int of) throws BridgeException {
    if (ended != null) {
      throw ended;
    }
    TransportClient client = clients.get(of);
    if (client == null) {
      throw new BridgeException(BridgeException.Code.REFUSED, "no connection to rank " + of);
    }
    return client;
  }

  /** Remembers a block so that it can be dropped; refuses to store the same name twice. */
  synchronized void stored(Moment moment, String name, ArenaBuffer buffer, List<Region> regions)
      throws BridgeException {
    if (ended != null) {
      throw ended;
    }
    stored.computeIfAbsent(moment, key -> new ArrayList<>())
        .add(new Stored(name, buffer, regions));
  }

  /** Takes out what was put before a moment; null means all. Returns the work of removing it. */
  synchronized List<Runnable> drop(Moment before, Blocks blocks) {
    Map<Moment, List<Stored>> gone = before == null ? stored : stored.headMap(before, false);
    List<Runnable> work = new ArrayList<>();
    for (List<Stored> group : gone.values()) {
      for (Stored block : group) {
        work.add(() -> {
          blocks.remove(block.name(), block.buffer());
          block.regions().forEach(Region::release);
        });
      }
    }
    gone.clear();
    return work;
  }

  /** A peer rang: its next block is there. */
  void rang(int from) {
    Waiter next;
    synchronized (this) {
      rings.merge(from, 1, Integer::sum);
      Deque<Waiter> queue = waiters.get(from);
      next = queue == null ? null : queue.poll();
    }
    if (next != null) {
      next.ready();
    }
  }

  /** Calls {@code waiter} when the next block of that peer is there; in the order of the calls. */
  void await(int from, Waiter waiter) {
    BridgeException error = null;
    synchronized (this) {
      int turn = awaited.merge(from, 1, Integer::sum);
      if (ended != null) {
        error = ended;
      } else if (rings.getOrDefault(from, 0) < turn) {
        error = lost.getOrDefault(from, doomed);
        if (error == null) {
          waiters.computeIfAbsent(from, key -> new ArrayDeque<>()).add(waiter);
          return;
        }
      }
    }
    if (error == null) {
      waiter.ready();
    } else {
      waiter.failed(error);
    }
  }

  /** Keeps a transfer under way, so that the end of the generation also ends it. */
  synchronized void started(Waiter transfer) throws BridgeException {
    if (ended != null) {
      throw ended;
    }
    running.add(transfer);
  }

  synchronized void finished(Waiter transfer) {
    running.remove(transfer);
  }

  /**
   * A peer is gone: whoever waits for it is told, now and later. Those who wait for another are told
   * after a while ({@link #giveUpOn}): what that one has sent may still come, and may say more.
   */
  void lost(int peer, String why) {
    BridgeException error = new BridgeException(BridgeException.Code.PEER_LOST, why, peer);
    Deque<Waiter> told;
    synchronized (this) {
      if (ended != null || lost.putIfAbsent(peer, error) != null) {
        return;
      }
      told = waiters.remove(peer);
    }
    onLoss.accept(peer, error);
    if (told != null) {
      told.forEach(waiter -> waiter.failed(error));
    }
  }

  /** Ends all waits for want of a peer, and all that come. */
  void giveUpOn(BridgeException error) {
    List<Waiter> told = new ArrayList<>();
    synchronized (this) {
      doomed = error;
      waiters.values().forEach(told::addAll);
      waiters.clear();
    }
    told.forEach(waiter -> waiter.failed(error));
  }

  /** Nothing of this generation goes on. */
  void end(BridgeException why) {
    List<Waiter> told = new ArrayList<>();
    synchronized (this) {
      if (ended != null) {
        return;
      }
      ended = why;
      waiters.values().forEach(told::addAll);
      waiters.clear();
      told.addAll(running);
      running.clear();
    }
    told.forEach(waiter -> waiter.failed(why));
  }

  synchronized boolean hasEnded() {
    return ended != null;
  }

  /** The rank has done its part; its blocks stay, peers may still read them. */
  synchronized void leave() {
    left = true;
  }

  synchronized boolean hasLeft() {
    return left;
  }
}
