"""`mizzle bench scheduling` without its options: one iteration by plain Spark jobs and in groups, taking turns.

Plain Spark runs in an application of its own, at Spark's default settings and without mizzle's plugin; mizzle in one
with mizzle's. Both are open at once and only one of them is at work.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from mizzle.bench.application import Settings
from mizzle.bench.scheduling_plain import GroupSamples, GroupSeries, System
from mizzle.errors import ConfigError

MIN_WARMUP_GROUPS = 2


class RunsSeries(Protocol):
    """An application, as far as the benchmark uses it."""

    def run(self, series: GroupSeries) -> GroupSamples:
        """Run a series and wait."""
        ...


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to schedule: ``group_size`` iterations at once, 1 with plain Spark."""

    system: System
    group_size: int

    def __str__(self) -> str:
        return f"mizzle, K = {self.group_size}" if self.system == "mizzle" else self.system


@dataclass(frozen=True, slots=True)
class SchedulingPlan:
    """What to measure.

    Attributes:
        workers: ranks, each an executor; one pair of applications for each number.
        group_sizes: iterations of mizzle's groups.
        systems: who takes part.
        body_s: seconds that each rank computes in an iteration; 0: a no-op.
        repeats: timed groups of each contender, over all rounds; a plain iteration counts as a group.
        warmup: untimed iterations before them, in every round: whole groups, at least two.
        rounds: how often the contenders take turns.
        settle: untimed iterations without a body before the first round, once in each application, each a job: a JVM
            that has run few jobs spends most of its time compiling.
    """

    workers: tuple[int, ...]
    group_sizes: tuple[int, ...]
    systems: tuple[System, ...]
    body_s: float
    repeats: int
    warmup: int
    rounds: int
    settle: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        if not self.workers or not self.contenders:
            raise ConfigError("nothing to measure: give workers, at least one system, and for mizzle a group size")
        for what, numbers in (("workers", self.workers), ("group sizes", self.group_sizes)):
            if numbers and min(numbers) < 1:
                raise ConfigError(f"{what} {', '.join(map(str, numbers))}: give whole numbers from 1 on")

    @property
    def contenders(self) -> tuple[Contender, ...]:
        """Who takes part, in the order of the first round."""
        return tuple(
            Contender(system, size)
            for system in self.systems
            for size in (self.group_sizes if system == "mizzle" else (1,))
        )

    @property
    def shares(self) -> list[int]:
        """Repeats of every round: all of them, spread as evenly as they go, no round without one."""
        rounds = min(self.rounds, self.repeats)
        return [(number + 1) * self.repeats // rounds - number * self.repeats // rounds for number in range(rounds)]

    def series(self, contender: Contender, workers: int, repeats: int) -> GroupSeries:
        """What a contender does in a round."""
        warmup = max(MIN_WARMUP_GROUPS, math.ceil(self.warmup / contender.group_size))
        return GroupSeries(contender.system, workers, contender.group_size, self.body_s, warmup, repeats)


@dataclass(frozen=True, slots=True)
class SchedulingRecord:
    """One contender with one number of workers.

    Attributes:
        system: who.
        workers: ranks, each an executor.
        group_size: iterations of one Spark job; 1 for plain Spark, also where an iteration takes two jobs.
        body_s: seconds that each rank computes in an iteration.
        iteration_s: median over the timed groups of a group's wall time at the driver, divided by its iterations.
        overhead_s: ``iteration_s - body_s``: scheduling, and the sum of 4 KB over the ranks.
        driver_messages_per_iteration: data segments over the TCP connections of the driver's JVM to other processes, in
            and out, all timed groups together; heartbeats and leases are in it. None: they could not be counted.
        repeats: timed groups.
    """

    system: str
    workers: int
    group_size: int
    body_s: float
    iteration_s: float
    overhead_s: float
    driver_messages_per_iteration: float | None
    repeats: int

    @classmethod
    def of(cls, contender: Contender, workers: int, body_s: float, rounds: Sequence[GroupSamples]) -> SchedulingRecord:
        """Sum up a contender's rounds."""
        seconds = [second for samples in rounds for second in samples.seconds]
        counts = [samples.segments for samples in rounds]
        known = [count for count in counts if count is not None]
        iteration_s = statistics.median(seconds) / contender.group_size
        return cls(
            system=contender.system,
            workers=workers,
            group_size=contender.group_size,
            body_s=body_s,
            iteration_s=iteration_s,
            overhead_s=iteration_s - body_s,
            driver_messages_per_iteration=(
                sum(known) / (len(seconds) * contender.group_size) if len(known) == len(counts) else None
            ),
            repeats=len(seconds),
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the attributes, in their order."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class SchedulingResult:
    """Everything that was measured.

    Attributes:
        records: one for each number of workers and contender.
        wrong: contenders, in words, whose last state was not the expected one.
    """

    records: list[SchedulingRecord]
    wrong: list[str]


def bench_scheduling(
    plan: SchedulingPlan,
    open_application: Callable[[Settings], AbstractContextManager[RunsSeries]],
    report: Callable[[str], None] = lambda _: None,
) -> SchedulingResult:
    """Measure every contender with every number of workers.

    Contenders take turns, the order reversed from round to round, so that a machine that is slow for a while is slow
    for all of them.

    Args:
        plan: what to measure.
        open_application: starts an application with these settings, and stops it.
        report: is told what is being measured.
    """
    records, wrong = [], []
    for workers in plan.workers:
        rounds = _measure(plan, workers, open_application, report)
        records += [SchedulingRecord.of(who, workers, plan.body_s, samples) for who, samples in rounds.items()]
        wrong += [
            f"{who} with {workers} workers"
            for who, samples in rounds.items()
            if not all(of_round.verified for of_round in samples)
        ]
    return SchedulingResult(records, wrong)


def _measure(
    plan: SchedulingPlan,
    workers: int,
    open_application: Callable[[Settings], AbstractContextManager[RunsSeries]],
    report: Callable[[str], None],
) -> dict[Contender, list[GroupSamples]]:
    rounds: dict[Contender, list[GroupSamples]] = {contender: [] for contender in plan.contenders}
    with ExitStack() as stack:
        applications: dict[bool, RunsSeries] = {}
        for with_mizzle in dict.fromkeys(contender.system == "mizzle" for contender in plan.contenders):
            report(f"{workers} workers: starting Spark {'with mizzle' if with_mizzle else 'as it is'}")
            applications[with_mizzle] = stack.enter_context(open_application(Settings(workers, with_mizzle)))
            if plan.settle:
                system: System = "mizzle" if with_mizzle else "spark"
                report(f"{workers} workers: {plan.settle} jobs of {system} that do not count")
                applications[with_mizzle].run(GroupSeries(system, workers, 1, 0.0, plan.settle, 1))
        for number, repeats in enumerate(plan.shares):
            for contender in plan.contenders if number % 2 == 0 else plan.contenders[::-1]:
                report(f"{workers} workers, round {number + 1} of {len(plan.shares)}: {contender}")
                series = plan.series(contender, workers, repeats)
                rounds[contender].append(applications[contender.system == "mizzle"].run(series))
    return rounds
