"""What group scheduling is measured against: the same iterations as plain Spark jobs, one or two for each.

Two jobs an iteration is how BigDL trains (Dai et al., "BigDL: A Distributed Deep Learning Framework for Big Data",
SoCC 2019, section 3.3, https://arxiv.org/abs/1804.05839). This module imports neither torch nor the rest of mizzle: it
is loaded by the baselines' Python workers, which PySpark makes slower the more objects they hold (it collects garbage
after every task).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, get_args

import numpy as np
from pyspark import RDD, SparkContext

System = Literal["spark", "spark2", "mizzle"]
SYSTEMS: tuple[System, ...] = get_args(System)
NUM_ELEMENTS = 1024
"""fp32 values of the array that each iteration sums over the ranks: 4 KB."""
_MODULUS = 1009
_STEP = 97


@dataclass(frozen=True, slots=True)
class GroupSeries:
    """Groups of iterations in a row, from the first state on; with plain Spark a group is one iteration.

    Attributes:
        system: how they are scheduled.
        ranks: how many take part.
        group_size: iterations of a group.
        body_s: seconds that each rank computes in an iteration; 0: a no-op.
        warmup: untimed groups at the beginning.
        repeats: timed groups after them.
    """

    system: System
    ranks: int
    group_size: int
    body_s: float
    warmup: int
    repeats: int

    @property
    def iterations(self) -> int:
        """Of all groups, untimed ones included."""
        return (self.warmup + self.repeats) * self.group_size


@dataclass(frozen=True, slots=True)
class GroupSamples:
    """What a series gave.

    Attributes:
        seconds: of each timed group, driver included.
        segments: data segments over the driver's connections in the timed groups; None where they cannot be counted.
        verified: whether the last state is what all iterations, those of the warm-up included, lead to.
    """

    seconds: list[float]
    segments: int | None
    verified: bool


class Traffic(Protocol):
    """What counts the messages of the driver, as far as a series uses it."""

    def since_last(self) -> int | None:
        """How many since the last call, if that is known."""
        ...


def first_state() -> np.ndarray:
    """What the first iteration starts from, (1024,) fp32."""
    return np.arange(NUM_ELEMENTS, dtype=np.float32)


def contribution(state: np.ndarray, rank: int, body_s: float) -> np.ndarray:
    """One rank's part in one iteration; the sum over the ranks is the next state.

    Whole numbers below 1009, so that sums are exact in fp32 in any order, up to 16,000 ranks. Each state follows from
    the one before, so that one comparison at the end tells whether any array was stale, missing or added twice.
    """
    if body_s > 0:
        threading.Event().wait(body_s)
    moved: np.ndarray = np.remainder(state + np.float32(_STEP * (rank + 1)), np.float32(_MODULUS))
    return moved


def state_after(ranks: int, iterations: int) -> np.ndarray:
    """The state that so many iterations lead to, (1024,) fp32."""
    state = first_state()
    for _ in range(iterations):
        state = np.sum([contribution(state, rank, 0.0) for rank in range(ranks)], axis=0)
    return state


def plain_series(context: SparkContext, series: GroupSeries, traffic: Traffic) -> GroupSamples:
    """A series by plain Spark jobs, timed at the driver.

    Args:
        context: the driver's Spark context.
        series: what to do; its system is "spark" or "spark2".
        traffic: counts what passes the driver; looked at where the timed part begins and ends.
    """
    iterate = one_job if series.system == "spark" else two_jobs
    places = context.parallelize(range(series.ranks), series.ranks)
    state, seconds = first_state(), []
    for iteration in range(series.iterations):
        if iteration == series.warmup * series.group_size:
            traffic.since_last()
        begun = time.perf_counter()
        state = iterate(places, state, series.body_s)
        seconds.append(time.perf_counter() - begun)
    segments = traffic.since_last()
    timed = np.array(seconds[-series.repeats * series.group_size :]).reshape(series.repeats, series.group_size)
    verified = np.array_equal(state, state_after(series.ranks, series.iterations))
    return GroupSamples(timed.sum(axis=1).tolist(), segments, verified)


def one_job(places: RDD[int], state: np.ndarray, body_s: float) -> np.ndarray:
    """An iteration as one job: every task returns its array, the driver adds them.

    Args:
        places: one element a partition.
        state: what the last iteration gave; it travels with the tasks' function.
        body_s: seconds that each task computes.

    Returns:
        The next state.
    """
    arrays = places.mapPartitionsWithIndex(partial(_contribute, state, body_s)).collect()
    return np.asarray(np.sum(arrays, axis=0))


def _contribute(state: np.ndarray, body_s: float, rank: int, rows: Iterable[int]) -> Iterator[np.ndarray]:
    for _ in rows:
        yield contribution(state, rank, body_s)


def two_jobs(places: RDD[int], state: np.ndarray, body_s: float) -> np.ndarray:
    """An iteration as two jobs of one stage each, as in BigDL.

    The tasks of the first job compute, cut their arrays into one slice for each task and leave the slices with their
    executors; those of the second fetch and add one slice each. A shuffle is Spark's own way to do that. Its map side
    is submitted as a job of its own, as Spark SQL's adaptive execution does: with public calls alone, the first job
    would need a second stage.

    Args:
        places: one element a partition.
        state: what the last iteration gave; it travels with the tasks' function.
        body_s: seconds that each task computes.

    Returns:
        The next state.
    """
    ranks = places.getNumPartitions()
    cut = places.mapPartitionsWithIndex(partial(_cut, state, body_s, ranks))
    slices = cut.partitionBy(ranks, partitionFunc=int)
    _submit_map_side(slices)
    summed = slices.mapPartitions(_add_slices).collect()
    return np.concatenate([values for _, values in sorted(summed, key=lambda pair: pair[0])])


def _cut(
    state: np.ndarray, body_s: float, ranks: int, rank: int, rows: Iterable[int]
) -> Iterator[tuple[int, np.ndarray]]:
    for _ in rows:
        yield from enumerate(np.array_split(contribution(state, rank, body_s), ranks))


def _add_slices(slices: Iterable[tuple[int, np.ndarray]]) -> Iterator[tuple[int, np.ndarray]]:
    found = list(slices)
    yield found[0][0], np.sum([values for _, values in found], axis=0)


def _submit_map_side(shuffled: RDD[Any]) -> None:
    """Run what writes a shuffle's files, and wait for it."""
    context = shuffled.context
    jvm: Any = context._jvm  # noqa: SLF001 - PySpark has no such call
    scala: Any = context._jsc.sc()  # noqa: SLF001 - likewise
    values: Any = shuffled._jrdd.rdd()  # noqa: SLF001 - of the pairs that were shuffled
    written = values.dependencies().head().rdd().dependencies().head()
    job = scala.submitMapStage(written)
    jvm.scala.concurrent.Await.result(job, jvm.scala.concurrent.duration.Duration.Inf())
