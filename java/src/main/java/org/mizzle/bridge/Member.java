package org.mizzle.bridge;

import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;

/**
 * One rank of one group, as its own bridge sees it. It begins before the rank is admitted, because
 * peers may ring earlier, and outlives the rank's leaving, because peers may still read its blocks.
 * Any thread may call; guarded by this, nothing blocks inside.
 */
final class Member {
  /** How long waits for others go on after a peer was lost: what was sent before may say more. */
  private static final long GRACE_MS = 500;

  /** Where a peer of this group is; {@code nonce} is its ticket, see {@link #nonce}. */
  record Peer(int rank, String executorId, String host, int port, long nonce) {}

  final Group group;
  final int size;
  /** This admission's ticket, drawn at random: part of the name of everything it puts. */
  final long nonce;
  final Turns turns = new Turns();
  final Shelf shelf;
  private final Arena arena;
  private final ScheduledExecutorService timer;
  private final Map<Integer, Peer> peers = new HashMap<>();
  private final Map<Integer, PeerLink> links = new HashMap<>();
  /** What this member has put, by reader. */
  private final List<Letterbox> letterboxes = new ArrayList<>();
  /** Undo the watches over connections, which outlive this member. */
  private final List<Runnable> watches = new ArrayList<>();
  private int rank = -1;
  private boolean left;
  private boolean lossNoted;

  Member(Group group, int size, long nonce, Arena arena, Shelf shelf,
      ScheduledExecutorService timer) {
    this.group = group;
    this.size = size;
    this.nonce = nonce;
    this.arena = arena;
    this.shelf = shelf;
    this.timer = timer;
    for (int reader = 0; reader < size; reader++) {
      letterboxes.add(new Letterbox());
    }
  }

  Letterbox letterbox(int reader) {
    return letterboxes.get(reader);
  }

  synchronized void admit(int newRank, List<Peer> table) {
    rank = newRank;
    table.forEach(peer -> peers.put(peer.rank(), peer));
  }

  /** The rank it was given, or -1 while it waits. */
  synchronized int rank() {
    return rank;
  }

  /** All ranks but this one; none while it waits. */
  synchronized List<Peer> others() {
    return peers.values().stream().filter(peer -> peer.rank() != rank).toList();
  }

  synchronized Peer peer(int of) throws BridgeException {
    Peer peer = peers.get(of);
    if (peer == null) {
      throw new BridgeException(BridgeException.Code.REFUSED, "no rank " + of + " of " + size);
    }
    return peer;
  }

  /**
   * From now on that peer is reached so; {@code unwatch} is run when the member leaves.
   *
   * @return whether the member has use for the link and will close it: not after it has left
   */
  boolean connected(int peer, PeerLink link, Runnable unwatch) {
    synchronized (this) {
      if (!left) {
        links.put(peer, link);
        watches.add(unwatch);
        return true;
      }
    }
    unwatch.run();
    return false;
  }

  PeerLink link(int to) throws BridgeException {
    turns.check();
    synchronized (this) {
      PeerLink link = links.get(to);
      if (link == null) {
        throw new BridgeException(BridgeException.Code.REFUSED, "no connection to rank " + to);
      }
      return link;
    }
  }

  /** A peer is gone: who waits for it is told at once, who waits for another after a while. */
  void lost(int peer, String why) {
    BridgeException error = new BridgeException(BridgeException.Code.PEER_LOST, why, peer);
    if (!turns.lost(peer, error)) {
      return;
    }
    try {
      timer.schedule(() -> turns.giveUp(error), GRACE_MS, TimeUnit.MILLISECONDS);
    } catch (RuntimeException e) {
      // Better at once than never.
      turns.giveUp(error);
    }
    synchronized (this) {
      if (!left && !lossNoted) {
        lossNoted = true;
        arena.noteLoss(peer, why);
      }
    }
  }

  /** Nothing of it goes on, because only generations from {@code fence} on are served. */
  void fenced(int fence, String why) {
    synchronized (this) {
      if (!left) {
        arena.noteFence(fence);
      }
    }
    leave(new BridgeException(BridgeException.Code.FENCED, why));
    shelf.close();
    List<PeerLink> closed;
    synchronized (this) {
      closed = new ArrayList<>(links.values());
      links.clear();
    }
    // Not before: peers may still wait for a ring that is on its way.
    closed.forEach(PeerLink::close);
  }

  /** Tells the worker, where it watches for that, that nothing of this group is wanted any more. */
  synchronized void halt() {
    if (!left) {
      arena.noteFence(group.generation() + 1);
    }
  }

  /**
   * The rank does no more: it has done its part, or gave up. Its blocks stay, and its arena belongs
   * to whoever claims it next: after this nothing is written to it.
   */
  void leave(BridgeException why) {
    List<Runnable> undone;
    synchronized (this) {
      left = true;
      undone = new ArrayList<>(watches);
      watches.clear();
    }
    undone.forEach(Runnable::run);
    turns.end(why);
  }

  synchronized boolean hasLeft() {
    return left;
  }
}
