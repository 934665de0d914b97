"""mizzle's part in `mizzle bench scheduling`: the baselines' iterations in groups, one all-reduce in each."""

from __future__ import annotations

import time
import zlib
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from pyspark.sql import SparkSession

from mizzle.bench.scheduling_plain import GroupSamples, GroupSeries, Traffic, contribution, first_state, state_after
from mizzle.spark.iterate import Boundary, iterate
from mizzle.spark.ranks.step import StepContext


def mizzle_series(spark: SparkSession, series: GroupSeries, traffic: Traffic) -> GroupSamples:
    """A series in groups; a group lasts from one boundary to the next, at the driver.

    The last state of each rank is compared with the expected one.

    Args:
        spark: a session with mizzle's settings.
        series: what to do; at least one group of warm-up, in which the ranks come together.
        traffic: counts what passes the driver.
    """
    clock = _Clock(series, traffic)
    result = iterate(
        None, partial(step, series.body_s), iterations=series.iterations, group_size=series.group_size,
        state=first_state(), finish=checksum, on_boundary=clock, ranks=series.ranks, spark=spark,
    )  # fmt: skip
    wanted = zlib.crc32(state_after(series.ranks, series.iterations).tobytes())
    return GroupSamples(clock.seconds[series.warmup :], clock.segments, set(result.values) == {wanted})


def step(body_s: float, context: StepContext, _: None) -> None:
    """One iteration of a rank."""
    context.state = np.asarray(context.all_reduce(contribution(context.state, context.rank, body_s)))


def checksum(context: StepContext, _: None) -> int:
    """Of a rank's last state."""
    state: np.ndarray = context.state
    return zlib.crc32(state.tobytes())


@dataclass(slots=True)
class _Clock:
    """Hears of every boundary; looks at the traffic where the timed part begins and ends."""

    series: GroupSeries
    traffic: Traffic
    seconds: list[float] = field(default_factory=list)
    segments: int | None = None
    _begun: float = field(default_factory=time.perf_counter)

    def __call__(self, _: Boundary) -> None:
        self.seconds.append(time.perf_counter() - self._begun)
        if len(self.seconds) in (self.series.warmup, self.series.warmup + self.series.repeats):
            self.segments = self.traffic.since_last()
        self._begun = time.perf_counter()
