package org.mizzle.bridge;

import static org.mizzle.bridge.RunTests.check;

import java.time.Instant;
import java.util.Optional;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;

final class ResidentTest {
  private static final long LONG_MS = 3_600_000;
  private final ScheduledExecutorService timer = Threads.scheduler("timer");
  private final Residents strict = new Residents(timer, LONG_MS, 1, () -> { });

  private static Process process() throws Exception {
    return new ProcessBuilder("sleep", "3600").start();
  }

  void oneThatDoesNotComeBackIsKilled() throws Exception {
    Process process = process();
    FakeResident one = new FakeResident(strict, process.pid());
    strict.hires().add(new Hire("r", 0, new byte[0], true, new FakeAsker()), LONG_MS);
    one.next(Order.START);
    one.serve(0, "ready");
    strict.end("r");
    check(one.isClosedSoon(), "its connection ends too");
    check(process.waitFor(FakeResident.SOON_S, TimeUnit.SECONDS), "it is dead");
  }

  void anotherProcessThatHasItsNumberNowIsNotKilled() throws Exception {
    Process process = process();
    try {
      FakeResident seat = new FakeResident(strict);
      new Resident(process.pid(), Optional.of(Instant.EPOCH), seat).destroy();
      check(seat.closed.isDone(), "the connection ends");
      check(process.isAlive(), "the other process goes on");
    } finally {
      process.destroyForcibly();
    }
  }
}
