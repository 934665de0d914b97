package org.mizzle.bridge;

import java.nio.charset.StandardCharsets;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;

/** A resident whose process is the test: it sees its orders, and serves when it is told to. */
final class FakeResident implements Resident.Seat {
  /** Nobody waits longer for anything. */
  static final long SOON_S = 20;
  /** No process has it: Linux ends at 2^22. */
  static final long NO_PID = 1L << 31;

  final BlockingQueue<Order> orders = new LinkedBlockingQueue<>();
  final CompletableFuture<Void> closed = new CompletableFuture<>();
  final Resident resident;
  private final Residents residents;
  private long serial;

  FakeResident(Residents residents, long pid) {
    this.residents = residents;
    resident = residents.enter(pid, this);
  }

  FakeResident(Residents residents) {
    this(residents, NO_PID);
  }

  /** One that has started as that rank of the generation. */
  static FakeResident started(Residents residents, String run, int generation, int rank)
      throws Exception {
    FakeResident made = new FakeResident(residents);
    residents.hires().add(new Hire(run, generation, new byte[0], true, new FakeAsker()), 60_000);
    made.next(Order.START);
    made.serve(rank, "ready");
    return made;
  }

  @Override
  public void give(Order order) {
    orders.add(order);
  }

  @Override
  public void close() {
    closed.complete(null);
  }

  /** The next order, which must be of that kind. */
  Order next(int kind) throws InterruptedException {
    Order order = orders.poll(SOON_S, TimeUnit.SECONDS);
    RunTests.check(order != null, "an order of kind " + kind + " comes");
    RunTests.equal(kind, order.kind);
    serial = order.serial;
    return order;
  }

  void serve(int rank, String outcome) throws BridgeException {
    residents.served(resident, serial, rank, outcome.getBytes(StandardCharsets.UTF_8));
  }

  void dies() {
    residents.gone(resident);
  }

  boolean isClosedSoon() throws Exception {
    closed.get(SOON_S, TimeUnit.SECONDS);
    return true;
  }
}
