package org.mizzle.bridge;

import static org.mizzle.bridge.RunTests.equal;
import static org.mizzle.bridge.RunTests.fails;

import java.util.ArrayList;
import java.util.List;

final class TurnsTest {
  private final Turns turns = new Turns();
  private final List<String> heard = new ArrayList<>();

  private Turns.Waiter waiter(String name) {
    return new Turns.Waiter() {
      @Override
      public void ready() {
        heard.add(name);
      }

      @Override
      public void failed(BridgeException error) {
        heard.add(name + " " + error.code + " " + error.rank);
      }
    };
  }

  private static BridgeException lost(int peer) {
    return new BridgeException(BridgeException.Code.PEER_LOST, "gone", peer);
  }

  void aRingBeforeItsWaitIsKept() {
    turns.rang(1);
    turns.await(1, waiter("a"));
    turns.await(1, waiter("b"));
    equal(List.of("a"), heard);
    turns.rang(1);
    equal(List.of("a", "b"), heard);
  }

  void waitsAreReadyInTheirOrderAndPeerByPeer() {
    turns.await(1, waiter("a"));
    turns.await(2, waiter("x"));
    turns.await(1, waiter("b"));
    turns.rang(2);
    turns.rang(1);
    turns.rang(1);
    equal(List.of("x", "a", "b"), heard);
  }

  void whatAPeerAnnouncesIsCountedFromItsFirstBlock() {
    turns.await(1, waiter("a"));
    turns.await(1, waiter("b"));
    turns.await(1, waiter("c"));
    turns.rang(1);
    turns.announced(1, 1);
    equal(List.of("a"), heard);
    turns.announced(1, 3);
    equal(List.of("a", "b", "c"), heard);
    turns.announced(1, 4);
    turns.await(1, waiter("d"));
    turns.await(1, waiter("e"));
    equal(List.of("a", "b", "c", "d"), heard);
    turns.announced(1, 2);
    turns.rang(1);
    equal(List.of("a", "b", "c", "d", "e"), heard);
  }

  void aLostPeerFailsItsWaitsNowAndLaterButNotWhatItHadSent() {
    turns.rang(1);
    turns.rang(1);
    turns.await(1, waiter("a"));
    turns.await(2, waiter("x"));
    RunTests.check(turns.lost(1, lost(1)), "news");
    RunTests.check(!turns.lost(1, lost(1)), "no news");
    turns.await(1, waiter("b"));
    turns.await(1, waiter("c"));
    equal(List.of("a", "b", "c PEER_LOST 1"), heard);
    turns.giveUp(lost(1));
    turns.await(2, waiter("y"));
    equal(List.of("a", "b", "c PEER_LOST 1", "x PEER_LOST 1", "y PEER_LOST 1"), heard);
  }

  void afterGivingUpWhatCameIsStillReady() {
    turns.rang(2);
    turns.giveUp(lost(1));
    turns.await(2, waiter("a"));
    equal(List.of("a"), heard);
  }

  void theEndFailsWaitsAndTransfersOnceAndAllThatCome() throws BridgeException {
    turns.await(1, waiter("a"));
    Turns.Waiter transfer = waiter("t");
    Turns.Waiter finished = waiter("f");
    turns.started(transfer);
    turns.started(finished);
    turns.finished(finished);
    turns.rang(2);
    turns.end(new BridgeException(BridgeException.Code.FENCED, "old"));
    turns.end(new BridgeException(BridgeException.Code.TIMEOUT, "later"));
    turns.await(2, waiter("b"));
    equal(List.of("a FENCED -1", "t FENCED -1", "b FENCED -1"), heard);
    equal(BridgeException.Code.FENCED,
        fails(BridgeException.class, () -> turns.started(transfer)).code);
    RunTests.check(!turns.lost(1, lost(1)), "no loss after the end");
  }
}
