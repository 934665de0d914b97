"""A training that was saved goes on: in another application, on other ranks, with the bits of one that never ended."""

from __future__ import annotations

import logging
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from pyspark import cloudpickle
from pyspark.sql import SparkSession

from cluster.trainings import assert_equal_bits, frame, put_away_once, trainer
from mizzle.config import Checkpoints
from mizzle.errors import CheckpointError, ConfigError
from mizzle.spark.trainer import TrainingResult
from mizzle.training.checkpoint import CheckpointStore
from mizzle.training.stopping import EarlyStopping
from unit.training.runs import Mlp, Training, digits

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]

ITERATIONS = 24


def adam(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, lr=3e-3)


def sgd(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def cosine(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)


def fitted(
    spark: SparkSession, path: Path | None, *, resume: Literal["never", "auto"] = "never", ranks: int = 2, **how: Any
) -> TrainingResult:
    """A fit with all that has a state: optimizer, schedule, dropout, batch norm, validation, early stopping."""
    training = Training(lambda: Mlp(dropout=0.3, norm=True), digits(), adam, batch_size=15, scheduler=cosine)
    saved = None if path is None else Checkpoints(path=path, every=how.pop("every", 5), keep=10)
    options: dict[str, Any] = {
        "max_iterations": ITERATIONS,
        "validate_every": 4,
        "stop": EarlyStopping(patience=50),
    } | how
    fitter = trainer(training, ranks, checkpoints=saved, **options)
    rows = digits(num_rows=37, seed=5)
    return fitter.fit(
        frame(spark, training.data), features="x", label="y", validation=frame(spark, rows), resume=resume
    )  # fmt: skip


def saved_iterations(path: Path) -> list[int]:
    return [one.iteration for one in CheckpointStore(str(path)).listed() if one.committed]


def assert_same(result: TrainingResult, other: TrainingResult) -> None:
    assert_equal_bits(result, other)
    assert result.history.evaluations == other.history.evaluations


@pytest.fixture(scope="module")
def whole(spark_local: SparkSession) -> TrainingResult:
    """Without checkpoints, in one go."""
    return fitted(spark_local, None)


@pytest.fixture(scope="module")
def saved(spark_local: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a training was saved that ended in the middle."""
    path = tmp_path_factory.mktemp("saved")
    result = fitted(spark_local, path, max_iterations=12)
    assert [(one.iteration, one.fault) for one in result.history.checkpoints] == [(5, ""), (10, ""), (12, "")]
    assert result.report["checkpoints"] == 3
    return path


@pytest.fixture
def half(saved: Path, tmp_path: Path) -> Path:
    """The same, for this test alone."""
    return shutil.copytree(saved, tmp_path / "ck")


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_training_goes_on_from_its_newest_checkpoint_on_any_number_of_ranks(
    spark_local: SparkSession, whole: TrainingResult, half: Path, ranks: int
) -> None:
    result = fitted(spark_local, half, resume="auto", ranks=ranks)
    assert result.report["resumed_at"] == 12
    assert result.history.groups[0].first == 12
    assert_same(result, whole)


def half_frozen(factor: float) -> Mlp:
    """Its first layer is not trained, and stands for one that is random at every start."""
    model = Mlp()
    for parameter in model.first.requires_grad_(requires_grad=False).parameters():
        parameter.mul_(factor)
    return model


def test_a_layer_that_is_not_trained_has_the_weights_of_the_checkpoint(
    spark_local: SparkSession, tmp_path: Path
) -> None:
    def fitted_with(factor: float, until: int, **how: Any) -> TrainingResult:
        training = Training(partial(half_frozen, factor), digits(), adam)
        saved = Checkpoints(path=tmp_path / how.pop("path"), every=100)
        fitter = trainer(training, checkpoints=saved, max_iterations=until)
        return fitter.fit(frame(spark_local, training.data), features="x", label="y", **how)

    whole = fitted_with(1.0, 8, path="whole")
    fitted_with(1.0, 4, path="half")
    result = fitted_with(-2.0, 8, path="half", resume="auto")
    assert result.report["resumed_at"] == 4
    assert_equal_bits(result, whole)


def test_a_checkpoint_serves_no_other_optimizer(spark_local: SparkSession, half: Path) -> None:
    training = Training(lambda: Mlp(dropout=0.3, norm=True), digits(), sgd, batch_size=15)
    fitter = trainer(training, checkpoints=Checkpoints(path=half), max_iterations=ITERATIONS)
    with pytest.raises(ConfigError, match=r"optimizer 'torch.optim.adam.Adam, sharded' there, 'torch.optim.sgd.SGD"):
        fitter.fit(frame(spark_local, training.data), features="x", label="y", resume="auto")


def test_the_number_of_shards_comes_from_the_checkpoint(
    spark_local: SparkSession, whole: TrainingResult, half: Path
) -> None:
    result = fitted(spark_local, half, resume="auto", run={"ranks": 1, "shards": None})
    assert result.report["shards"] == whole.report["shards"]
    assert_same(result, whole)


def test_a_damaged_checkpoint_is_passed_over_and_named(
    spark_local: SparkSession, whole: TrainingResult, half: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newest = CheckpointStore(str(half)).listed()[0].name
    part = next((half / newest).glob("part-*"))
    raw = bytearray(part.read_bytes())
    raw[-1] ^= 1
    part.write_bytes(raw)
    with caplog.at_level(logging.WARNING):
        result = fitted(spark_local, half, resume="auto")
    assert result.report["resumed_at"] == 10
    assert str(part) in caplog.text
    assert_same(result, whole)


def test_with_no_whole_checkpoint_left_nothing_is_begun_anew(spark_local: SparkSession, half: Path) -> None:
    for manifest in half.glob("*/MANIFEST.json"):
        manifest.write_text("{}")
    with pytest.raises(CheckpointError, match="none of the 3 checkpoints"):
        fitted(spark_local, half, resume="auto")


def test_a_finished_training_is_loaded_and_not_trained(spark_local: SparkSession, half: Path) -> None:
    first = fitted(spark_local, half, resume="auto", max_iterations=12)
    again = fitted(spark_local, half, resume="auto", max_iterations=12)
    assert again.history.groups == []
    assert again.history.checkpoints == []
    assert_same(again, first)


def test_a_training_that_begins_wants_a_folder_of_its_own(spark_local: SparkSession, half: Path) -> None:
    with pytest.raises(ConfigError, match="resume='auto'"):
        fitted(spark_local, half)


def test_a_checkpoint_serves_no_other_training(spark_local: SparkSession, half: Path) -> None:
    with pytest.raises(ConfigError, match="shards 4 there, 3 here"):
        fitted(spark_local, half, resume="auto", run={"shards": 3})


def test_a_fault_while_a_checkpoint_is_written_gives_it_up_or_writes_it_again(
    spark_local: SparkSession, whole: TrainingResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_away_once(monkeypatch, [2, 5], done=[2])
    result = fitted(spark_local, tmp_path / "ck", every=4)
    assert_same(result, whole)
    assert saved_iterations(tmp_path / "ck")[0] == ITERATIONS
    assert CheckpointStore(str(tmp_path / "ck")).newest_valid() is not None


def test_only_the_newest_are_kept(spark_local: SparkSession, tmp_path: Path) -> None:
    training = Training(Mlp, digits(), adam)
    fitter = trainer(training, checkpoints=Checkpoints(path=tmp_path, every=2, keep=2), max_iterations=8)
    fitter.fit(frame(spark_local, training.data), features="x", label="y")
    assert saved_iterations(tmp_path) == [8, 6]
