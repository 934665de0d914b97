"""What the driver does about a fault: wait until it knows who is left, and give up when nothing helps."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import dataclass

from mizzle.blocks.deadline import Deadline
from mizzle.errors import CollectiveTimeout, MizzleError, PeerLost, PeerUnreachable, Recoverable
from mizzle.spark.ranks.outcome import Outcome
from mizzle.training.history import FaultRecord

_log = logging.getLogger(__name__)
_MOST_OF_ONE = 3
"""Faults that name the same rank without a boundary between them: what it does there kills it."""
_MOST_LATE, _LATE_S = 2, 60.0
"""Deadlines that passed without anybody being lost: who hangs in code of the user's will hang again. Where nobody does,
they must pass for so long, too: a network may be whole again, and two short ones are soon over."""
_MOST, _BROKEN_S = 10, 120.0
"""Faults of any kind. Where connections broke and nobody ended, they must go on for so long, and so must deadlines that
pass in between: a try takes seconds."""
_VERDICT_S = 3.0
"""How long Spark may take to find out that an executor is gone whose connections have closed."""
_LOOK_AGAIN_S = 0.02
_PATIENCE_S = 30.0
"""Until another executor is given up: a network may be whole again, and two may hold all copies of a state."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0


@dataclass(frozen=True, slots=True)
class Signs:
    """What the last try, to settle or to run a group, has shown of those that take part.

    Attributes:
        silent: executors of which nothing was heard.
        dead: ranks whose processes ended.
        given_up: whether an executor was, because others could not reach it.
        hangs: whether a rank may have made the others wait: the network has not kept them apart.
    """

    silent: tuple[str, ...] = ()
    dead: frozenset[int] = frozenset()
    given_up: bool = False
    hangs: bool = False


class Faults:
    """The faults of a run.

    Attributes:
        survived: those that the run is over.
    """

    def __init__(self, run: str) -> None:
        """None so far."""
        self.survived: list[FaultRecord] = []
        self._run = run
        self._named: Counter[int] = Counter()
        self._late, self._late_since = 0, 0.0
        self._first_at, self._is_breaking = 0.0, False
        self._noticed: tuple[str, float] | None = None

    def notice(self, cause: str) -> None:
        """One has come to light."""
        _log.warning("run=%s %s", self._run[:4], cause)
        if self._noticed is None:
            self._noticed = cause, time.time()

    def count(self, error: Recoverable, *, ended: bool = True, given_up: bool = False, hangs: bool = True) -> None:
        """Make sure that running it again may help.

        Args:
            error: what the group, or the ranks' coming together, has failed of.
            ended: whether the rank that it names has really ended; otherwise peers have lost it, and that is as much
                their fault.
            given_up: whether somebody has been given up for it: then a deadline was no sign of code that hangs.
            hangs: whether it may have been one: ranks have waited for one that did not wait itself.

        Raises:
            MizzleError: ``error`` itself: it has not helped.
        """
        rank = error.rank if isinstance(error, PeerLost) and ended else -1
        self._first_at = self._first_at if self._named else time.monotonic()
        self._named[rank] += 1
        if isinstance(error, CollectiveTimeout) and not given_up:
            self._late_since = self._late_since if self._late else time.monotonic()
            self._late += 1
        again = rank >= 0 and self._named[rank] >= _MOST_OF_ONE
        late = self._late >= _MOST_LATE and (hangs or time.monotonic() - self._late_since >= _LATE_S)
        many = self._named.total() >= _MOST
        may_heal = self._may_heal(error, ended=ended)
        if again or ((late or many) and not may_heal):
            error.add_note(f"it was tried {self._named.total()} times from the same boundary")
            raise error

    def _may_heal(self, error: Recoverable, *, ended: bool) -> bool:
        """Whether it is a network's doing that breaks connections, and has not done so for long."""
        broken = isinstance(error, PeerLost) and not ended
        self._is_breaking |= broken
        is_networks = broken or (self._is_breaking and isinstance(error, CollectiveTimeout))
        return is_networks and time.monotonic() - self._first_at < _BROKEN_S

    def over(self, boundary: int, ranks: int) -> None:
        """What was ordered is done, by that many ranks."""
        if self._noticed is not None:
            cause, noticed_at = self._noticed
            self._noticed = None
            self.survived.append(FaultRecord(boundary, cause, ranks, noticed_at, time.time()))

    def forget(self) -> None:
        """There is a new boundary."""
        self._named.clear()
        self._late, self._is_breaking = 0, False


class Retries:
    """How long a busy cluster may put tasks away from their ranks: again and again, in growing pauses."""

    def __init__(self, timeout_s: float) -> None:
        """Begin."""
        self._deadline = Deadline.after(timeout_s)
        self._pause_s = _FIRST_PAUSE_S
        self._paused = threading.Event()

    def pause_or_raise(self, error: MizzleError) -> None:
        """Wait before the next try; once the time is up, raise."""
        if self._deadline.passed:
            error.add_note("other jobs took the task slots beside this run's ranks: give the application more slots")
            raise error
        self._paused.wait(min(self._pause_s, self._deadline.remaining_s()))
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)


Report = tuple[str, str]
"""An executor, and another one that it cannot reach."""


def cut_off(reports: Collection[Report]) -> str | None:
    """Which executor to go on without, where some cannot reach others and the driver reaches all of them. Pure.

    The one that most others cannot reach: of a network in two parts that is one of the smaller part, one after the
    other. Where as many speak against several, the one of these that speaks against most itself; of these, the last in
    order: any will do, as long as all are not given up for one broken link.
    """
    against: dict[str, set[str]] = {}
    for who, whom in reports:
        if who != whom:
            against.setdefault(whom, set()).add(who)
    if not against:
        return None
    complaints = Counter(who for who, whom in set(reports) if who != whom)
    return max(against, key=lambda executor: (len(against[executor]), complaints[executor], executor))


def out_of_touch(late: Mapping[int, CollectiveTimeout]) -> bool:
    """Whether ranks that waited for each other in vain were kept apart by the network. Pure.

    Of two of which one computes, or hangs, only the other one waits. Where those who waited had nothing from anybody,
    the deadline may as well be too short.

    Args:
        late: by rank, the deadline that it saw pass.
    """
    found = {(who, whom) for who, error in late.items() for whom in error.missing}
    return any(error.heard for error in late.values()) and any((whom, who) in found for who, whom in found)


class Unreachable:
    """Executors that others cannot reach: they are given up, one after the other.

    Once may be chance: who cannot be connected to twice in a row is given up. When executors have waited for each other
    in vain until a deadline, once is enough.

    Attributes:
        is_cut: whether ranks of the last group were kept apart by the network.

    Args:
        run: the run's id.
        replace: has Spark end an executor, and start another one; None: nobody else can do its work.
    """

    def __init__(self, run: str, replace: Callable[[str], None] | None) -> None:
        """None so far."""
        self._run, self._replace = run, replace
        self.is_cut = False
        self._suspect: str | None = None
        self._patience: Deadline | None = None

    def give_up(self, outcomes: Sequence[Outcome], executors: Sequence[str]) -> tuple[str, ...]:
        """Whom to go on without, after ranks have tried to come together: at most one, which is being replaced.

        Args:
            outcomes: how that ended for each of them.
            executors: by rank, where it was to be.
        """
        reports = [
            (outcome.executor_id, executors[error.rank]) for outcome, error in _errors(outcomes)
            if isinstance(error, PeerUnreachable) and error.rank < len(executors)
        ]  # fmt: skip
        before, self._suspect = self._suspect, cut_off(reports)
        return self._without(self._suspect if self._suspect == before else None)

    def give_up_missed(self, outcomes: Sequence[Outcome], executors: Sequence[str]) -> tuple[str, ...]:
        """Whom to go on without, after a group in which a deadline has passed: at most one, which is being replaced.

        Args:
            outcomes: how the group ended for ranks.
            executors: by rank, where it was.
        """
        late = {
            outcome.rank: error for outcome, error in _errors(outcomes)
            if isinstance(error, CollectiveTimeout) and 0 <= outcome.rank < len(executors)
        }  # fmt: skip
        self.is_cut = out_of_touch(late)
        if not self.is_cut:
            return ()
        missed = [(who, whom) for who, error in late.items() for whom in error.missing if whom < len(executors)]
        return self._without(cut_off([(executors[who], executors[whom]) for who, whom in missed]))

    def _without(self, executor: str | None) -> tuple[str, ...]:
        if executor is None or self._replace is None or not (self._patience is None or self._patience.passed):
            return ()
        self._patience = Deadline.after(_PATIENCE_S)
        _log.warning("run=%s its peers cannot reach executor %s: it is replaced", self._run[:4], executor)
        self._replace(executor)
        return (executor,)


def ended_at_start(outcomes: Sequence[Outcome]) -> frozenset[int]:
    """Ranks whose processes ended while they made themselves ready, as the tasks beside them say. Pure."""
    return frozenset(
        outcome.rank for outcome, error in _errors(outcomes)
        if isinstance(error, PeerLost) and error.rank == outcome.rank >= 0
    )  # fmt: skip


def _errors(outcomes: Sequence[Outcome]) -> list[tuple[Outcome, BaseException | None]]:
    return [(outcome, outcome.failure.error()) for outcome in outcomes if outcome.failure is not None]


def await_verdict(
    suspects: Sequence[str], alive: Callable[[], Container[str]], *, within_s: float = _VERDICT_S
) -> None:
    """Wait until Spark knows that one of these executors is gone, or long enough to believe that none is.

    Args:
        suspects: executors of which nothing was heard at the end of a group that failed.
        alive: those that Spark knows now.
        within_s: how long.
    """
    deadline, paused = Deadline.after(within_s), threading.Event()
    while suspects and not deadline.passed:
        known = alive()
        if any(executor not in known for executor in suspects):
            return
        paused.wait(_LOOK_AGAIN_S)
