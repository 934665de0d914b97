from __future__ import annotations

import importlib
import io
import logging

import numpy as np
import pytest
import torch

from mizzle.cli.demo import DemoReport, accuracy_of, check_accuracy
from mizzle.cli.digits import Digits, load_digits
from mizzle.cli.epoch_lines import EpochLines
from mizzle.errors import ConfigError, MizzleError
from mizzle.spark.trainer import TrainingResult
from mizzle.training.history import TimeSplit, TrainingHistory


def test_the_split_is_80_to_20_the_same_each_time_and_every_picture_is_in_one_part() -> None:
    first, second = load_digits(), load_digits()
    assert (len(first.train), len(first.test_labels)) == (1437, 360)
    assert first.train == second.train
    assert np.array_equal(first.test_images, second.test_images)
    images = np.concatenate([np.stack(first.train["image"].to_numpy()), first.test_images])
    labels = np.concatenate([first.train["label"].to_numpy(), first.test_labels])
    bundled = importlib.import_module("sklearn.datasets").load_digits()
    both = np.column_stack([images * 16, labels])
    wanted = np.column_stack([bundled.data, bundled.target])
    assert np.array_equal(both[np.lexsort(both.T)], wanted[np.lexsort(wanted.T)])


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'mizzle\[demo\]'"):
        load_digits()


def test_accuracy_is_the_share_of_pictures_told_right() -> None:
    class FirstPixel(torch.nn.Module):
        """Tells class 1 where the first pixel is lit, else class 0."""

        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            lit = pictures[:, 0, 0, 0]
            return torch.stack([1 - lit, lit], dim=1)

    images = np.zeros((4, 64), dtype=np.float32)
    images[:2, 0] = 1
    digits = Digits(load_digits().train, images, np.array([1, 1, 0, 1]))
    assert accuracy_of(FirstPixel(), digits) == 0.75


def test_an_accuracy_below_the_required_one_is_a_failure_that_names_both() -> None:
    check_accuracy(0.97, 0.97)
    check_accuracy(0.0, 0.0)
    with pytest.raises(MizzleError, match=r"96.90%, less than the required 97.00%.*--epochs.*--require-accuracy"):
        check_accuracy(0.969, 0.97)


def test_the_report_holds_exactly_the_promised_fields_and_no_nan() -> None:
    history = TrainingHistory(losses=[0.5, float("nan")], time=TimeSplit(1.0, 2.0, 3.0, 4.0))
    told = {"iterations": 2, "ranks": 2, "transport": "shm", "group_size": 10, "wall_s": 9.0, "rows": 5}
    report = DemoReport.of(TrainingResult(torch.nn.Identity(), history, told), 0.98).as_dict()
    assert report == {
        "accuracy": 0.98, "iterations": 2, "ranks": 2, "transport": "shm", "group_size": 10, "losses": [0.5, None],
        "wall_s": 9.0, "time_split": {"compute": 1.0, "exchange": 2.0, "update": 3.0, "scheduling": 4.0},
    }  # fmt: skip


def test_progress_is_one_line_an_epoch_whatever_the_groups_and_ends_with_the_last_epoch() -> None:
    out = io.StringIO()
    trainer = logging.getLogger("mizzle.spark.course")
    level = trainer.level
    with EpochLines(enabled=True, stream=out):
        for first, stop, epoch, loss in ((0, 10, 0, 2.0), (10, 15, 0, 1.5), (15, 25, 1, 1.0), (25, 30, 1, 0.5)):
            trainer.info(
                "run=%s iterations=%d-%d epoch=%d loss=%g wall_s=%.3f", "ab", first, stop - 1, epoch, loss, 0.5
            )
        trainer.info("something else entirely")
    trainer.info("run=ab iterations=30-30 epoch=2 loss=9 wall_s=1")
    assert [line.split() for line in out.getvalue().splitlines()] == [
        ["epoch", "1", "iteration", "15", "loss", "1.5000", "1.0", "s"],
        ["epoch", "2", "iteration", "30", "loss", "0.5000", "2.0", "s"],
    ]
    assert trainer.level == level


def test_progress_that_is_not_wanted_prints_nothing() -> None:
    out = io.StringIO()
    with EpochLines(enabled=False, stream=out):
        logging.getLogger("mizzle.spark.course").warning("run=a iterations=0-9 epoch=0 loss=1 wall_s=1")
    assert out.getvalue() == ""
