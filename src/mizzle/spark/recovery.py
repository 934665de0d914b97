"""What the driver does about a fault: wait until it knows who is left, and give up when nothing helps."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Container, Sequence

from mizzle.blocks.deadline import Deadline
from mizzle.errors import MizzleError, PeerLost, Recoverable

_log = logging.getLogger(__name__)
_MOST_OF_ONE = 3
"""Faults that name the same rank without a boundary between them: what it does there kills it."""
_MOST = 10
_VERDICT_S = 3.0
"""How long Spark may take to find out that an executor is gone whose connections have closed."""
_LOOK_AGAIN_S = 0.02
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0


class Faults:
    """The faults of a run since it last got on."""

    def __init__(self, run: str) -> None:
        """None so far."""
        self._run = run
        self._named: Counter[int] = Counter()

    def forget(self) -> None:
        """The run has got on."""
        self._named.clear()

    def note(self, error: Recoverable, what: str) -> None:
        """Count one.

        Args:
            error: what happened.
            what: was under way, for the log.

        Raises:
            MizzleError: ``error`` itself, when running it again has not helped.
        """
        rank = error.rank if isinstance(error, PeerLost) else -1
        self._named[rank] += 1
        if (rank >= 0 and self._named[rank] >= _MOST_OF_ONE) or self._named.total() >= _MOST:
            error.add_note(f"it was tried {self._named.total()} times from the same boundary")
            raise error
        _log.warning("run=%s %s is run again from its boundary: %s", self._run[:4], what, error)


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
