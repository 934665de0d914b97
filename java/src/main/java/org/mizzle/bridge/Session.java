package org.mizzle.bridge;

import java.io.IOException;
import java.nio.BufferUnderflowException;
import java.nio.ByteBuffer;
import java.nio.channels.SocketChannel;
import java.nio.file.Files;
import java.security.MessageDigest;
import java.util.Locale;
import jdk.net.ExtendedSocketOptions;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * One Python worker's connection. Reads frames on its own thread; answers may come from any, and
 * never block it. A worker that disappears without leaving is reported to its peers as lost.
 */
final class Session implements Runnable {
  /** Requests; an answer has the same type with the top bit set, an error has type ERROR. */
  static final int HELLO = 1;
  static final int CLAIM = 2;
  static final int REGION = 3;
  static final int JOIN = 4;
  static final int PUT = 5;
  static final int FETCH = 6;
  static final int DROP = 7;
  static final int FENCE = 8;
  static final int ABORT = 9;
  static final int LEAVE = 10;
  static final int LABEL = 11;
  static final int COUNTERS = 12;
  static final int COUNT_BLOCKS = 13;
  static final int CANCEL = 14;
  static final int SERVE = 15;
  static final int HIRE = 16;
  static final int ANSWER = 0x80;
  static final int ERROR = 0xFF;
  /** Who has not said hello by then is no worker, and keeps no thread. */
  private static final long HELLO_MS = 5_000;
  private static final Logger LOG = LoggerFactory.getLogger(Session.class);

  private final Bridge bridge;
  private final SocketChannel channel;
  private final Rank rank;
  private final Staffing staffing;
  private Wire wire;
  private volatile boolean trusted;

  Session(Bridge bridge, SocketChannel channel) {
    this.bridge = bridge;
    this.channel = channel;
    this.rank = new Rank(bridge);
    this.staffing = new Staffing(bridge, new Line());
  }

  @Override
  public void run() {
    try (channel; Wire opened = new Wire(channel)) {
      wire = opened;
      opened.abandonUnless(() -> trusted, bridge.timer(), HELLO_MS);
      Frame frame = wire.next();
      while (frame != null && handle(frame)) {
        frame = wire.next();
      }
    } catch (IOException e) {
      LOG.debug("a worker's connection broke", e);
    } finally {
      staffing.gone();
      rank.gone();
    }
  }

  /** Whether to go on: a frame that is not understood ends the session. */
  private boolean handle(Frame frame) throws IOException {
    try {
      if (frame.type == HELLO && !trusted) {
        hello(frame);
      } else if (trusted) {
        dispatch(frame);
      } else {
        throw new BridgeException(BridgeException.Code.REFUSED, "say hello first");
      }
      return true;
    } catch (BridgeException e) {
      answer(frame.tag, e);
      return trusted;
    } catch (BufferUnderflowException | IllegalArgumentException e) {
      bridge.counters().increment(Counters.Name.REFUSED);
      answer(frame.tag, new BridgeException(BridgeException.Code.REFUSED,
          "frame of type " + frame.type + " not understood: " + e.getMessage()));
      return false;
    }
  }

  private void hello(Frame frame) throws BridgeException, IOException {
    int version = Short.toUnsignedInt(frame.body.getShort());
    byte[] token = frame.bytes(32);
    boolean sameUser = channel.getOption(ExtendedSocketOptions.SO_PEERCRED).user()
        .equals(Files.getOwner(bridge.directory()));
    if (!sameUser || !MessageDigest.isEqual(token, bridge.token())) {
      bridge.counters().increment(Counters.Name.REFUSED);
      throw new BridgeException(BridgeException.Code.REFUSED, "not a worker of this executor");
    }
    if (version != Bridge.PROTOCOL_VERSION) {
      throw new BridgeException(BridgeException.Code.REFUSED, "the bridge speaks version "
          + Bridge.PROTOCOL_VERSION + ", the worker " + version
          + ": driver and executors have different releases of mizzle");
    }
    trusted = true;
    answer(frame, new Frame.Builder().string(bridge.blocks().executorId())
        .string(bridge.blocks().host()).u16(bridge.blocks().port()).string(bridge.hostId())
        .string(bridge.directory().toString()).string(MizzlePlugin.RELEASE));
  }

  private void dispatch(Frame frame) throws BridgeException, IOException {
    switch (frame.type) {
      case CLAIM -> answer(frame, rank.claim(frame));
      case REGION -> answer(frame, rank.region(frame));
      case JOIN -> answer(frame, rank.join(frame, wire::hungUp));
      case PUT -> rank.trade().put(frame);
      case FETCH -> rank.trade().fetch(frame, new Answer(frame.tag));
      case DROP -> rank.trade().drop(frame);
      case CANCEL -> rank.trade().cancel(frame);
      case FENCE -> answer(frame, rank.fence(frame));
      case ABORT -> rank.abort(frame.string());
      case LEAVE -> answer(frame, rank.leave());
      case LABEL -> answer(frame, rank.label(frame));
      case COUNTERS -> answer(frame, counters());
      case COUNT_BLOCKS ->
          answer(frame, new Frame.Builder().u64(bridge.countBlocks(frame.string())));
      case SERVE -> staffing.serve(frame);
      case HIRE -> staffing.hire(frame);
      default -> throw new IllegalArgumentException("unknown type");
    }
  }

  private Frame.Builder counters() {
    Frame.Builder out = new Frame.Builder().u16(Counters.Name.values().length);
    for (Counters.Name name : Counters.Name.values()) {
      out.string(name.name().toLowerCase(Locale.ROOT)).u64(bridge.counters().get(name));
    }
    return out;
  }

  private void answer(Frame request, Frame.Builder body) throws IOException {
    wire.send(body.frame(request.type | ANSWER, request.tag));
  }

  private void answer(int tag, BridgeException e) throws IOException {
    wire.send(error(tag, e));
  }

  static ByteBuffer error(int tag, BridgeException e) {
    return new Frame.Builder().u8(e.code.wire).u32(e.rank).string(e.getMessage())
        .frame(ERROR, tag);
  }

  /** For answers that come from other threads; when the worker is gone there is nobody to tell. */
  private final class Line implements Staffing.Line {
    @Override
    public void send(ByteBuffer frame) {
      try {
        wire.send(frame);
      } catch (IOException e) {
        LOG.debug("the worker that asked is gone", e);
      }
    }

    @Override
    public void close() {
      wire.abandon();
    }
  }

  /** Sends a fetch's outcome. */
  private final class Answer implements Fetch.Asker {
    private final int tag;

    Answer(int tag) {
      this.tag = tag;
    }

    @Override
    public void answer(Header header, byte[] meta) {
      new Line().send(
          new Frame.Builder().raw(header.bytes()).blob(meta).frame(FETCH | ANSWER, tag));
    }

    @Override
    public void answer(BridgeException e) {
      new Line().send(error(tag, e));
    }
  }
}
