package org.mizzle.bridge;

import java.nio.charset.StandardCharsets;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;

/** Who hires: sees what it is told, as text. */
final class FakeAsker implements Hire.Asker {
  final BlockingQueue<String> heard = new LinkedBlockingQueue<>();

  /** One that hires there. */
  static FakeAsker hires(Residents residents, String run, int generation, boolean patient) {
    FakeAsker asker = new FakeAsker();
    residents.hires().add(asker.hire(run, generation, patient), TimeUnit.HOURS.toMillis(1));
    return asker;
  }

  /** What it wants. */
  Hire hire(String run, int generation, boolean patient) {
    return new Hire(run, generation, "how".getBytes(StandardCharsets.UTF_8), patient, this);
  }

  @Override
  public void answer(byte[] outcome) {
    heard.add(outcome == null ? "nobody" : new String(outcome, StandardCharsets.UTF_8));
  }

  @Override
  public void answer(BridgeException error) {
    heard.add(error.code + " " + error.getMessage());
  }

  @Override
  public void drop() {
    heard.add("dropped");
  }

  String next() throws InterruptedException {
    return heard.poll(FakeResident.SOON_S, TimeUnit.SECONDS);
  }
}
