package org.mizzle.bridge;

import static org.mizzle.bridge.RunTests.check;
import static org.mizzle.bridge.RunTests.equal;

import java.nio.ByteBuffer;
import java.util.List;
import java.util.Map;
import java.util.Set;

final class RendezvousTest {
  private static final String RUN = "r";
  private long nowMs;
  private final Rendezvous rendezvous = new Rendezvous(() -> nowMs);

  RendezvousTest() {
    rendezvous.begin(RUN);
  }

  private static Join join(long number, int size, long nonce, int wanted, Integer... preferred) {
    return new Join(new Group(RUN, 0, number), size, wanted, List.of(preferred), nonce,
        "e" + nonce, "h", 1, "id", "/c" + nonce);
  }

  private int ask(Join join) {
    return rendezvous.join(join)[0];
  }

  /** The rank in a table, or -1 when the answer is none. */
  private int rank(Join join) {
    byte[] answer = rendezvous.join(join);
    return answer[0] == Join.TABLE ? Byte.toUnsignedInt(answer[1]) : -1;
  }

  void allAreAdmittedOnceAllAreThere() {
    equal(Join.PENDING, ask(join(0, 2, 10, -1)));
    equal(Join.PENDING, ask(join(0, 2, 10, -1)));
    equal(Join.TABLE, ask(join(0, 2, 11, -1)));
    check(rank(join(0, 2, 10, -1)) != rank(join(0, 2, 11, -1)), "ranks differ");
  }

  void theTableIsTheSameForAllButForTheOwnRank() {
    ask(join(0, 2, 10, 1));
    byte[] one = rendezvous.join(join(0, 2, 11, 0));
    byte[] other = rendezvous.join(join(0, 2, 10, 1));
    equal(1, (int) other[1]);
    other[1] = one[1];
    equal(one, other);
    Frame table = new Frame(0, 0, ByteBuffer.wrap(one));
    table.body.position(5);
    equal("e11", table.string());
  }

  void aWantedRankComesBeforeAPreferredOne() {
    ask(join(0, 3, 10, -1, 2));
    ask(join(0, 3, 11, 2));
    equal(Join.TABLE, ask(join(0, 3, 12, -1, 2, 0)));
    equal(2, rank(join(0, 3, 11, 2)));
    equal(0, rank(join(0, 3, 12, -1, 2, 0)));
    equal(1, rank(join(0, 3, 10, -1, 2)));
  }

  void firstChoicesComeBeforeSecondOnes() {
    ask(join(0, 2, 10, -1, 9, 1));
    ask(join(0, 2, 11, -1, 1));
    equal(1, rank(join(0, 2, 11, -1, 1)));
    equal(0, rank(join(0, 2, 10, -1, 9, 1)));
  }

  void aRetryTakesThePlaceOfTheAttemptThatWantedTheSameRank() {
    equal(Join.PENDING, ask(join(0, 3, 10, 0)));
    equal(Join.PENDING, ask(join(0, 3, 13, 0)));
    equal(Join.PENDING, ask(join(0, 3, 11, 1)));
    equal(Join.REFUSED, ask(join(0, 3, 10, 0)));
    equal(Join.TABLE, ask(join(0, 3, 12, 2)));
    equal(0, rank(join(0, 3, 13, 0)));
    equal(1, rank(join(0, 3, 11, 1)));
    equal(2, rank(join(0, 3, 12, 2)));
    equal(Join.REFUSED, ask(join(0, 3, 10, 0)));
  }

  void aForgottenAttemptDoesNotComeBackBeforeItsRetry() {
    ask(join(0, 2, 10, 0));
    nowMs += 5_001;
    ask(join(0, 2, 11, 0));
    equal(Join.REFUSED, ask(join(0, 2, 10, 0)));
    equal(Join.TABLE, ask(join(0, 2, 12, 1)));
    equal(0, rank(join(0, 2, 11, 0)));
  }

  void aWantedRankOutOfRangeIsRefused() {
    equal(Join.REFUSED, ask(join(0, 2, 10, 2)));
    equal(Join.REFUSED, ask(join(0, 2, 10, -2)));
    equal(Join.REFUSED, ask(join(1, 0, 10, -1)));
    equal(Join.PENDING, ask(join(0, 2, 11, 1)));
    equal(Join.TABLE, ask(join(0, 2, 12, -1)));
  }

  void aJoinerThatStopsAskingIsForgotten() {
    ask(join(0, 2, 10, -1));
    nowMs += 5_001;
    equal(Join.PENDING, ask(join(0, 2, 11, -1)));
    equal(Join.TABLE, ask(join(0, 2, 12, -1)));
    equal(Join.REFUSED, ask(join(0, 2, 10, -1)));
  }

  void aJoinerThatWithdrawsIsForgottenAtOnce() {
    ask(join(0, 2, 10, -1));
    rendezvous.withdraw(join(0, 2, 10, -1));
    equal(Join.PENDING, ask(join(0, 2, 11, -1)));
    equal(Join.TABLE, ask(join(0, 2, 12, -1)));
    rendezvous.withdraw(join(0, 2, 12, -1));
    equal(Join.TABLE, ask(join(0, 2, 11, -1)));
  }

  void whoeverComesLaterIsRefused() {
    ask(join(0, 1, 10, -1));
    equal(Join.REFUSED, ask(join(0, 1, 11, -1)));
  }

  void anOlderGroupIsRefusedOnceALaterOneGathers() {
    ask(join(0, 2, 10, -1));
    ask(join(1, 2, 11, -1));
    equal(Join.REFUSED, ask(join(0, 2, 10, -1)));
    equal(Join.TABLE, ask(join(1, 2, 12, -1)));
  }

  void anotherSizeOfTheSameGroupIsRefused() {
    ask(join(0, 2, 10, -1));
    equal(Join.REFUSED, ask(join(0, 3, 11, -1)));
  }

  void aRunThatIsOverAdmitsNobody() {
    rendezvous.end(RUN);
    equal(Join.REFUSED, ask(join(0, 1, 10, -1)));
    equal(Set.of(RUN, "x"), rendezvous.ended(Set.of(RUN, "x")));
    rendezvous.begin("x");
    equal(Set.of(RUN), rendezvous.ended(Set.of(RUN, "x")));
  }

  void theNewestGenerationIsTheOneThatGathersLast() {
    equal(Map.of(), rendezvous.newest(Set.of(RUN, "x")));
    ask(join(0, 2, 10, -1));
    equal(Map.of(RUN, 0), rendezvous.newest(Set.of(RUN, "x")));
    rendezvous.join(new Join(
        new Group(RUN, -1, 0), 1, -1, List.of(), 11, "e", "h", 1, "id", "/c"));
    equal(Map.of(RUN, -1), rendezvous.newest(Set.of(RUN)));
    rendezvous.end(RUN);
    equal(Map.of(), rendezvous.newest(Set.of(RUN)));
  }

  void groupsAreOrderedByGenerationThenNumberUnsigned() {
    check(new Group(RUN, 0, 9).isOlder(new Group(RUN, 1, 0)), "generation");
    check(new Group(RUN, 1, 0).isOlder(new Group(RUN, 1, 1)), "number");
    check(!new Group(RUN, -1, 0).isOlder(new Group(RUN, 1, 0)), "unsigned");
    check(!new Group(RUN, 1, 1).isOlder(new Group(RUN, 1, 1)), "not than itself");
  }
}
