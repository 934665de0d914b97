package org.mizzle.bridge;

import java.nio.ByteBuffer;
import java.util.List;
import java.util.concurrent.ScheduledExecutorService;
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

  /** A rank is never so many blocks ahead of a reader: who says so is damaged. */
  private static final int MAX_BEHIND = 1 << 20;
  private final ScheduledExecutorService timer;
  private final Counters counters;
  private final Member member;
  private final Header wanted;
  private final Region region;
  private final PeerLink link;
  private final Sink sink;
  private final Asker asker;
  private ScheduledFuture<?> alarm;
  /** The number of the block among all that the peer puts for this member. */
  private final int number;
  /** Guarded by this, as is the alarm. */
  private boolean answered;

  /** Takes over one reference to {@code region} (null: no payload is expected). */
  Fetch(ScheduledExecutorService timer, Counters counters, Member member, PeerLink link,
      Header wanted, Region region, List<ByteBuffer> target, Asker asker) {
    this.timer = timer;
    this.counters = counters;
    this.member = member;
    this.link = link;
    this.wanted = wanted;
    this.region = region;
    this.asker = asker;
    sink = new Sink(wanted.bytes(), wanted.source(), target, link.intake(), this);
    number = link.expect(sink);
  }

  void start(long deadlineMs) {
    synchronized (this) {
      alarm = timer.schedule(this::cancel, deadlineMs, TimeUnit.MILLISECONDS);
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
        if (!answered) {
          member.turns.started(this);
        }
      }
      // Also when it was answered already: the block is the next one in the letterbox.
      link.ask(number);
    } catch (BridgeException e) {
      failed(e);
    } catch (RuntimeException e) {
      // On whatever thread the peer's ring was heard: it would be nobody's.
      failed(new BridgeException(BridgeException.Code.PEER_LOST,
          "a block could not be asked for: " + e, wanted.source()));
    }
  }

  @Override
  public void announced(int behind) {
    if (behind < 0 || behind > MAX_BEHIND) {
      failed(new BridgeException(BridgeException.Code.CORRUPT,
          "it says that " + behind + " blocks are behind one", wanted.source()));
      return;
    }
    member.turns.announced(wanted.source(), number + behind);
  }

  @Override
  public void arrived(Header header, byte[] meta) {
    if (end()) {
      counters.increment(Counters.Name.BLOCKS_FETCHED);
      counters.add(Counters.Name.BYTES_FETCHED, header.payloadBytes());
      asker.answer(header, meta);
    }
  }

  @Override
  public void failed(BridgeException error) {
    if (error.code == BridgeException.Code.CORRUPT) {
      counters.increment(Counters.Name.CORRUPT);
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
