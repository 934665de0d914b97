"""One type for every bounded wait: a point on the monotonic clock."""

from __future__ import annotations

import time
from dataclasses import dataclass

from mizzle.errors import CollectiveTimeout


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment after which a wait must end with an error.

    Attributes:
        at_s: seconds on this machine's monotonic clock; never sent to another machine.
    """

    at_s: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """The moment ``seconds`` from now."""
        return cls(time.monotonic() + seconds)

    def remaining_s(self) -> float:
        """Seconds left, 0.0 when passed."""
        return max(0.0, self.at_s - time.monotonic())

    def remaining_ms(self) -> int:
        """Whole milliseconds left, for the wire; 0 when passed."""
        return int(self.remaining_s() * 1000)

    @property
    def passed(self) -> bool:
        """Whether the moment has come."""
        return time.monotonic() >= self.at_s

    def check(self, waiting_for: str) -> None:
        """Raise `CollectiveTimeout` naming what was awaited, if the moment has come."""
        if self.passed:
            raise CollectiveTimeout(f"deadline passed while waiting for {waiting_for}")
