"""`mizzle bench allreduce` without its options: contenders take turns on the same executors, in one application."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from pyspark.sql import SparkSession

from mizzle.bench.all_reduce_systems import CopySeries, GlooSeries, MizzleSeries, Samples, Series, spark_series
from mizzle.blocks.deadline import Deadline
from mizzle.config import Transport
from mizzle.errors import ConfigError
from mizzle.spark.driver import DriverSide, await_slots
from mizzle.spark.groups import run_group
from mizzle.spark.probe import await_bridges
from mizzle.spark.ranks.worker import RankContext

System = Literal["mizzle", "mizzle_copy", "gloo", "reduce", "tree_reduce"]
SYSTEMS: tuple[System, ...] = get_args(System)
_MIZZLE = ("mizzle", "mizzle_copy")
_TRANSPORT_OF = {"gloo": "tcp", "reduce": "driver", "tree_reduce": "driver"}
_START_S = 60.0
_TIMEOUT_S = 300.0
"""Of one collective: the largest arrays on the slowest machines take seconds."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to all-reduce; ``transport`` is "shm" or "blocks" for mizzle, "tcp" for gloo, "driver" for Spark's."""

    system: System
    transport: str

    def __str__(self) -> str:
        return f"{self.system} ({self.transport})"


@dataclass(frozen=True, slots=True)
class AllReducePlan:
    """What to measure.

    Attributes:
        workers: ranks.
        sizes: bytes of the array, multiples of 4.
        contenders: who takes part, in this order.
        repeats: timed all-reduces of each contender at each size, over all rounds.
        warmup: untimed ones before them, in every round.
        rounds: how often the contenders take turns.
    """

    workers: int
    sizes: tuple[int, ...]
    contenders: tuple[Contender, ...]
    repeats: int
    warmup: int
    rounds: int

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        for size in self.sizes:
            if size < 4 or size % 4:
                raise ConfigError(f"a size of {size} bytes holds no whole number of fp32 values: give a multiple of 4")
        if not self.sizes or not self.contenders:
            raise ConfigError("nothing to measure: give at least one size, one system, and for mizzle one transport")

    @property
    def shares(self) -> list[int]:
        """Repeats of every round: all of them, spread as evenly as they go, no round without one."""
        rounds = min(self.rounds, self.repeats)
        return [(number + 1) * self.repeats // rounds - number * self.repeats // rounds for number in range(rounds)]


@dataclass(frozen=True, slots=True)
class AllReduceRecord:
    """One contender at one size.

    Attributes:
        system: who.
        transport: how.
        workers: ranks.
        bytes: of the array of one rank.
        median_s: of the iterations; an iteration takes as long as its slowest rank.
        p95_s: their 95th percentile.
        min_s: the quickest.
        repeats: how many.
        verified: whether every result on every rank was the exact sum.
        host_cpu_s: CPU seconds of an iteration, all ranks and their executors' JVMs together, mean; None where nobody
            looked.
    """

    system: str
    transport: str
    workers: int
    bytes: int
    median_s: float
    p95_s: float
    min_s: float
    repeats: int
    verified: bool
    host_cpu_s: float | None

    @classmethod
    def of(cls, contender: Contender, workers: int, num_bytes: int, rounds: Sequence[Samples]) -> AllReduceRecord:
        """Sum up a contender's rounds at one size."""
        seconds = np.array([second for samples in rounds for second in samples.seconds])
        cpu = [second for samples in rounds for second in samples.cpu_seconds]
        return cls(
            system=contender.system,
            transport=contender.transport,
            workers=workers,
            bytes=num_bytes,
            median_s=float(np.median(seconds)),
            p95_s=float(np.percentile(seconds, 95)),
            min_s=float(seconds.min()),
            repeats=len(seconds),
            verified=all(samples.verified for samples in rounds),
            host_cpu_s=float(np.mean(cpu)) if cpu else None,
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the attributes, in their order."""
        return asdict(self)


def contenders(systems: Sequence[System], transports: Sequence[str]) -> tuple[Contender, ...]:
    """Who takes part: mizzle once for each transport."""
    return tuple(
        Contender(system, transport)
        for system in systems
        for transport in (transports if system in _MIZZLE else (_TRANSPORT_OF[system],))
    )


def bench_all_reduce(
    spark: SparkSession, plan: AllReducePlan, report: Callable[[str], None] = lambda _: None
) -> list[AllReduceRecord]:
    """Measure every contender at every size.

    Contenders take turns, the order reversed from round to round, so that a machine that is slow for a while is slow
    for all of them. Results are checked outside the timed part.

    Args:
        spark: a session with mizzle's settings and as many task slots as workers, best one an executor.
        plan: what to measure.
        report: is told what is being measured.

    Raises:
        ConfigError: there are fewer slots than workers.
    """
    deadline = Deadline.after(_START_S)
    await_slots(spark.sparkContext, plan.workers, deadline)
    await_bridges(spark.sparkContext, deadline)
    one_host = len(set(DriverSide(spark.sparkContext).hosts().values())) == 1
    records = []
    for size in plan.sizes:
        rounds: dict[Contender, list[Samples]] = {contender: [] for contender in plan.contenders}
        for number, repeats in enumerate(plan.shares):
            series = Series(size // 4, plan.warmup, repeats)
            for contender in plan.contenders if number % 2 == 0 else plan.contenders[::-1]:
                report(f"{size} bytes, round {number + 1} of {len(plan.shares)}: {contender}")
                rounds[contender].append(_run(spark, contender, series, plan.workers, one_host=one_host))
        records += [AllReduceRecord.of(who, plan.workers, size, samples) for who, samples in rounds.items()]
    return records


def _run(spark: SparkSession, contender: Contender, series: Series, workers: int, *, one_host: bool) -> Samples:
    if contender.system in ("reduce", "tree_reduce"):
        return spark_series(spark.sparkContext, contender.system, series, workers)
    bodies: dict[str, Callable[[RankContext], Samples]] = {
        "mizzle": MizzleSeries(series),
        "mizzle_copy": CopySeries(series),
        "gloo": GlooSeries(series, one_host),
    }
    body = bodies[contender.system]
    transport: Transport = "auto"
    if contender.system in _MIZZLE:
        transport = "shm" if contender.transport == "shm" else "blocks"
    return slowest(run_group(spark, body, ranks=workers, transport=transport, timeout_s=_TIMEOUT_S))


def slowest(ranks: Sequence[Samples]) -> Samples:
    """One series from what the ranks saw of it: an iteration is done when its last rank is done; CPU time adds up."""
    seconds = [max(of_rank) for of_rank in zip(*(rank.seconds for rank in ranks), strict=True)]
    cpu_seconds = [sum(of_rank) for of_rank in zip(*(rank.cpu_seconds for rank in ranks), strict=True)]
    return Samples(seconds, all(rank.verified for rank in ranks), cpu_seconds)
