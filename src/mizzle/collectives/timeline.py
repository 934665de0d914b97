"""When a rank did what: spans of time in lanes, noted cheaply by any of its threads. Knows no file format and no peers.

Times are nanoseconds since 1970, taken from the monotonic clock and put in place once, so that the ranks of one host
can be laid side by side to the microsecond; between hosts they are as good as their clocks agree.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

LANES = ("compute", "exchange", "exposed", "update", "boundary")
"""In the order in which they are shown. Spans of one lane lie beside or within each other, so a lane is one activity:
"exchange" is the traffic, whoever drives it, and "exposed" is the rank's own thread waiting for it."""

MAX_SPANS = 16 * 1024
"""Kept until they are taken: about 4 MB, and enough for a group of some hundred iterations."""


@dataclass(frozen=True, slots=True)
class Span:
    """Something that took time.

    Attributes:
        name: what was done.
        lane: one of `LANES`.
        begun_ns: nanoseconds since 1970.
        duration_ns: nanoseconds.
        args: what tells it from others of its name: numbers and short texts.
    """

    name: str
    lane: str
    begun_ns: int
    duration_ns: int
    args: dict[str, Any]


class Timeline:
    """The spans of one rank, in the order in which they ended.

    Args:
        max_spans: what comes beyond it, before the next `take`, is counted and forgotten.

    Attributes:
        is_on: whether anything is noted: what is dear to describe need not be, where it is not.
    """

    is_on = True

    def __init__(self, max_spans: int = MAX_SPANS) -> None:
        """See the class."""
        self._max_spans = max_spans
        self._spans: list[Span] = []
        self._since_1970_ns = time.time_ns() - time.perf_counter_ns()
        self._dropped = 0

    def span(self, name: str, lane: str, **args: Any) -> AbstractContextManager[object]:  # noqa: ANN401 - shown as is
        """Note how long the body of a ``with`` takes; also when it raises."""
        return _Running(self, name, lane, args)

    def note(self, name: str, lane: str, begun_ns: int, **args: Any) -> None:  # noqa: ANN401 - shown as is
        """Note what ends now.

        Args:
            name: what was done.
            lane: one of `LANES`.
            begun_ns: ``time.perf_counter_ns()`` at its beginning.
            args: numbers and short texts.
        """
        if len(self._spans) >= self._max_spans:
            self._dropped += 1
            return
        duration_ns = time.perf_counter_ns() - begun_ns
        # list.append is atomic: threads need no lock
        self._spans.append(Span(name, lane, begun_ns + self._since_1970_ns, duration_ns, args))

    def take(self) -> tuple[list[Span], int]:
        """All spans since the last time, and how many more there were; both are forgotten here."""
        taken = self._spans, self._dropped
        self._spans, self._dropped = [], 0
        return taken


class _Off(Timeline):
    """Notes nothing."""

    is_on = False
    _NOTHING = nullcontext()

    def span(self, name: str, lane: str, **args: Any) -> AbstractContextManager[object]:  # noqa: ANN401, ARG002
        """Nothing."""
        return self._NOTHING

    def note(self, name: str, lane: str, begun_ns: int, **args: Any) -> None:  # noqa: ANN401
        """Nothing."""


class _Running:
    """A span under way."""

    __slots__ = ("_args", "_begun_ns", "_lane", "_name", "_timeline")

    def __init__(self, timeline: Timeline, name: str, lane: str, args: dict[str, Any]) -> None:
        self._timeline, self._name, self._lane, self._args = timeline, name, lane, args
        self._begun_ns = 0

    def __enter__(self) -> None:
        self._begun_ns = time.perf_counter_ns()

    def __exit__(self, *_error: object) -> None:
        self._timeline.note(self._name, self._lane, self._begun_ns, **self._args)


NO_TIMELINE: Timeline = _Off()
"""Where nobody wants to know."""
