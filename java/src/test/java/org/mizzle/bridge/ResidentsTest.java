package org.mizzle.bridge;

import static org.mizzle.bridge.FakeAsker.hires;
import static org.mizzle.bridge.RunTests.check;
import static org.mizzle.bridge.RunTests.equal;
import static org.mizzle.bridge.RunTests.fails;

import java.util.Set;
import java.util.concurrent.ScheduledExecutorService;

final class ResidentsTest {
  private static final String RUN = "r";
  private static final long LONG_MS = 3_600_000;
  private final ScheduledExecutorService timer = Threads.scheduler("timer");
  private int renewals;
  private final Residents residents = residents(LONG_MS, LONG_MS);

  private Residents residents(long idleMs, long graceMs) {
    return new Residents(timer, idleMs, graceMs, () -> renewals++);
  }

  void anIdleOneStartsAndWhoHiredItHearsWhatItSays() throws Exception {
    FakeResident one = new FakeResident(residents);
    FakeAsker asker = hires(residents, RUN, 3, false);
    Order start = one.next(Order.START);
    equal("how", new String(start.payload));
    equal(RUN + 3, start.run + start.generation);
    check(asker.heard.isEmpty(), "it has not started yet");
    one.serve(1, "ready");
    equal("ready", asker.next());
    check(one.orders.isEmpty(), "it waits for its first group");
    equal(Set.of(RUN), residents.runs());
  }

  void whoDoesNotWantToWaitIsToldThatNobodyIsThere() throws Exception {
    equal("nobody", hires(residents, RUN, 0, false).next());
    FakeAsker patient = hires(residents, RUN, 0, true);
    check(patient.heard.isEmpty(), "it waits");
    FakeResident one = new FakeResident(residents);
    one.next(Order.START);
    one.serve(0, "came later");
    equal("came later", patient.next());
  }

  void theLastToBecomeIdleIsHiredFirstUnlessOneServedTheRunBefore() throws Exception {
    FakeResident former = FakeResident.started(residents, RUN, 0, 0);
    residents.end(RUN);
    former.next(Order.RELEASE);
    former.serve(-1, "");
    FakeResident older = new FakeResident(residents);
    FakeResident newer = new FakeResident(residents);
    hires(residents, "other", 0, false);
    equal("other", newer.next(Order.START).run);
    hires(residents, RUN, 1, false);
    equal(RUN, former.next(Order.START).run);
    check(older.orders.isEmpty(), "it was not needed");
  }

  void oneThatFailedToStartIsIdleAgain() throws Exception {
    FakeResident one = new FakeResident(residents);
    FakeAsker asker = hires(residents, RUN, 0, true);
    one.next(Order.START);
    one.serve(-1, "no such model");
    equal("no such model", asker.next());
    equal(Set.of(), residents.runs());
    hires(residents, RUN, 0, true);
    one.next(Order.START);
  }

  void oneThatDiesWhileItStartsFailsTheHire() throws Exception {
    FakeResident one = new FakeResident(residents);
    FakeAsker asker = hires(residents, RUN, 0, true);
    one.next(Order.START);
    one.dies();
    String told = asker.next();
    check(told.startsWith("GONE a rank could not start: process 2147483648 ended: "), told);
  }

  void aHireEndsAtItsDeadlineAndItsResidentComesBack() throws Exception {
    FakeAsker nobody = new FakeAsker();
    residents.hires().add(nobody.hire(RUN, 0, true), 1);
    check(nobody.next().startsWith("TIMEOUT no resident process"), "nobody came");
    FakeResident one = new FakeResident(residents);
    FakeAsker slow = new FakeAsker();
    residents.hires().add(slow.hire(RUN, 0, true), 1);
    check(slow.next().startsWith("TIMEOUT the resident process did not get ready"), "too slow");
    one.next(Order.START);
    one.serve(0, "late");
    one.next(Order.RELEASE);
    check(slow.heard.isEmpty(), "it was told once");
  }

  void whenTheAskerGoesAwayItsResidentIsReleased() throws Exception {
    FakeAsker asker = new FakeAsker();
    Hire waits = asker.hire(RUN, 0, true);
    residents.hires().add(waits, LONG_MS);
    residents.hires().dismiss(waits);
    FakeResident one = new FakeResident(residents);
    check(one.orders.isEmpty(), "nobody wants it");
    Hire starts = asker.hire(RUN, 0, true);
    residents.hires().add(starts, LONG_MS);
    one.next(Order.START);
    residents.hires().dismiss(starts);
    one.serve(0, "ready");
    one.next(Order.RELEASE);
    one.serve(-1, "");
    check(asker.heard.isEmpty(), "it is not there to be told");
    hires(residents, RUN, 0, false);
    one.next(Order.START);
  }

  void aLaterGenerationTakesTheResidentsOfTheEarlierOne() throws Exception {
    FakeResident one = FakeResident.started(residents, RUN, 0, 0);
    FakeAsker first = hires(residents, RUN, 1, false);
    FakeAsker second = hires(residents, RUN, 1, false);
    equal("nobody", second.next());
    check(first.heard.isEmpty(), "one resident is on its way back");
    one.next(Order.RELEASE);
    one.serve(-1, "");
    equal(1, one.next(Order.START).generation);
    one.serve(0, "again");
    equal("again", first.next());
    residents.supersede(RUN, 1);
    check(one.orders.isEmpty(), "only older ones are over");
  }

  void oneOnItsWayBackFromTheSameRunIsBetterThanAnIdleStranger() throws Exception {
    FakeResident kin = FakeResident.started(residents, RUN, 0, 0);
    FakeResident stranger = new FakeResident(residents);
    FakeAsker first = hires(residents, RUN, 1, false);
    check(stranger.orders.isEmpty(), "it does not know the run");
    hires(residents, "other", 0, false);
    equal("other", stranger.next(Order.START).run);
    FakeResident late = new FakeResident(residents);
    hires(residents, RUN, 1, false);
    equal(RUN, late.next(Order.START).run);
    kin.next(Order.RELEASE);
    kin.serve(-1, "");
    equal(RUN, kin.next(Order.START).run);
    kin.serve(0, "again");
    equal("again", first.next());
  }

  void anIdleStrangerIsTakenOnceTheOneThatWasWaitedForHasDied() throws Exception {
    FakeResident kin = FakeResident.started(residents, RUN, 0, 0);
    FakeResident stranger = new FakeResident(residents);
    hires(residents, RUN, 1, true);
    check(stranger.orders.isEmpty(), "it does not know the run");
    kin.dies();
    equal(RUN, stranger.next(Order.START).run);
  }

  void whoWaitsForOneOnItsWayBackIsToldWhenThatDies() throws Exception {
    FakeResident one = FakeResident.started(residents, RUN, 0, 0);
    FakeAsker asker = hires(residents, RUN, 1, false);
    one.next(Order.RELEASE);
    one.dies();
    equal("nobody", asker.next());
  }

  void leasesAreRenewedBeforeAProcessMoreIsStarted() throws Exception {
    FakeResident one = FakeResident.started(residents, "ended", 0, 0);
    FakeAsker asker = hires(residents, RUN, 0, false);
    equal(1, renewals);
    check(asker.heard.isEmpty(), "perhaps the other run has ended");
    residents.end("ended");
    residents.hires().leasesAreFresh();
    one.next(Order.RELEASE);
    one.serve(-1, "");
    equal(RUN, one.next(Order.START).run);
    FakeAsker unlucky = hires(residents, "third", 0, false);
    residents.hires().leasesAreFresh();
    equal("nobody", unlucky.next());
  }

  void anIdleOneEndsAfterAWhile() throws Exception {
    FakeResident one = new FakeResident(residents(1, LONG_MS));
    one.next(Order.EXIT);
    one.dies();
    check(!one.closed.isDone(), "it ended by itself");
  }

  void oneThatIsHiredInTimeDoesNotEnd() throws Exception {
    Residents brief = residents(50, LONG_MS);
    FakeResident one = FakeResident.started(brief, RUN, 0, 0);
    FakeResident other = new FakeResident(brief);
    other.next(Order.EXIT);
    check(one.orders.isEmpty(), "only who is idle ends");
  }

  void anOrderIsDoneOnceAndByItsNumber() throws Exception {
    FakeResident one = FakeResident.started(residents, RUN, 0, 0);
    equal(BridgeException.Code.REFUSED,
        fails(BridgeException.class, () -> one.serve(0, "again")).code);
    residents.end(RUN);
    one.next(Order.RELEASE);
    equal(BridgeException.Code.REFUSED, fails(BridgeException.class,
        () -> residents.served(one.resident, 999, 0, new byte[0])).code);
  }
}
