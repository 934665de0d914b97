package org.mizzle.bridge;

import java.nio.ByteBuffer;
import java.util.List;
import java.util.concurrent.ScheduledFuture;
import java.util.concurrent.TimeUnit;

/**
 * One request for a peer's block: waits for the peer's ring, streams the block into the arena,
 * answers exactly once. Nothing is written to the arena after the answer.
 */
final class Fetch implements Turns.Waiter, Sink.Outcome {
  /** Who asked; called once, on any thread, and must not block. */
  interface Asker {
    void answer(Header header, byte[] meta);

    void answer(BridgeException error);
  }

  private final Bridge bridge;
  private final Member member;
  private final Header wanted;
  private final Region region;
  private final Sink sink;
  private final Asker asker;
  private ScheduledFuture<?> alarm;
  /** Guarded by this, as is the alarm. */
  private boolean answered;

  /** Takes over one reference to {@code region} (null: no payload is expected). */
  Fetch(Bridge bridge, Member member, Header wanted, Region region, List<ByteBuffer> target,
      Asker asker) {
    this.bridge = bridge;
    this.member = member;
    this.wanted = wanted;
    this.region = region;
    this.asker = asker;
    this.sink = new Sink(wanted.bytes(), wanted.source(), target, this);
  }

  void start(long deadlineMs) {
    synchronized (this) {
      alarm = bridge.timer().schedule(this::cancel, deadlineMs, TimeUnit.MILLISECONDS);
    }
    member.turns.await(wanted.source(), this);
  }

  /** Answers now, if it has not been answered. */
  void cancel() {
    failed(new BridgeException(BridgeException.Code.TIMEOUT,
        "rank " + wanted.source() + " did not deliver in time", wanted.source()));
  }

  @Override
  public void ready() {
    try {
      synchronized (this) {
        if (answered) {
          return;
        }
        member.turns.started(this);
      }
      Member.Peer peer = member.peer(wanted.source());
      bridge.peers().fetch(member.client(peer.rank()), peer.executorId(),
          wanted.name(peer.nonce()), sink, this::notOpened);
    } catch (BridgeException e) {
      failed(e);
    }
  }

  private void notOpened(Throwable error) {
    failed(Peers.isAbsent(error)
        ? new BridgeException(BridgeException.Code.NOT_FOUND,
            "rank " + wanted.source() + " does not have it (any more)", wanted.source())
        : new BridgeException(BridgeException.Code.PEER_LOST,
            "its block service does not answer: " + error, wanted.source()));
  }

  @Override
  public void arrived(Header header, byte[] meta) {
    if (end()) {
      bridge.counters().increment(Counters.Name.BLOCKS_FETCHED);
      bridge.counters().add(Counters.Name.BYTES_FETCHED, header.payloadBytes());
      asker.answer(header, meta);
    }
  }

  @Override
  public void failed(BridgeException error) {
    if (error.code == BridgeException.Code.CORRUPT) {
      bridge.counters().increment(Counters.Name.CORRUPT);
    }
    if (end()) {
      asker.answer(error);
    }
  }

  private boolean end() {
    synchronized (this) {
      if (answered) {
        return false;
      }
      answered = true;
      if (alarm != null) {
        alarm.cancel(false);
      }
    }
    sink.cancel();
    member.turns.finished(this);
    if (region != null) {
      region.release();
    }
    return true;
  }
}
