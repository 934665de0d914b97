"""Every asynchronous call of the bridge is made to throw by some test: none may fail in silence.

A training framework before this one threw away the futures of its gradient exchange, and with them their errors
(BigDL, AllReduceParameter.aggregateGradientPartition). Here a call that is new, and has no test yet, fails this file.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
JAVA = ROOT / "java" / "src"
MAIN = sorted((JAVA / "main").rglob("*.java"))

CALLS: dict[str, tuple[int, tuple[str, ...]]] = {
    "Bridge.java execute": (2, ("AsyncWorkTest.aWorkerForWhomThereIsNoThreadIsSentAway",
                                "GroupAttemptTest.aKilledTasksProcessThatDoesNotComeBackIsKilled")),
    "Fetch.java schedule": (1, ("AsyncCallsTest.withoutATimerAFetchIsRefused",)),
    "GroupJobs.java repeat": (1, ("DeadlineTest.whatFailsIsTriedAgainWhereItIsToBeRepeated",)),
    "GroupResults.java schedule": (1, ("AsyncWorkTest.withoutATimerAFailedRankEndsTheJob",)),
    "Hires.java schedule": (1, ("AsyncWorkTest.withoutATimerNobodyIsHiredOrKeptInVain",)),
    "Hires.java thenAccept": (1, ("AsyncWorkTest.whoCannotBeToldHowARankStartedIsLetGo",)),
    "JobWatch.java repeat": (1, ("JobWatchTest.whatCouldNotBeCancelledIsTriedAgain",)),
    "LeaseAnswers.java execute": (1, ("LeaseAnswersTest.whereNoThreadCanBeMadeItIsTriedAgain",
                                      "LeaseAnswersTest.whatCannotBeRemovedEndsNoLeaseAndKeepsNoOtherFromIt")),
    "Leases.java execute": (2, ("AsyncWorkTest.aReportThatThrowsIsSentAgain",
                                "AsyncWorkTest.whoCannotAskForFreshLeasesIsNotLeftWaiting")),
    "Leases.java repeat": (3, ("DeadlineTest.whatFailsIsTriedAgainWhereItIsToBeRepeated",
                               "LeaseTest.oneThatCannotBeEndedKeepsNoOtherFromIt")),
    "Leases.java schedule": (2, ("AsyncWorkTest.aReportThatThrowsIsSentAgain",)),
    "DriverSide.java repeat": (1, ("DeadlineTest.whatFailsIsTriedAgainWhereItIsToBeRepeated",)),
    "Member.java schedule": (1, ("AsyncCallsTest.withoutATimerALossIsToldAtOnce",)),
    "PeerLink.java execute": (1, ("AsyncCallsTest.anEventLoopThatTakesNothingFailsTheFetch",)),
    "PeerLink.java fetchChunk": (1, ("AsyncCallsTest.aBellThatCannotBeRungIsUnheard",)),
    "PeerLink.java stream": (1, ("AsyncCallsTest.aBlockThatCannotBeAskedForFailsItsFetch",
                                 "AsyncCallsTest.aBlockThatDoesNotComeFailsItsFetch")),
    "Peers.java addListener": (1, ("AsyncCallsTest.aConnectionThatClosesIsNoticed",)),
    "Peers.java fetchChunk": (1, ("AsyncCallsTest.aPeerThatCannotBeToldKeepsNoOtherFromBeingTold",)),
    "Peers.java sendRpc": (1, ("AsyncCallsTest.aLetterboxThatCannotBeOpenedFailsItsFetch",
                               "AsyncCallsTest.aLetterboxThatIsNotOpenedFailsItsFetch",
                               "AsyncCallsTest.anAnswerThatIsNoStreamFailsItsFetch")),
    "Peers.java stream": (1, ("AsyncCallsTest.aReasonThatCannotBeAskedForIsALossAllTheSame",)),
    "Reception.java execute": (1, ("AsyncWorkTest.aWorkerForWhomThereIsNoThreadIsSentAway",)),
    "Removals.java execute": (1, ("AsyncWorkTest.aBlockThatCannotBeRemovedKeepsNoOtherFromIt",)),
    "Removals.java schedule": (1, ("RemovalsTest.oneThatCannotBeRemovedDoesNotStopTheOthers",)),
    "Replacements.java Thread": (1, ("AsyncWorkTest.whatSparkDoesNotTakeIsToldAgain",)),
    "Residents.java schedule": (1, ("AsyncWorkTest.withoutATimerNobodyIsHiredOrKeptInVain",)),
    "Threads.java Thread": (1, ("AsyncWorkTest.aWorkerForWhomThereIsNoThreadIsSentAway",)),
    "Threads.java scheduleWithFixedDelay": (1, ("DeadlineTest.whatFailsIsTriedAgainWhereItIsToBeRepeated",)),
    "Wire.java schedule": (1, ("WireTest.withoutATimerNobodyIsWaitedFor",)),
}  # fmt: skip
"""By file and call: how many there are, and the tests in which they throw, or what they run does."""

_COMMENT_OR_TEXT = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"', re.DOTALL)
_CALL = re.compile(
    r"\.(sendRpc|fetchChunk|stream|uploadBlock|uploadStream|fetchBlocks|sendMergedBlockMetaReq|execute|submit"
    r"|invokeAll|schedule|scheduleAtFixedRate|scheduleWithFixedDelay|addListener|supplyAsync|runAsync"
    r"|then(?:Accept|Apply|Run|Compose|Combine)(?:Async)?|when(?:Complete|Done)(?:Async)?|handle(?:Async)?)"
    r"\((?!\s*\))"
    r"|\bThreads\.(repeat)\(|\bnew (Thread)\("
)


def calls(text: str) -> list[str]:
    """The asynchronous calls of a source, by name; ``collection.stream()`` is none."""
    plain = _COMMENT_OR_TEXT.sub("", text)
    return [next(group for group in found.groups() if group) for found in _CALL.finditer(plain)]


def test_every_asynchronous_call_has_a_test_in_which_it_throws() -> None:
    met = Counter(f"{path.name} {call}" for path in MAIN for call in calls(path.read_text(encoding="utf-8")))
    listed = {what: count for what, (count, _) in CALLS.items()}
    assert dict(met) == listed, "a call that is new needs a test, one that is gone an entry less"


@pytest.mark.parametrize("test", sorted({test for _, tests in CALLS.values() for test in tests}))
def test_the_tests_that_are_named_are_there(test: str) -> None:
    source, _, method = test.partition(".")
    (path,) = JAVA.rglob(f"test/**/{source}.java")
    assert re.search(rf"^  void {method}\(\)", path.read_text(encoding="utf-8"), re.MULTILINE), test


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("client.sendRpc(request, callback);", ["sendRpc"]),
        ("service.fetchBlocks(host, port, executor, ids, listener, null);", ["fetchBlocks"]),
        ("pool.submit(() -> add(a));", ["submit"]),
        ("pool.invokeAll(tasks);", ["invokeAll"]),
        ("timer\n    .schedule(this::look, 5, TimeUnit.SECONDS);", ["schedule"]),
        ("done.thenAccept(this::tell).exceptionally(e -> null);", ["thenAccept"]),
        ("CompletableFuture.supplyAsync(this::sum);", ["supplyAsync"]),
        ("Threads.repeat(timer, 5, this::look);", ["repeat"]),
        ("new Thread(this::look).start();", ["Thread"]),
        ("channel.closeFuture().addListener(gone);", ["addListener"]),
        ("names.stream().map(this::name); // pool.submit(task)", []),
    ],
)
def test_an_asynchronous_call_is_found(text: str, found: list[str]) -> None:
    assert calls(text) == found
