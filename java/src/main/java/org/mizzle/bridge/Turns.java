package org.mizzle.bridge;

import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;

/**
 * Brings together the blocks of each peer and the waits for them, in the order in which either came:
 * the n-th wait is ready when the n-th block is there. Any thread may call; nothing blocks, waiters are called
 * outside the lock. Guarded by this.
 */
final class Turns {
  /** Called exactly once before its transfer starts; {@code failed} perhaps once more after it. */
  interface Waiter {
    void ready();

    void failed(BridgeException error);
  }

  /** How many blocks of each peer are known to be there. */
  private final Map<Integer, Integer> there = new HashMap<>();
  private final Map<Integer, Integer> awaited = new HashMap<>();
  private final Map<Integer, Deque<Waiter>> waiters = new HashMap<>();
  private final Map<Integer, BridgeException> lost = new HashMap<>();
  /** Transfers under way. */
  private final Set<Waiter> running = new HashSet<>();
  /** Set when the group cannot succeed any more, but what was sent may still be read. */
  private BridgeException doomed;
  private BridgeException ended;

  /** A peer rang: its next block is there. */
  void rang(int from) {
    List<Waiter> next = new ArrayList<>();
    synchronized (this) {
      announce(from, there.getOrDefault(from, 0) + 1, next);
    }
    next.forEach(Waiter::ready);
  }

  /** A peer has said that its blocks up to that number are there. */
  void announced(int from, int upTo) {
    List<Waiter> next = new ArrayList<>();
    synchronized (this) {
      announce(from, upTo, next);
    }
    next.forEach(Waiter::ready);
  }

  private void announce(int from, int upTo, List<Waiter> next) {
    Deque<Waiter> queue = waiters.getOrDefault(from, new ArrayDeque<>());
    for (int number = there.getOrDefault(from, 0) + 1; number <= upTo; number++) {
      there.put(from, number);
      if (!queue.isEmpty()) {
        next.add(queue.poll());
      }
    }
  }

  /** Calls {@code waiter} when the next block of that peer is there, or can never be. */
  void await(int from, Waiter waiter) {
    BridgeException error = null;
    synchronized (this) {
      int turn = awaited.merge(from, 1, Integer::sum);
      if (ended != null) {
        error = ended;
      } else if (there.getOrDefault(from, 0) < turn) {
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

  /** Keeps a transfer under way, so that the end of the membership also ends it. */
  synchronized void started(Waiter transfer) throws BridgeException {
    check();
    running.add(transfer);
  }

  synchronized void finished(Waiter transfer) {
    running.remove(transfer);
  }

  /**
   * A peer is gone: whoever waits for it is told, now and later. Those who wait for another go on
   * until {@link #giveUp}: what that one has sent may still come, and may say more.
   *
   * @return whether this is news
   */
  boolean lost(int peer, BridgeException error) {
    Deque<Waiter> told;
    synchronized (this) {
      if (ended != null || lost.putIfAbsent(peer, error) != null) {
        return false;
      }
      told = waiters.remove(peer);
    }
    if (told != null) {
      told.forEach(waiter -> waiter.failed(error));
    }
    return true;
  }

  /** Ends all waits for want of a peer, and all that come. */
  void giveUp(BridgeException error) {
    List<Waiter> told;
    synchronized (this) {
      doomed = error;
      told = takeWaiters();
    }
    told.forEach(waiter -> waiter.failed(error));
  }

  /** Nothing goes on; the first reason counts. */
  void end(BridgeException why) {
    List<Waiter> told;
    synchronized (this) {
      if (ended != null) {
        return;
      }
      ended = why;
      told = takeWaiters();
      told.addAll(running);
      running.clear();
    }
    told.forEach(waiter -> waiter.failed(why));
  }

  private List<Waiter> takeWaiters() {
    List<Waiter> taken = new ArrayList<>();
    waiters.values().forEach(taken::addAll);
    waiters.clear();
    return taken;
  }

  /** Refuses when it has ended, with the reason. */
  synchronized void check() throws BridgeException {
    if (ended != null) {
      throw ended;
    }
  }

  synchronized boolean hasEnded() {
    return ended != null;
  }
}
