"""The group size K from what the last groups cost: the smallest that keeps scheduling a small share of the time.

Multiplicative increase above an upper bound of the share, additive decrease below a lower one (Drizzle, SOSP 2017,
https://doi.org/10.1145/3132747.3132750). Other than there, not the share is averaged but its two parts, seconds of
scheduling per group and seconds per iteration: a group that a trigger cut short then says as much as a long one, and
the share at any K can be foretold, so that K is aimed at and not groped for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from mizzle.errors import ConfigError
from mizzle.scheduling.plan import GROUP_SIZE, TIME_LIMIT

_ARRIVED = 0.6
"""While climbing, in units of the upper bound: above it the aim is not reached yet, and noise might still cross it."""
_PLANNED = 0.6
"""How much of the time limit K may plan to use: measured 20 % too fast and then 20 % slow, it uses 0.9 of it."""
_WORTH_ARRIVING = 1.2
"""A factor of room, where time limits K, that is worth using if it brings scheduling below its upper bound."""
_WORTH_MOVING = 1.5
"""The same where it does not: a factor that is no mere noise, 20 % too slow before and 20 % too fast now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TunerConfig:
    """What the tuner keeps to. The defaults settle within 100 iterations wherever K = 400 is enough.

    Attributes:
        target: upper bound of the share of wall clock that scheduling may take. 0.01: nobody would notice less.
        lower: lower bound, as a fraction of ``target``. 0.25 leaves a factor of two on both sides of the aim, which
            lies in the middle: neither noise of 20 % nor a start with cold caches leaves such a band.
        start: K of the first group. 1, because that group is slow in every way and its user waits for a sign of life.
        max_size: largest K. 1000, because the job of a group carries the hyper-parameters of every iteration.
        max_group_s: seconds that a group may last. Progress is seen and new executors are used only between groups,
            and a fault costs up to a whole one. 20 s are bearable, and leave a job 120 ms at 1 %, as K plans with 0.6
            of them. An iteration that takes longer is a group of its own.
        weight: of a new sample in the average, in (0, 1]. 0.3 forgets half of the past in two groups.
        outlier: a sample this many times above or below the average waits until the next one confirms it. 2, the
            width of the band around the aim: what differs less may be averaged, what differs more is a pause or news.
        growth: largest factor by which K grows at once. 9.5, because 1 + 9 + 85 iterations then lead to any K up to
            807, the aim where 400 is just enough; with a factor of 4 no start gets there within 100 iterations.
        decrease: iterations by which K falls at once, at most. 50 brings the largest K down within 20 groups.
    """

    target: float = 0.01
    lower: float = 0.25
    start: int = 1
    max_size: int = 1000
    max_group_s: float = 20.0
    weight: float = 0.3
    outlier: float = 2.0
    growth: float = 9.5
    decrease: int = 50

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        bounds: dict[str, tuple[Callable[[float], bool], str]] = {
            "target": (lambda value: 0 < value < 1, "a share between 0 and 1, such as 0.01"),
            "lower": (lambda value: 0 < value <= 0.5, "a fraction of target, above 0 and at most 0.5"),
            "max_size": (lambda value: value >= 1, "at least 1"),
            "start": (lambda value: 1 <= value <= self.max_size, "at least 1 and at most max_size"),
            "max_group_s": (lambda value: value > 0, "a positive number of seconds"),
            "weight": (lambda value: 0 < value <= 1, "a weight above 0 and at most 1"),
            "outlier": (lambda value: value > 1, "a factor above 1"),
            "growth": (lambda value: value >= 2, "a factor of at least 2"),
            "decrease": (lambda value: value >= 1, "at least 1"),
        }
        for name, (allowed, remedy) in bounds.items():
            value = getattr(self, name)
            if not allowed(value):
                raise ConfigError(f"{name} of the group tuner is {value}: give {remedy}")


@dataclass(frozen=True, slots=True)
class GroupTiming:
    """How long one group took.

    Attributes:
        size: its iterations, at least 1.
        wall_s: seconds from launching its job to the job's end, as the driver saw it.
        scheduling_s: of these, what the rank that started last did not spend in iterations: launching, waiting for the
            last task to start, keeping the boundary.
    """

    size: int
    wall_s: float
    scheduling_s: float

    def __post_init__(self) -> None:
        """Refuse what no clock shows."""
        assert self.size >= 1, f"a group of {self.size} iterations"
        assert math.isfinite(self.wall_s) and math.isfinite(self.scheduling_s), self  # noqa: PT018

    @property
    def overhead_s(self) -> float:
        """Seconds of scheduling; the clocks of driver and rank differ a little, which must not make it negative."""
        return min(max(0.0, self.scheduling_s), max(0.0, self.wall_s))

    @property
    def iteration_s(self) -> float:
        """Seconds per iteration without scheduling."""
        return (max(0.0, self.wall_s) - self.overhead_s) / self.size


@dataclass(frozen=True, slots=True)
class Decision:
    """How long the next group shall be.

    Attributes:
        size: K, at least 1.
        reason: why, for people.
        limit: what limits the size, in the words of `mizzle.scheduling.plan`: "group size" or "time limit".
    """

    size: int
    reason: str
    limit: str = GROUP_SIZE


class GroupSizer(Protocol):
    """Says how long the next group shall be."""

    @property
    def decision(self) -> Decision:
        """For the next group; there from the start."""
        ...

    @property
    def settled(self) -> bool:
        """Whether K stays what it is as long as groups go on to take the time they take."""
        ...

    def observe(self, timing: GroupTiming) -> Decision:
        """Take in a group that has ended, whatever its size was; one that failed says nothing and is left out."""
        ...


class FixedSize:
    """A group size that the user chose.

    Args:
        size: K, at least 1.
    """

    def __init__(self, size: int) -> None:
        """See the class."""
        if size < 1:
            raise ConfigError(f"group_size is {size}: give at least 1, or 'auto'")
        self._decision = Decision(size, "fixed")

    @property
    def decision(self) -> Decision:
        """Always the same."""
        return self._decision

    @property
    def settled(self) -> bool:
        """Always."""
        return True

    def observe(self, timing: GroupTiming) -> Decision:  # noqa: ARG002 - the interface of `GroupSizer`
        """Nothing to learn."""
        return self._decision


@dataclass(slots=True)
class _Average:
    """An exponential average that one outlier does not move and two of them replace."""

    weight: float
    outlier: float
    value: float = 0.0
    suspect: float | None = None
    num_samples: int = 0

    def add(self, sample: float, *, warming: bool) -> None:
        """Take in a sample; ``warming``: things are still getting faster, so that a smaller one is the better one."""
        self.num_samples += 1
        held, self.suspect = self.suspect, None
        # The first sample is that of cold caches: it starts the average, and the second one replaces it.
        if self.num_samples <= 2 or (warming and sample < self.value):
            self.value = sample
        elif self.value / self.outlier <= sample <= self.value * self.outlier:
            self.value += self.weight * (sample - self.value)
        elif held is None or (held > self.value) != (sample > self.value):
            self.suspect = sample
        else:  # two in a row on the same side: the world has changed, by at least the smaller step of the two
            self.value = min(held, sample) if sample > self.value else max(held, sample)


class GroupTuner:
    """Finds the group size and follows it when the cost of a job or of an iteration changes.

    Deterministic in what it observes. An outlier (a pause for garbage collection, a busy neighbour) changes nothing
    unless the next group confirms it, with one exception: when the last group's iterations were so slow that the next
    group would last longer than `TunerConfig.max_group_s`, that one is made shorter at once.

    Args:
        config: what it keeps to.
    """

    def __init__(self, config: TunerConfig | None = None) -> None:
        """Begin with the first group's size."""
        self.config = config or TunerConfig()
        self._size = self.config.start
        self._limit = GROUP_SIZE
        self._climbing = True
        self._overhead = _Average(self.config.weight, self.config.outlier)
        self._iteration = _Average(self.config.weight, self.config.outlier)
        self._decision = Decision(self._size, f"start: {self._size}")

    @property
    def decision(self) -> Decision:
        """For the next group."""
        return self._decision

    @property
    def settled(self) -> bool:
        """Whether more groups like those that have been would leave K as it is. Never before the second group."""
        if self._cold or self._doubted or self._decision.size != self._size:
            return False
        return self._next()[0] == self._size

    def observe(self, timing: GroupTiming) -> Decision:
        """Take in a group that has ended; the decision for the next one."""
        self._overhead.add(timing.overhead_s, warming=self._climbing)
        self._iteration.add(timing.iteration_s, warming=self._climbing)
        before = self._size
        self._size, reason, self._limit = self._next()
        # It climbs until it has arrived: as long as only `growth`, or a doubt, keeps it from the aim.
        self._climbing = before < self._size < self._aim() or (self._climbing and self._doubted)
        short = self._kept_short(timing)
        if short is not None:
            self._size = min(before, self._size)  # in doubt it does not grow
        self._decision = short or self._decided(self._size, reason, self._limit)
        return self._decision

    def _decided(self, size: int, reason: str, limit: str) -> Decision:
        last = self._decision.size
        return Decision(size, f"{reason}: {f'stays {size}' if size == last else f'{last} -> {size}'}", limit)

    def _next(self) -> tuple[int, str, str]:
        """Size, reason and limit that follow from the averages."""
        config, size, lasts = self.config, self._size, self._lasts(self._size)
        share, upper, lower = self._overhead.value / (lasts or 1.0), config.target, config.target * config.lower
        if size > 1 and lasts > config.max_group_s:
            why = f"group of {_seconds(lasts)} > {_seconds(config.max_group_s)}"
            return min(size - 1, self._room()), why, TIME_LIMIT
        on_the_way = self._climbing and share > _ARRIVED * upper and self._aim() <= self._room()
        if share > upper or on_the_way:
            return self._grown(f"scheduling {_percent(share)} {'>' if share > upper else 'near'} {_percent(upper)}")
        if share < lower:
            fallen = min(size, max(1, size - config.decrease, self._aim()))
            return fallen, f"scheduling {_percent(share)} < {_percent(lower)}", GROUP_SIZE
        return size, f"scheduling {_percent(share)} within {_percent(lower)}..{_percent(upper)}", self._limit

    def _grown(self, why: str) -> tuple[int, str, str]:
        config, size, room = self.config, self._size, self._room()
        wanted = max(size, min(self._aim(), math.floor(size * config.growth), config.max_size))
        if wanted <= room:
            return wanted, why, GROUP_SIZE
        # A little more room is no reason to move: the next sample would take it away again.
        enough = self._overhead.value <= config.target * self._lasts(room)
        grown = room if room >= (_WORTH_ARRIVING if enough else _WORTH_MOVING) * size else size
        return grown, f"{why}, but a group may last {_seconds(config.max_group_s)}", TIME_LIMIT

    def _kept_short(self, timing: GroupTiming) -> Decision | None:
        """A shorter next group, where the last one's iterations alone say that it would be too long."""
        config, size = self.config, self._size
        lasts = self._overhead.value + timing.iteration_s * size
        if size == 1 or self._cold or lasts <= config.max_group_s:
            return None
        why = f"group of {_seconds(lasts)} > {_seconds(config.max_group_s)}, if iterations stay so slow"
        return self._decided(min(size - 1, self._fitting(timing.iteration_s)), why, TIME_LIMIT)

    @property
    def _doubted(self) -> bool:
        return self._overhead.suspect is not None or self._iteration.suspect is not None

    @property
    def _cold(self) -> bool:
        return self._overhead.num_samples < 2

    def _lasts(self, size: int) -> float:
        """Seconds of a group of a size."""
        return self._overhead.value + self._iteration.value * size

    def _aim(self) -> int:
        """The size whose share lies in the middle of the band, on a logarithmic scale."""
        share = self.config.target * math.sqrt(self.config.lower)
        return math.ceil(max(1.0, _ratio(self._overhead.value * (1 - share), share * self._iteration.value)))

    def _room(self) -> int:
        """The largest size whose groups stay well within the time limit."""
        return self._fitting(self._iteration.value)

    def _fitting(self, iteration_s: float) -> int:
        # what the first job of all cost, with workers to be started, says nothing about the room in later ones
        overhead_s = 0.0 if self._cold else self._overhead.value
        return math.floor(max(1.0, _ratio(_PLANNED * self.config.max_group_s - overhead_s, iteration_s)))


def sizer_for(group_size: int | Literal["auto"], config: TunerConfig | None = None) -> GroupSizer:
    """What decides on sizes where the user wrote ``group_size``.

    Raises:
        ConfigError: it is neither a number above 0 nor "auto".
    """
    if isinstance(group_size, str):
        if group_size != "auto":
            raise ConfigError(f"group_size is {group_size!r}: give a number of iterations, or 'auto'")
        return GroupTuner(config)
    return FixedSize(group_size)


def _ratio(dividend: float, divisor: float) -> float:
    """Their quotient, which no int overflows from; what takes no time fits in as often as one likes."""
    most = float(2**31)
    return min(most, dividend / divisor) if divisor > 0 else most


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %" if share < 0.1 else f"{100 * share:.0f} %"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"
