"""What group scheduling must not change: weights, schedule, validation and early stopping, for any group size."""

from __future__ import annotations

import logging
import sys
from typing import Any

import pytest
import torch
from pyspark import cloudpickle
from pyspark.sql import DataFrame, SparkSession

from cluster.trainings import assert_equal_bits, frame, put_away_once, trainer
from mizzle.config import GroupSize
from mizzle.errors import ConfigError, DataError
from mizzle.spark.trainer import TrainingResult
from mizzle.training.evaluate import Evaluation
from mizzle.training.stopping import EarlyStopping
from unit.training.runs import Mlp, Training, digits

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]

EPOCH = 12
"""Iterations: 90 rows, 8 at a time."""


def adam(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, lr=3e-3)


def cosine(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)


def accuracy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output.argmax(dim=1) == target).float().mean()


def grouped(spark: SparkSession, size: GroupSize, **how: Any) -> TrainingResult:
    training = Training(lambda: Mlp(dropout=0.3), digits(), adam, batch_size=8, scheduler=cosine)
    fitter = trainer(training, run={"group_size": size}, metrics={"accuracy": accuracy}, **how)
    return fitter.fit(frame(spark, training.data), features="x", label="y", validation=held_out(spark))


def held_out(spark: SparkSession) -> DataFrame:
    return frame(spark, digits(num_rows=37, seed=5))


def points(result: TrainingResult) -> list[tuple[int, float, float]]:
    return [(one.iteration, one.loss, one.metrics["accuracy"]) for one in result.history.evaluations]


@pytest.fixture(scope="module")
def whole(spark_local: SparkSession) -> TrainingResult:
    """30 iterations in groups that only triggers end: at 7, 12 (an epoch), 14, 21, 24, 28 and 30."""
    return grouped(spark_local, 100, max_iterations=30, validate_every=7)


@pytest.mark.parametrize("size", [1, 7, "auto"])
def test_no_group_size_changes_weights_schedule_or_validation(
    spark_local: SparkSession, whole: TrainingResult, size: GroupSize
) -> None:
    result = grouped(spark_local, size, max_iterations=30, validate_every=7)
    assert_equal_bits(whole, result)
    assert points(result) == points(whole)
    assert [one.iteration for one in result.history.evaluations] == [6, 13, 20, 27, 29]
    assert all(one.rows == 37 for one in result.history.evaluations)
    assert sum(group.size for group in result.history.groups) == 30


def test_ranks_that_settle_anew_go_on_with_the_same_bits(
    spark_local: SparkSession, whole: TrainingResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = put_away_once(monkeypatch, (0, 3, 4, 8), done=(3, 8))
    result = grouped(spark_local, 7, max_iterations=30, validate_every=7)
    assert len(given) == 4 + 7 + 1, "four in vain, seven groups, the end"
    assert_equal_bits(whole, result)
    assert points(result) == points(whole)


def test_groups_end_at_triggers_and_say_why(whole: TrainingResult) -> None:
    assert [(group.stop, group.cut) for group in whole.history.groups] == [
        (7, "validation"), (12, "epoch end"), (14, "validation"), (21, "validation"), (24, "epoch end"),
        (28, "validation"), (30, "end"),
    ]  # fmt: skip
    for group in whole.history.groups:
        parts = group.launch_s + group.compute_s + group.exchange_s + group.update_s + group.boundary_s
        assert 0 < parts <= group.wall_s * 1.01
        assert group.driver_cpu_s > 0
        assert group.decision


@pytest.mark.parametrize("size", [1, 5, 100])
def test_early_stopping_falls_on_the_same_iteration(spark_local: SparkSession, size: int) -> None:
    stop = EarlyStopping(patience=2, min_delta=0.05)
    result = grouped(spark_local, size, max_iterations=400, validate_every=5, stop=stop)
    losses = [one.loss for one in result.history.evaluations]
    assert result.report["stopped_early"]
    assert result.report["iterations"] == 5 * len(losses) == _stops_at(losses) * 5 == len(result.history.losses)
    assert_equal_bits(result, grouped(spark_local, 100, max_iterations=result.report["iterations"]))


def _stops_at(losses: list[float]) -> int:
    """Early stopping written down once more."""
    best, waited = float("inf"), 0
    for at, loss in enumerate(losses, start=1):
        best, waited = (loss, 0) if loss < best - 0.05 else (best, waited + 1)
        if waited == 2:
            return at
    raise AssertionError(losses)


def test_validation_comes_with_every_epoch_by_default_and_does_not_depend_on_the_ranks(
    spark_local: SparkSession,
) -> None:
    results = [grouped(spark_local, "auto", max_iterations=26, ranks=ranks) for ranks in (1, 2)]
    assert_equal_bits(*results)
    assert points(results[0]) == points(results[1])
    assert [one.iteration for one in results[0].history.evaluations] == [EPOCH - 1, 2 * EPOCH - 1, 25]
    assert [one.epoch for one in results[0].history.evaluations] == [0, 1, 2]
    plain: Evaluation = results[0].history.evaluations[-1]
    inputs, targets = digits(num_rows=37, seed=5).inputs, digits(num_rows=37, seed=5).targets
    with torch.inference_mode():
        output = results[0].model(inputs)
    assert plain.loss == pytest.approx(float(torch.nn.functional.cross_entropy(output, targets)), rel=1e-5)
    assert plain.metrics["accuracy"] == pytest.approx(float(accuracy(output, targets)))


def test_what_validation_cannot_do_is_refused_before_anything_starts(spark_local: SparkSession) -> None:
    training = Training(Mlp, digits(), adam)
    df = frame(spark_local, training.data)
    with pytest.raises(ConfigError, match="no validation DataFrame"):
        trainer(training, stop=EarlyStopping()).fit(df, features="x", label="y")
    with pytest.raises(ConfigError, match="validate_every is 0"):
        trainer(training, validate_every=0)
    with pytest.raises(ConfigError, match="accuracy"):
        trainer(training, stop=EarlyStopping(monitor="accuracy"))
    narrow = df.selectExpr("slice(x, 1, 8) as x", "y")
    with pytest.raises(DataError, match="8"):
        trainer(training).fit(df, features="x", label="y", validation=narrow)


def test_a_group_is_logged_with_its_times_and_the_tuners_reason(
    spark_local: SparkSession, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "mizzle.spark.course"):
        result = grouped(spark_local, "auto", max_iterations=5)
    lines = [record.getMessage() for record in caplog.records if record.name == "mizzle.spark.course"]
    assert len(lines) == len(result.history.groups)
    for name in ("iterations=", "K=", "launch_s=", "wait_s=", "compute_s=", "exchange_s=", "boundary_s=",
                 "driver_cpu_s=", "decision="):  # fmt: skip
        assert name in lines[0], lines[0]
