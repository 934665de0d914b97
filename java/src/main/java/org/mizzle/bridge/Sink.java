package org.mizzle.bridge;

import java.nio.ByteBuffer;
import java.util.List;
import java.util.zip.CRC32C;
import org.apache.spark.network.client.StreamCallback;

/**
 * Receives one block: header, meta and payload, the payload straight into an arena while its
 * checksum is taken. Called by one network thread; {@link #cancel} by any. It never throws: that
 * would close the connection, which other ranks and runs use as well. What is not wanted any more
 * is read and thrown away.
 */
final class Sink implements StreamCallback {
  /** Told exactly once how it ended. */
  interface Outcome {
    void arrived(Header header, byte[] meta);

    void failed(BridgeException error);
  }

  private final byte[] wanted;
  private final int source;
  private final List<ByteBuffer> target;
  private final long capacity;
  private final Outcome outcome;
  private final byte[] headerBytes = new byte[Header.BYTES];
  private final CRC32C crc = new CRC32C();
  private Header header;
  private byte[] meta;
  private long received;
  private int targetAt;
  /** Whether the payload is longer than its place, so that its bytes are only checked. */
  private boolean discard;
  /** Guarded by this: after it is set nothing is written to the arena any more. */
  private boolean done;

  Sink(byte[] wanted, int source, List<ByteBuffer> target, Outcome outcome) {
    this.wanted = wanted;
    this.source = source;
    this.target = target;
    this.outcome = outcome;
    capacity = target.stream().mapToLong(ByteBuffer::remaining).sum();
  }

  @Override
  public synchronized void onData(String streamId, ByteBuffer data) {
    try {
      while (!done && data.hasRemaining()) {
        take(data);
      }
    } catch (BridgeException e) {
      done = true;
      outcome.failed(e);
    }
    data.position(data.limit());
  }

  private void take(ByteBuffer data) throws BridgeException {
    if (received < Header.BYTES) {
      int count = (int) Math.min(data.remaining(), Header.BYTES - received);
      data.get(headerBytes, (int) received, count);
      received += count;
      if (received == Header.BYTES) {
        readHeader();
      }
      return;
    }
    long bodyAt = received - Header.BYTES;
    int count;
    if (bodyAt < meta.length) {
      count = (int) Math.min(data.remaining(), meta.length - bodyAt);
      data.get(meta, (int) bodyAt, count);
      crc.update(meta, (int) bodyAt, count);
    } else {
      count = writePayload(data);
    }
    received += count;
  }

  private int writePayload(ByteBuffer data) throws BridgeException {
    if (discard) {
      int all = data.remaining();
      crc.update(data);
      return all;
    }
    while (targetAt < target.size() && !target.get(targetAt).hasRemaining()) {
      targetAt++;
    }
    if (targetAt == target.size()) {
      throw new BridgeException(BridgeException.Code.CORRUPT, "more bytes than announced", source);
    }
    ByteBuffer into = target.get(targetAt);
    int count = Math.min(data.remaining(), into.remaining());
    ByteBuffer part = data.slice(data.position(), count);
    crc.update(part.duplicate());
    into.put(part);
    data.position(data.position() + count);
    return count;
  }

  private void readHeader() throws BridgeException {
    header = Header.of(headerBytes);
    if (!header.isIntact() || !header.hasIdentity(wanted)) {
      throw new BridgeException(BridgeException.Code.CORRUPT,
          "the block's header is damaged or not that of the block asked for", source);
    }
    if (header.metaBytes() < 0 || header.metaBytes() > Header.MAX_META_BYTES) {
      throw new BridgeException(BridgeException.Code.CORRUPT, "impossible meta length", source);
    }
    meta = new byte[header.metaBytes()];
    // Too long a payload is not an error here: Python learns the length and the meta, and can say
    // what the peer meant instead. The bytes are only checked.
    discard = header.payloadBytes() > capacity;
  }

  @Override
  public synchronized void onComplete(String streamId) {
    if (done) {
      return;
    }
    done = true;
    boolean whole = header != null
        && received == Header.BYTES + meta.length + header.payloadBytes();
    if (whole && header.bodyMatches(crc)) {
      outcome.arrived(header, meta);
    } else {
      outcome.failed(new BridgeException(BridgeException.Code.CORRUPT,
          whole ? "the block fails its CRC32C" : "the block was cut short", source));
    }
  }

  @Override
  public synchronized void onFailure(String streamId, Throwable cause) {
    if (!done) {
      done = true;
      outcome.failed(new BridgeException(BridgeException.Code.PEER_LOST,
          "the connection broke within a block: " + cause, source));
    }
  }

  /** Stops writing to the arena; the outcome is not told. Returns false when it had ended. */
  synchronized boolean cancel() {
    boolean was = done;
    done = true;
    return !was;
  }
}
