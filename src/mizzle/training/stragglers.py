"""Which ranks are slow, and how long a rank may compute: from the seconds that all ranks tell each other. Pure.

Every rank is told the same numbers, so all of them think the same. A rank is compared by its seconds per shard, as one
that holds more shards than others has more to do and is not slow.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low

SLOW = 2.0
"""Times the median."""
STREAK = 3
"""Iterations in a row: one pause makes no slow executor."""
WARM_UP = 2
"""Iterations after a start that do not count: pages are touched, kernels chosen and caches filled."""
LEAST_S = 0.01
"""A shard that is slower by less than this is noise: the turns of an operating system's scheduler take as long."""
_PAST = 4


@dataclass(frozen=True, slots=True)
class Straggler:
    """A rank that was slow for several iterations in a row.

    Attributes:
        rank: it.
        since: the first of these iterations.
        iterations: how many, so far.
        factor: its seconds per shard in all of them, as a multiple of the median of the ranks. Where shards are
            dropped it is a lower limit: their computation was stopped.
    """

    rank: int
    since: int
    iterations: int
    factor: float


@dataclass(slots=True)
class _Streak:
    since: int = 0
    iterations: int = 0
    own_s: float = 0.0
    median_s: float = 0.0

    def of(self, rank: int) -> Straggler:
        return Straggler(rank, self.since, self.iterations, self.own_s / self.median_s)


class StragglerWatch:
    """Watches the ranks of one generation, iteration after iteration.

    The median is that of the ranks that computed; of an even number it is the lower one of the two in the middle. So of
    two ranks the faster one counts as normal, and one rank alone is never slow.
    """

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._seen = 0
        self._streaks: dict[int, _Streak] = {}
        self._found: dict[int, Straggler] = {}
        self._medians: deque[float] = deque(maxlen=_PAST)

    def observe(self, iteration: int, shard_s: Sequence[float], dropped: Sequence[int] = ()) -> None:
        """Take in one iteration.

        Args:
            iteration: of the run.
            shard_s: by rank, seconds of compute for each of its shards; 0 where it had nothing to do.
            dropped: by rank, shards that it gave up because its time was over; none where empty.
        """
        self._seen += 1
        busy = [seconds for seconds in shard_s if seconds > 0]
        if self._seen <= WARM_UP or not busy:
            return
        median = median_low(busy)
        self._medians.append(median)
        for rank, seconds in enumerate(shard_s):
            if seconds > 0:
                gave_up = bool(dropped) and dropped[rank] > 0
                self._judge(iteration, rank, seconds, median, is_slow=gave_up or seconds > _limit(median))

    def _judge(self, iteration: int, rank: int, seconds: float, median: float, *, is_slow: bool) -> None:
        if not is_slow:
            self._streaks.pop(rank, None)
            return
        streak = self._streaks.setdefault(rank, _Streak(iteration))
        streak.iterations += 1
        streak.own_s += seconds
        streak.median_s += median
        if streak.iterations >= STREAK:
            self._found[rank] = streak.of(rank)

    def take(self) -> tuple[Straggler, ...]:
        """Those that were slow at some time since the last call, the slowest first; of each rank the last time."""
        found = sorted(self._found.values(), key=lambda one: (-one.factor, one.rank))
        self._found.clear()
        return tuple(found)

    @property
    def limit_s(self) -> float | None:
        """Seconds per shard after which a rank is slow, by what past iterations took; None: not known yet.

        Of the last four medians the second longest counts: every other iteration may be the end of an epoch, with few
        rows, and one may have been slow for all. If all ranks become slow for good, what they took until they were
        stopped raises the limit after two iterations, so that they get through.
        """
        return _limit(sorted(self._medians)[-2]) if len(self._medians) >= STREAK else None


def _limit(median: float) -> float:
    return max(SLOW * median, median + LEAST_S)
