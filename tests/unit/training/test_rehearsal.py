"""A model that cannot train is found before anything is sent, with the shapes and torch's own words."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import nn

from mizzle.errors import ModelError
from mizzle.training.columns import Columns
from mizzle.training.rehearsal import fewest_rows, rehearse
from mizzle.training.spec import TrainingSpec

ROWS = pa.RecordBatch.from_pydict({"x": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], "y": [0, 1, 2]})
COLUMNS = Columns.of("x", "y")


def sgd(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.1)


def spec(**how: Any) -> TrainingSpec:
    given: dict[str, Any] = {"loss": nn.functional.cross_entropy, "optimizer": sgd, "num_rows": 100, "num_shards": 4}
    return TrainingSpec(**(given | {"global_batch_size": 8} | how))


def test_a_model_that_trains_passes_and_leaves_torch_as_it_was() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Linear(2, 3))
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    rehearse(model, spec(threads=threads + 1), COLUMNS, ROWS)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state)


def test_no_rows_are_no_fault() -> None:
    rehearse(nn.Linear(9, 9), spec(), COLUMNS, ROWS.slice(0, 0))


def test_a_wrong_shape_is_told_with_both_shapes_and_types() -> None:
    with pytest.raises(ModelError, match=r"inputs \(3, 2\) float32; targets \(3,\) int64.*mat1 and mat2") as found:
        rehearse(nn.Linear(5, 3), spec(), COLUMNS, ROWS)
    assert isinstance(found.value.__cause__, RuntimeError)


def test_one_output_too_many_dimensions_is_warned_of() -> None:
    columns = Columns.of("x", "z")
    rows = pa.RecordBatch.from_pydict({"x": [[1.0, 2.0], [3.0, 4.0]], "z": [0.5, 1.5]})
    with pytest.warns(UserWarning, match=r"returns \(2, 1\) and the targets are \(2,\): .*squeeze"):
        rehearse(nn.Linear(2, 1), spec(loss=outer_square), columns, rows)


def outer_square(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output - target).square().mean()


def test_a_loss_that_is_a_sum_is_warned_of_and_a_mean_is_not() -> None:
    with pytest.warns(UserWarning, match=r"looks like a sum.*needs the mean"):
        rehearse(nn.Linear(2, 3), spec(loss=nn.CrossEntropyLoss(reduction="sum")), COLUMNS, ROWS)
    rehearse(nn.Linear(2, 3), spec(loss=nn.CrossEntropyLoss()), COLUMNS, ROWS)  # warnings are errors here


def test_a_collate_that_fails_is_told_as_such() -> None:
    def collate(_rows: pa.RecordBatch) -> Any:
        raise KeyError("jpeg")

    with pytest.raises(ModelError, match=r"collate does not make into tensors.*KeyError: 'jpeg'"):
        rehearse(nn.Linear(2, 3), spec(), Columns.of("x", "y", collate=collate), ROWS)


def test_errors_of_our_own_come_through_as_they_are() -> None:
    def number(_output: torch.Tensor, _target: torch.Tensor) -> float:
        return 1.0

    with pytest.raises(ModelError, match=r"^the loss returned float: return a scalar tensor"):
        rehearse(nn.Linear(2, 3), spec(loss=number), COLUMNS, ROWS)


def test_a_metric_or_an_eval_mode_that_fails_is_found_where_there_will_be_an_evaluation() -> None:
    def topk(output: torch.Tensor, _target: torch.Tensor) -> torch.Tensor:
        return output.topk(5).values.mean()

    rehearse(nn.Linear(2, 3), spec(metrics={"top": topk}), COLUMNS, ROWS)
    with pytest.raises(ModelError, match=r"^an evaluation was tried on the driver.*selected index k out of range"):
        rehearse(nn.Linear(2, 3), spec(metrics={"top": topk}), COLUMNS, ROWS, evaluate=True)
    with pytest.raises(ModelError, match=r"^an evaluation was tried.*RuntimeError: only in training"):
        rehearse(OnlyInTraining(2, 3), spec(), COLUMNS, ROWS, evaluate=True)
    rehearse(nn.Linear(2, 3), spec(metrics={"mean": lambda output, _: output.mean()}), COLUMNS, ROWS, evaluate=True)


class OnlyInTraining(nn.Linear):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if not self.training:
            raise RuntimeError("only in training")
        return super().forward(inputs)


def test_a_loss_that_is_nan_is_left_to_the_run() -> None:
    def nan(output: torch.Tensor, _target: torch.Tensor) -> torch.Tensor:
        return output.sum() * float("nan")

    rehearse(nn.Linear(2, 3), spec(loss=nan), COLUMNS, ROWS)


@pytest.mark.parametrize(
    ("how", "iterations", "expected"),
    [
        ({"global_batch_size": 20}, 5, 5),  # 100 rows: five iterations of 20, 5 rows a shard
        ({"global_batch_size": 48}, 3, 1),  # the third has 4 rows left, one a shard
        ({"global_batch_size": 48}, 2, 12),  # the run ends before it comes to that
        ({"global_batch_size": 48, "accumulate": 5}, 2, 2),  # 12 rows in five parts
        ({"global_batch_size": 3}, 9, 1),  # some shards have no row, the others one
    ],
)
def test_the_smallest_batch_of_a_run_is_known_beforehand(how: dict[str, Any], iterations: int, expected: int) -> None:
    assert fewest_rows(spec(**how), iterations) == expected


@pytest.mark.parametrize("evaluate", [False, True])
def test_nothing_of_the_model_is_left_behind(*, evaluate: bool) -> None:
    model = nn.Linear(2, 3)
    weight = weakref.ref(model.weight)
    rehearse(model, spec(), COLUMNS, ROWS, evaluate=evaluate)
    del model
    gc.collect()
    assert weight() is None, "a driver that trains again and again would grow by each model"
