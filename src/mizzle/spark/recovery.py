"""What the driver does about a fault: wait until it knows who is left, and give up when nothing helps."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Container, Sequence

from mizzle.blocks.deadline import Deadline
from mizzle.errors import CollectiveTimeout, MizzleError, PeerLost, Recoverable
from mizzle.training.history import FaultRecord

_log = logging.getLogger(__name__)
_MOST_OF_ONE = 3
"""Faults that name the same rank without a boundary between them: what it does there kills it."""
_MOST_LATE = 2
"""Deadlines that passed without anybody being lost: who hangs in code of the user's will hang again."""
_MOST = 10
_VERDICT_S = 3.0
"""How long Spark may take to find out that an executor is gone whose connections have closed."""
_LOOK_AGAIN_S = 0.02
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0


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
        self._late = 0
        self._noticed: tuple[str, float] | None = None

    def notice(self, cause: str) -> None:
        """One has come to light."""
        _log.warning("run=%s %s", self._run[:4], cause)
        if self._noticed is None:
            self._noticed = cause, time.time()

    def count(self, error: Recoverable) -> None:
        """Make sure that running it again may help.

        Raises:
            MizzleError: ``error`` itself: it has not helped.
        """
        rank = error.rank if isinstance(error, PeerLost) else -1
        self._named[rank] += 1
        self._late += isinstance(error, CollectiveTimeout)
        again = rank >= 0 and self._named[rank] >= _MOST_OF_ONE
        if again or self._late >= _MOST_LATE or self._named.total() >= _MOST:
            error.add_note(f"it was tried {self._named.total()} times from the same boundary")
            raise error

    def over(self, boundary: int, ranks: int) -> None:
        """What was ordered is done, by that many ranks."""
        if self._noticed is not None:
            cause, noticed_at = self._noticed
            self._noticed = None
            self.survived.append(FaultRecord(boundary, cause, ranks, noticed_at, time.time()))

    def forget(self) -> None:
        """There is a new boundary."""
        self._named.clear()
        self._late = 0


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


def await_verdict(suspects: Sequence[str], alive: Callable[[], Container[str]]) -> None:
    """Wait until Spark knows that one of these executors is gone, or long enough to believe that none is.

    Args:
        suspects: executors of which nothing was heard at the end of a group that failed.
        alive: those that Spark knows now.
    """
    deadline, paused = Deadline.after(_VERDICT_S), threading.Event()
    while suspects and not deadline.passed:
        known = alive()
        if any(executor not in known for executor in suspects):
            return
        paused.wait(_LOOK_AGAIN_S)
