package org.mizzle.bridge;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.List;
import org.apache.spark.network.client.StreamCallback;

/**
 * Receives one block: how many are behind it, its header, meta and payload, the payload straight into
 * an arena while its checksum is taken. Called by one network thread; {@link #cancel} by any. It
 * never throws: that would close the connection. What is not wanted any more is read and thrown away.
 */
final class Sink implements StreamCallback, Intake.Place {
  /** How it went. */
  interface Outcome {
    /** So many blocks wait behind this one; at most once, even when the sink was cancelled. */
    void announced(int behind);

    /** This or {@link #failed}, once. */
    void arrived(Header header, byte[] meta);

    void failed(BridgeException error);
  }

  private static final long READ_MS = 5_000;
  private final byte[] wanted;
  private final int source;
  private final Landing landing;
  private final Intake intake;
  private final Outcome outcome;
  /** What goes in front, then the header. */
  private final ByteBuffer opening =
      ByteBuffer.allocate(Handout.FRONT_BYTES + Header.BYTES).order(ByteOrder.LITTLE_ENDIAN);
  private Header header;
  private byte[] meta;
  /** Bytes of meta and payload that have come. */
  private long received;
  /** Guarded by this, as is what follows: after it is set nothing is written to the arena any more. */
  private boolean done;
  /** Whether the network is writing to the arena now: for the time of one read. */
  private boolean isLent;
  /** Whether the bytes that come next were written to their place already. */
  private boolean inPlace;

  Sink(byte[] wanted, int source, List<ByteBuffer> target, Intake intake, Outcome outcome) {
    this.wanted = wanted;
    this.source = source;
    this.intake = intake;
    this.outcome = outcome;
    landing = new Landing(target);
  }

  @Override
  public void onData(String streamId, ByteBuffer data) {
    if (opening.position() < Handout.FRONT_BYTES) {
      open(data, Handout.FRONT_BYTES);
      if (opening.position() == Handout.FRONT_BYTES) {
        outcome.announced(opening.getInt(0));
      }
    }
    takeAll(data);
    data.position(data.limit());
  }

  private void open(ByteBuffer data, int upTo) {
    int count = Math.min(data.remaining(), upTo - opening.position());
    opening.put(data.slice(data.position(), count));
    data.position(data.position() + count);
  }

  private synchronized void takeAll(ByteBuffer data) {
    try {
      while (!done && data.hasRemaining()) {
        take(data);
      }
    } catch (BridgeException e) {
      end();
      outcome.failed(e);
    }
    inPlace = false;
  }

  private void take(ByteBuffer data) throws BridgeException {
    if (header == null) {
      open(data, opening.capacity());
      if (!opening.hasRemaining()) {
        readHeader();
      }
    } else if (received < meta.length) {
      int count = (int) Math.min(data.remaining(), meta.length - received);
      data.get(meta, (int) received, count);
      landing.crc().update(meta, (int) received, count);
      received += count;
    } else {
      int count = fits() ? landing.take(data, inPlace) : landing.skip(data);
      if (count == 0) {
        throw corrupt("more bytes than announced");
      }
      received += count;
    }
  }

  private void readHeader() throws BridgeException {
    byte[] bytes = new byte[Header.BYTES];
    opening.get(Handout.FRONT_BYTES, bytes);
    header = Header.of(bytes);
    if (!header.isIntact() || !header.hasIdentity(wanted)) {
      throw corrupt("the block's header is damaged or not that of the block asked for");
    }
    if (header.metaBytes() < 0 || header.metaBytes() > Header.MAX_META_BYTES) {
      throw corrupt("impossible meta length");
    }
    meta = new byte[header.metaBytes()];
    intake.expect(this);
  }

  /**
   * Too long a payload is not an error here: Python learns the length and the meta, and can say what
   * the peer meant instead. The bytes are only checked.
   */
  private boolean fits() {
    return header.payloadBytes() <= landing.capacity;
  }

  private BridgeException corrupt(String why) {
    return new BridgeException(BridgeException.Code.CORRUPT, why, source);
  }

  @Override
  public synchronized ByteBuffer lend(int bytes) {
    if (done || header == null || received < meta.length || !fits()) {
      return null;
    }
    long left = header.payloadBytes() - (received - meta.length);
    ByteBuffer lent = left > 0 ? landing.lend(Math.min(bytes, left)) : null;
    isLent = lent != null;
    return lent;
  }

  @Override
  public synchronized void lent(int bytes) {
    isLent = false;
    inPlace = bytes > 0;
    notifyAll();
  }

  @Override
  public synchronized void onComplete(String streamId) {
    if (done) {
      return;
    }
    end();
    if (opening.position() == Handout.FRONT_BYTES && !Handout.isPresent(opening)) {
      outcome.failed(new BridgeException(BridgeException.Code.NOT_FOUND,
          "rank " + source + " does not have it (any more)", source));
    } else if (header == null || received != meta.length + header.payloadBytes()) {
      outcome.failed(corrupt("the block was cut short"));
    } else if (header.bodyMatches(landing.crc())) {
      outcome.arrived(header, meta);
    } else {
      outcome.failed(corrupt("the block fails its CRC32C"));
    }
  }

  @Override
  public synchronized void onFailure(String streamId, Throwable cause) {
    if (!done) {
      end();
      outcome.failed(new BridgeException(BridgeException.Code.PEER_LOST,
          "the connection broke before a block was here: " + cause, source));
    }
  }

  private void end() {
    done = true;
    intake.expect(null);
  }

  /**
   * Stops writing to the arena; the outcome is not told. Waits for a read that is under way, which
   * is never long: the bytes are there. Else the connection is closed, so that none follows.
   * Returns false when it had ended.
   */
  boolean cancel() {
    return cancel(Deadline.afterMs(READ_MS));
  }

  synchronized boolean cancel(Deadline deadline) {
    boolean was = done;
    done = true;
    if (!deadline.await(this, () -> !isLent)) {
      intake.close();
    }
    return !was;
  }
}
