package org.mizzle.bridge;

import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.List;

/**
 * A session's part in the life of residents: it is the connection of one, or that of a task which
 * hires some. Requests come from the session's thread, orders and answers from any.
 */
final class Staffing implements Resident.Seat {
  /** The connection; neither call blocks or throws. */
  interface Line {
    void send(ByteBuffer frame);

    void close();
  }

  private final Bridge bridge;
  private final Line line;
  /** Null until it has served; the session's thread only, as is the next. */
  private Resident resident;
  private final List<Hire> hires = new ArrayList<>();
  /** Of the SERVE that the next order answers. */
  private volatile int tag;

  Staffing(Bridge bridge, Line line) {
    this.bridge = bridge;
    this.line = line;
  }

  /** A resident has done what it was told, if it was, and waits for the next order. */
  void serve(Frame frame) throws BridgeException {
    long pid = Integer.toUnsignedLong(frame.body.getInt());
    long serial = frame.body.getLong();
    int rank = frame.body.getInt();
    byte[] outcome = frame.blob();
    tag = frame.tag;
    if (resident != null) {
      bridge.residents().served(resident, serial, rank, outcome);
    } else if (serial == 0) {
      resident = bridge.residents().enter(pid, this);
    } else {
      throw new BridgeException(BridgeException.Code.REFUSED,
          "order " + serial + " was given to another session: a resident keeps its connection");
    }
  }

  @Override
  public void give(Order order) {
    line.send(answer(order, tag));
  }

  static ByteBuffer answer(Order order, int tag) {
    return new Frame.Builder().u64(order.serial).u8(order.kind).string(order.run)
        .u32(order.generation).blob(order.payload).frame(Session.SERVE | Session.ANSWER, tag);
  }

  /** {@code outcome} null: there is nobody. */
  static ByteBuffer answer(byte[] outcome, int tag) {
    Frame.Builder out = outcome == null
        ? new Frame.Builder().u8(0) : new Frame.Builder().u8(1).blob(outcome);
    return out.frame(Session.HIRE | Session.ANSWER, tag);
  }

  @Override
  public void close() {
    line.close();
  }

  /** A task wants a resident; the answer is what that one says when it has started. */
  void hire(Frame frame) throws BridgeException {
    String run = frame.string();
    int generation = frame.body.getInt();
    boolean patient = frame.body.get() != 0;
    long timeoutMs = Integer.toUnsignedLong(frame.body.getInt());
    byte[] payload = frame.blob();
    bridge.runs().check(run, generation);
    Hire hire = new Hire(run, generation, payload, patient, new Answer(frame.tag));
    hires.removeIf(Hire::isOver);
    hires.add(hire);
    bridge.residents().hires().add(hire, timeoutMs);
  }

  /** The connection ended: the resident is dead, the task needs none. */
  void gone() {
    if (resident != null) {
      bridge.residents().gone(resident);
    }
    hires.forEach(bridge.residents().hires()::dismiss);
  }

  private final class Answer implements Hire.Asker {
    private final int tag;

    Answer(int tag) {
      this.tag = tag;
    }

    @Override
    public void answer(byte[] outcome) {
      line.send(Staffing.answer(outcome, tag));
    }

    @Override
    public void answer(BridgeException error) {
      line.send(Session.error(tag, error));
    }

    @Override
    public void drop() {
      line.close();
    }
  }
}
