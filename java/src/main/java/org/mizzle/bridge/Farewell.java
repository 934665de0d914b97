package org.mizzle.bridge;

import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import org.apache.spark.network.client.StreamCallback;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * How a member that gives up tells its peers, and how it hears it of them: it leaves its reason as a
 * block and rings each peer's alarm; who hears an alarm fetches the reason. Never blocks.
 */
final class Farewell {
  private static final int MAX_REASON_BYTES = 8 * 1024;
  private static final String UNKNOWN = "it gave up";
  private static final Logger LOG = LoggerFactory.getLogger(Farewell.class);

  private final Peers peers;
  private final Member member;

  Farewell(Peers peers, Member member) {
    this.peers = peers;
    this.member = member;
  }

  /** Tells every peer that is connected, and ends the member's own waits; only the first time. */
  void abort(String why) {
    if (member.turns.hasEnded()) {
      return;
    }
    try {
      byte[] text = why.getBytes(StandardCharsets.UTF_8);
      member.shelf.leave(member.group.reason(member.nonce), text);
    } catch (BridgeException | RuntimeException e) {
      // The peers learn of the loss all the same, only not why.
      LOG.debug("no reason left behind", e);
    }
    for (Member.Peer peer : member.others()) {
      try {
        peers.ring(member.link(peer.rank()).client(), peer.executorId(),
            member.group.alarm(peer.nonce(), member.rank()),
            error -> LOG.debug("rank {} was not told: {}", peer.rank(), error.toString()));
      } catch (BridgeException | RuntimeException e) {
        // Never connected, so it hears of it when it asks for something; the others must be told.
        LOG.debug("rank {} cannot be told", peer.rank(), e);
      }
    }
    member.turns.end(
        new BridgeException(BridgeException.Code.PEER_LOST, why, member.rank()));
  }

  /** A peer gives up; its reason is a block of its own, which may be gone. */
  void askWhy(int from) {
    try {
      Member.Peer peer = member.peer(from);
      peers.fetch(member.link(from).client(), peer.executorId(),
          member.group.reason(peer.nonce()), new Reason(from),
          error -> member.lost(from, UNKNOWN));
    } catch (BridgeException | RuntimeException e) {
      member.lost(from, UNKNOWN);
    }
  }

  /** Collects a peer's reason; used by one network thread. */
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
      member.lost(from, UNKNOWN);
    }
  }
}
