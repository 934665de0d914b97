"""Small fits on a real Spark, and what they leave behind; the same trainings as ``unit.training.runs`` does in threads.

Executors cannot import the tests, so that the classes and functions in them travel by value.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from pyspark import cloudpickle
from pyspark.sql import DataFrame, SparkSession
from torch import nn

from mizzle.config import RunConfig
from mizzle.errors import Misplaced
from mizzle.spark.runner import GroupRun, GroupRunner
from mizzle.spark.trainer import Trainer, TrainingResult
from unit.training import runs
from unit.training.runs import NUM_SHARDS, Outcome, Rows, Training

for module in (sys.modules[__name__], runs):
    cloudpickle.register_pickle_by_value(module)  # type: ignore[no-untyped-call]

ITERATIONS = 8
_SEEDED = threading.Lock()
"""Two trainings may begin at once, and torch has one generator to make models with."""


def frame(spark: SparkSession, data: Rows) -> DataFrame:
    """The rows of a training in their order, in two partitions of unequal size."""
    rows = list(zip(data.inputs.tolist(), data.targets.tolist(), strict=True))
    first = len(rows) // 3
    spread = spark.sparkContext.parallelize([rows[:first], rows[first:]], 2).flatMap(lambda part: part)
    return spark.createDataFrame(spread, "x array<float>, y int")


def trainer(training: Training, ranks: int = 2, *, run: dict[str, Any] | None = None, **how: Any) -> Trainer:
    """A Trainer for it, with V = 4 as everywhere in these trainings."""
    layout = {"ranks": ranks, "shards": NUM_SHARDS, "group_size": 50} | (run or {})
    options = {"max_epochs": 100, "max_iterations": ITERATIONS} | dict(training.options) | how
    options["clip"] = options.pop("clipping", None)
    options["wire"] = options.get("wire", "fp32")
    with _SEEDED:
        model = training.fresh_model()
    return Trainer(
        model,
        training.loss,
        training.optimizer,
        global_batch_size=training.batch_size,
        seed=7,
        parameter_groups=training.groups,
        scheduler=training.scheduler,
        run=RunConfig(**layout),
        **options,
    )


def fit(spark: SparkSession, training: Training, ranks: int = 2, **how: Any) -> TrainingResult:
    """Fit it on its own rows."""
    return trainer(training, ranks, **how).fit(frame(spark, training.data), features="x", label="y")


def put_away_once(monkeypatch: pytest.MonkeyPatch, orders: Sequence[int], *, done: Sequence[int] = ()) -> list[int]:
    """As if Spark had started a task of these orders away from its rank, once each: the ranks settle anew.

    Args:
        monkeypatch: of the test.
        orders: numbers of the orders, repeated ones counted.
        done: of these, those that all ranks do before, in vain.

    Returns:
        The orders that were given, in the end.
    """
    given: list[int] = []
    run_once = GroupRunner._run_once

    def away(self: GroupRunner, title: str, pickled: bytes) -> GroupRun:
        given.append(len(given))
        if given[-1] in done:
            run_once(self, title, pickled)
        if given[-1] in orders:
            raise Misplaced("as if a task had been started away from its rank")
        return run_once(self, title, pickled)

    monkeypatch.setattr(GroupRunner, "_run_once", away)
    return given


def assert_equal_bits(*results: TrainingResult) -> None:
    """Losses and models are equal bit for bit, and there is something to compare."""
    first = results[0]
    assert len(results) > 1
    assert first.history.losses
    for other in results[1:]:
        assert other.history.losses == first.history.losses
        state = other.model.state_dict()
        for name, value in first.model.state_dict().items():
            assert torch.equal(state[name], value), name


def assert_close(result: TrainingResult, plain: Outcome) -> None:
    """Losses and weights agree with plain PyTorch up to fp32 rounding.

    Sums are added shard by shard here and in one matrix product there, so that gradients differ in the last of 24
    bits; the limits are those of ``contract/test_training_equality.py``, where they are accounted for.
    """
    assert len(result.history.losses) == len(plain.losses)
    torch.testing.assert_close(torch.tensor(result.history.losses), torch.tensor(plain.losses), rtol=2e-6, atol=0.0)
    state = result.model.state_dict()
    for name, value in plain.model.items():
        torch.testing.assert_close(state[name], value, rtol=1e-5, atol=2e-6, msg=name)


class CountRows(nn.Module):
    """The loss is the mean of one weight a row: its gradient says which rows an iteration had. Inputs are one-hot."""

    def __init__(self, num_rows: int) -> None:
        super().__init__()
        self.seen = nn.Parameter(torch.zeros(num_rows))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = inputs @ self.seen
        return out


class Fragile(runs.Mlp):
    """Turns one marked row, whose first input is 1234, into NaN, or into an error."""

    def __init__(self, *, raises: bool) -> None:
        super().__init__()
        self.raises = raises

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        marked = (inputs[:, :1] == 1234).any()
        if marked and self.raises:
            raise ValueError("boom at the marked row")
        out: torch.Tensor = super().forward(inputs)
        return out * float("nan") if marked else out


def mark(data: Rows, row: int) -> Rows:
    """The same rows, one of them marked."""
    data.inputs[row, 0] = 1234
    return data


def iteration_of(training: Training, row: int) -> int:
    """When a row has its turn in the first epoch."""
    order, shard = training.order(), row % NUM_SHARDS
    return next(t for t in range(order.iterations_per_epoch) if row // NUM_SHARDS in order.rows(0, t, shard))
