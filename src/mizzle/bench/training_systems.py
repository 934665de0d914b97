"""Who takes part in `mizzle bench training`: one process, TorchDistributor, and mizzle, on the same executors.

Every function here is called at the driver and runs one series.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import torch
from pyspark.ml.torch.distributor import TorchDistributor
from pyspark.sql import DataFrame, SparkSession

from mizzle.bench.training_plain import (
    NUM_CLASSES,
    OPTIMIZER,
    SEED,
    PlainSeries,
    TrainingSamples,
    Workload,
    checksum,
    row,
    train_alone,
    train_ddp,
)
from mizzle.config import RunConfig
from mizzle.errors import MizzleError
from mizzle.spark.trainer import Trainer, TrainingResult
from mizzle.training.columns import Columns
from mizzle.training.shards import ShardFile, ShardWriter

System = Literal["single", "torch_distributor", "mizzle"]
SYSTEMS: tuple[System, ...] = get_args(System)
_TIMEOUT_S = 600.0
"""Of one exchange: the largest model on a crowded machine takes many seconds for an iteration."""
_ROWS_AT_ONCE = 16
_READS = 20


@dataclass(frozen=True, slots=True)
class TrainingTask:
    """One series of one system; called with a session, it runs.

    Attributes:
        system: who.
        series: what to do.
        ranks: how many processes; "single" takes one of them.
    """

    system: System
    series: PlainSeries
    ranks: int

    def __call__(self, spark: SparkSession) -> TrainingSamples:
        """Run it."""
        if self.system == "single":
            return alone_series(spark, self.series)
        if self.system == "torch_distributor":
            return distributor_series(self.series, self.ranks)
        return mizzle_series(spark, self.series, self.ranks)


@dataclass(frozen=True, slots=True)
class ReadingTask:
    """What it costs a rank to read its rows from a shard file, on an executor; called with a session, it runs."""

    series: PlainSeries

    def __call__(self, spark: SparkSession) -> float:
        """Median seconds per iteration."""
        place = spark.sparkContext.parallelize([0], 1)
        return float(place.map(partial(_read_on_executor, self.series)).collect()[0])


def alone_series(spark: SparkSession, series: PlainSeries) -> TrainingSamples:
    """Plain PyTorch in one Spark task, the other executors idle."""
    place = spark.sparkContext.parallelize([0], 1)
    samples: TrainingSamples = place.map(partial(_alone_on_executor, series)).collect()[0]
    return samples


def _alone_on_executor(series: PlainSeries, _place: int) -> TrainingSamples:
    return train_alone(series)


def distributor_series(series: PlainSeries, ranks: int) -> TrainingSamples:
    """DDP in the tasks of an unmodified TorchDistributor, one rank a task."""
    distributor = TorchDistributor(num_processes=ranks, local_mode=False, use_gpu=False)
    samples: TrainingSamples | None = distributor.run(train_ddp, series)
    if samples is None:
        raise MizzleError("TorchDistributor returned nothing: look for the reason in the log")
    return samples


def mizzle_series(spark: SparkSession, series: PlainSeries, ranks: int) -> TrainingSamples:
    """The same training through the Trainer, from a DataFrame whose rows lie in shard files.

    Times are those of the history: an iteration is its group's wall time at the driver over the group's iterations,
    so launching groups and keeping boundaries are in it. In the end a validation compares the weights of all ranks.
    """
    plan = GroupPlan.of(series)
    workload = series.workload
    model = workload.fresh_model()
    result = Trainer(
        model, workload.loss, OPTIMIZER, global_batch_size=series.batch * ranks,
        max_epochs=plan.warmup + plan.timed + 1, max_iterations=plan.iterations, seed=SEED, threads=series.threads,
        metrics={"weights": WeightsChecksum(model)}, validate_every=plan.iterations,
        run=RunConfig(ranks=ranks, group_size=plan.size, timeout_s=_TIMEOUT_S), progress=False,
    ).fit(
        frame(spark, workload, plan.size * series.batch * ranks, ranks), features="image", label="label",
        shape=workload.shape, num_classes=NUM_CLASSES, validation=frame(spark, workload, ranks, ranks),
    )  # fmt: skip
    return samples_of(result, plan)


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """How a series is cut into groups; one more iteration behind the timed ones ends in the comparison of weights.

    Attributes:
        size: K, iterations of a group; an epoch has as many.
        warmup: untimed groups, in which the ranks come together.
        timed: groups after them.
    """

    size: int
    warmup: int
    timed: int

    @classmethod
    def of(cls, series: PlainSeries) -> GroupPlan:
        """As many whole groups as hold the iterations that were asked for, at least one of each kind."""
        size = series.workload.group_size
        return cls(size, *(max(1, math.ceil(count / size)) for count in (series.warmup, series.repeats)))

    @property
    def iterations(self) -> int:
        """Of all."""
        return (self.warmup + self.timed) * self.size + 1


class WeightsChecksum:
    """A metric that looks at no row: the checksum of the model on the rank that evaluates.

    Its mean over the ranks is rank 0's if all have the same bits. Made with the model that is trained, and pickled
    together with it, it sees the copy that a rank trains.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        """Remember the model."""
        self.model = model

    def __call__(self, _output: object, _target: object) -> float:
        """A whole number below 2**32: sums over ranks are exact."""
        return float(checksum(self.model))


def samples_of(result: TrainingResult, plan: GroupPlan) -> TrainingSamples:
    """The timed groups of a fit, in seconds per iteration."""
    timed = result.history.groups[plan.warmup : plan.warmup + plan.timed]
    assert [group.size for group in timed] == [plan.size] * plan.timed, f"the groups were cut otherwise: {timed}"
    return TrainingSamples(
        iteration_s=[group.wall_s / group.size for group in timed],
        compute_s=[group.compute_s / group.size for group in timed],
        exchange_s=[group.exchange_s / group.size for group in timed],
        hidden_s=[group.hidden_s / group.size for group in timed],
        finite=all(map(math.isfinite, result.history.losses)),
        agreed=result.history.evaluations[-1].metrics["weights"] == float(checksum(result.model)),
    )


def frame(spark: SparkSession, workload: Workload, num_rows: int, partitions: int) -> DataFrame:
    """Rows of a workload as a DataFrame: made on the executors whenever it is computed."""
    numbers = spark.range(0, num_rows, 1, partitions)
    return numbers.mapInArrow(MakeRows(workload), "image array<float>, label bigint")


@dataclass(frozen=True, slots=True)
class MakeRows:
    """Runs on an executor: numbers of rows in, the rows out."""

    workload: Workload

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """A few rows at a time: one of a photograph's size has 600 KB."""
        for batch in batches:
            numbers = batch.column(0).to_pylist()
            for first in range(0, len(numbers), _ROWS_AT_ONCE):
                yield record_batch(self.workload, numbers[first : first + _ROWS_AT_ONCE])


def record_batch(workload: Workload, numbers: list[int], *, fixed: bool = False) -> pa.RecordBatch:
    """Rows as Arrow.

    Args:
        workload: whose.
        numbers: of the rows.
        fixed: arrays of fixed length, as they lie in a shard; Spark has only the other ones.
    """
    rows = [row(workload, number) for number in numbers]
    values = pa.array(np.concatenate([inputs.ravel() for inputs, _ in rows]))
    length = math.prod(workload.shape)
    if fixed:
        images = pa.FixedSizeListArray.from_arrays(values, length)
    else:
        offsets = pa.array(np.arange(len(rows) + 1, dtype=np.int32) * length)
        images = pa.ListArray.from_arrays(offsets, values)
    return pa.RecordBatch.from_arrays([images, pa.array([label for _, label in rows])], names=["image", "label"])


def read_s(series: PlainSeries, directory: Path) -> float:
    """Median seconds of reading a rank's rows of one iteration from a shard file, which lies in the page cache."""
    path, workload = directory / "shard.arrow", series.workload
    torch.set_num_threads(series.threads)
    batch = record_batch(workload, list(range(_ROWS_AT_ONCE)), fixed=True)
    with ShardWriter(path, batch.schema) as writer:
        writer.write(batch, partition=0, chunk=0)
    random = np.random.default_rng(SEED)
    seconds = []
    with ShardFile(path, Columns.of("image", "label", shape=workload.shape)) as shard:
        for _ in range(_READS):
            positions = random.integers(shard.num_rows, size=series.batch)
            begun = time.perf_counter()
            shard.batch(positions)
            seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def _read_on_executor(series: PlainSeries, _place: int) -> float:
    with tempfile.TemporaryDirectory(prefix="mizzle-reading-") as directory:
        return read_s(series, Path(directory))
