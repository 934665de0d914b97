"""`mizzle bench training` without its options: the same training by different systems, which take turns.

For each number of workers there is one Spark application, with mizzle's settings.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from mizzle.bench.application import Settings
from mizzle.bench.training_plain import PlainSeries, TrainingSamples, Workload
from mizzle.bench.training_systems import ReadingTask, System, TrainingTask
from mizzle.errors import ConfigError

SERIES_S = 3600.0
"""Only so that a system that hangs is noticed some time: nobody knows how long a series takes."""
_BYTES = 4
_MB = 10**6


class Answers(Protocol):
    """An application, as far as the benchmark uses it."""

    def ask(self, question: object, *, within_s: float) -> Any:  # noqa: ANN401 - whatever the answer is
        """Have it call the question with its session, and wait for what that returns."""
        ...


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """What to measure.

    Attributes:
        workloads: what is trained.
        workers: ranks, each an executor; one application for each number.
        systems: who takes part.
        batch: rows of a rank in an iteration.
        threads: of torch, in each rank.
        repeats: timed iterations of each system, over all rounds; mizzle does whole groups.
        warmup: untimed iterations before them, in every round; for mizzle at least one group.
        rounds: how often the systems take turns.
    """

    workloads: tuple[Workload, ...]
    workers: tuple[int, ...]
    systems: tuple[System, ...]
    batch: int
    threads: int
    repeats: int
    warmup: int
    rounds: int

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        if not self.workloads or not self.workers or not self.systems:
            raise ConfigError("nothing to measure: give at least one model, one number of workers and one system")

    @property
    def shares(self) -> list[int]:
        """Repeats of every round: all of them, spread as evenly as they go, no round without one."""
        rounds = min(self.rounds, self.repeats)
        return [(number + 1) * self.repeats // rounds - number * self.repeats // rounds for number in range(rounds)]

    def series(self, workload: Workload, repeats: int) -> PlainSeries:
        """What a system does in a round."""
        return PlainSeries(workload, self.batch, self.threads, self.warmup, repeats)

    def systems_with(self, workers: int) -> list[System]:
        """One process alone is measured once, with the first number of workers."""
        return [system for system in self.systems if system != "single" or workers == self.workers[0]]

    def settings(self, workers: int) -> Settings:
        """Of the application; a model passes through the heaps of driver and executors as a whole."""
        largest_mb = max(workload.num_parameters() for workload in self.workloads) * _BYTES // _MB
        return Settings(workers, with_mizzle=True, executor_mb=1024 + 3 * largest_mb, driver_mb=1024 + 4 * largest_mb)


@dataclass(frozen=True, slots=True)
class TrainingRecord:
    """One system with one model.

    Attributes:
        system: who.
        model: what.
        workers: ranks.
        iteration_s: median. Plain PyTorch: of iterations, each as long as its slowest rank. mizzle: of groups, their
            wall time at the driver over their iterations.
        samples_per_s: rows of all ranks in ``iteration_s``, per second.
        compute_s: of ``iteration_s``: forward, backward and taking the rows; mean over ranks, as the next two, and a
            median.
        exchange_s: of ``iteration_s``: the exchange, as far as nothing else ran beside it. For DDP what forward and
            backward take longer with it than without.
        hidden_s: seconds of the exchange beside compute.
    """

    system: str
    model: str
    workers: int
    iteration_s: float
    samples_per_s: float
    compute_s: float
    exchange_s: float
    hidden_s: float

    @classmethod
    def of(
        cls, system: System, workload: Workload, workers: int, batch: int, rounds: Sequence[TrainingSamples]
    ) -> TrainingRecord:
        """Sum up the rounds of a system."""
        ranks = 1 if system == "single" else workers
        iteration_s = _median([samples.iteration_s for samples in rounds])
        return cls(
            system=system,
            model=workload.name,
            workers=ranks,
            iteration_s=iteration_s,
            samples_per_s=ranks * batch / iteration_s,
            compute_s=_median([samples.compute_s for samples in rounds]),
            exchange_s=_median([samples.exchange_s for samples in rounds]),
            hidden_s=_median([samples.hidden_s for samples in rounds]),
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the attributes, in their order."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class TrainingBenchResult:
    """Everything that was measured.

    Attributes:
        records: one for each number of workers, model and system.
        read_s: what reading a rank's rows from a shard file takes in an iteration, by model; empty without mizzle.
        wrong: what is not to be trusted, in words.
    """

    records: list[TrainingRecord]
    read_s: dict[str, float]
    wrong: list[str]


def bench_training(
    plan: TrainingPlan,
    open_application: Callable[[Settings], AbstractContextManager[Answers]],
    report: Callable[[str], None] = lambda _: None,
) -> TrainingBenchResult:
    """Measure every system with every model and number of workers.

    Systems take turns, the order reversed from round to round, so that a machine that is slow for a while is slow for
    all of them.

    Args:
        plan: what to measure.
        open_application: starts an application with these settings, and stops it.
        report: is told what is being measured.
    """
    result = TrainingBenchResult([], {}, [])
    for workers in plan.workers:
        report(f"{workers} workers: starting Spark")
        with open_application(plan.settings(workers)) as application:
            for workload in plan.workloads:
                _measure(plan, workload, workers, application, report, result)
    return result


def _measure(
    plan: TrainingPlan, workload: Workload, workers: int, application: Answers, report: Callable[[str], None],
    result: TrainingBenchResult,
) -> None:  # fmt: skip
    """One model with one number of workers: adds to the result."""
    systems = plan.systems_with(workers)
    rounds: dict[System, list[TrainingSamples]] = {system: [] for system in systems}
    for number, repeats in enumerate(plan.shares):
        for system in systems if number % 2 == 0 else systems[::-1]:
            report(f"{workload.name}, {workers} workers, round {number + 1} of {len(plan.shares)}: {system}")
            task = TrainingTask(system, plan.series(workload, repeats), workers)
            rounds[system].append(application.ask(task, within_s=SERIES_S))
    if "mizzle" in systems and workload.name not in result.read_s:
        reading = ReadingTask(plan.series(workload, plan.repeats))
        result.read_s[workload.name] = application.ask(reading, within_s=SERIES_S)
    for system, samples in rounds.items():
        result.records.append(TrainingRecord.of(system, workload, workers, plan.batch, samples))
        where = f"{system} with {workload.name}, {workers} workers"
        if not all(of_round.finite for of_round in samples):
            result.wrong.append(f"{where}: losses that are not finite")
        if not all(of_round.agreed for of_round in samples):
            result.wrong.append(f"{where}: ranks with different weights")


def _median(rounds: Sequence[Sequence[float]]) -> float:
    return statistics.median(value for of_round in rounds for value in of_round)
