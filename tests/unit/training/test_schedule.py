from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from mizzle.errors import ConfigError, ModelError
from mizzle.training.clipping import ClipByNorm
from mizzle.training.flat import FlatParameters
from mizzle.training.groups import groups_of
from mizzle.training.schedule import HyperSchedule
from mizzle.training.spec import TrainingSpec


def layout() -> FlatParameters:
    model = nn.Linear(3, 4)
    return FlatParameters(model, groups_of(model, [{"params": model.weight}, {"params": model.bias, "lr": 0.01}]))


def adam(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, lr=0.1)


def test_constant_hyperparameters_are_not_sent() -> None:
    assert HyperSchedule(layout(), adam).ahead(3) == [({}, {})] * 3


def test_the_schedule_is_the_one_of_torch_in_groups_of_any_size() -> None:
    def cycle(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
        return lr_scheduler.OneCycleLR(optimizer, max_lr=[0.5, 0.3], total_steps=20)

    optimizer = adam([{"params": [nn.Parameter(torch.ones(1))]}, {"params": [nn.Parameter(torch.ones(1))]}])
    scheduler, expected = cycle(optimizer), []
    for _ in range(19):
        expected.append([(group["lr"], group["betas"]) for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    schedule = HyperSchedule(layout(), adam, cycle)
    planned = [*schedule.ahead(1), *schedule.ahead(0), *schedule.ahead(7), *schedule.ahead(11)]
    assert schedule.position == 19
    assert [[(group["lr"], group["betas"]) for group in plan] for plan in planned] == expected
    assert json.loads(json.dumps(planned[0][0])) == {**planned[0][0], "betas": list(planned[0][0]["betas"])}


def test_a_value_that_comes_back_to_its_first_is_still_sent() -> None:
    def pulse(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
        return lr_scheduler.LambdaLR(optimizer, lambda i: 2.0 if i == 1 else 1.0)

    assert [plan[0] for plan in HyperSchedule(layout(), adam, pulse).ahead(3)] == [{}, {"lr": 0.2}, {"lr": 0.1}]


def test_a_scheduler_that_waits_for_a_metric_is_refused() -> None:
    with pytest.raises(ModelError, match="ReduceLROnPlateau waits for a metric"):
        HyperSchedule(layout(), adam, lr_scheduler.ReduceLROnPlateau)


def spec(**changed: Any) -> TrainingSpec:
    values = {"num_rows": 5, "num_shards": 2, "global_batch_size": 4, **changed}
    return TrainingSpec(loss=nn.functional.mse_loss, optimizer=adam, clipping=ClipByNorm(1.0), **values)


def test_a_spec_travels_by_pickle() -> None:
    assert pickle.loads(pickle.dumps(spec())) == spec()  # noqa: S301 - our own bytes


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_rows", 0), ("num_shards", 0), ("global_batch_size", 0), ("accumulate", 0), ("threads", 0), ("seed", -1),
     ("not_finite", "ignore"), ("evaluation_rows", 0), ("metrics", ["accuracy"])],
)  # fmt: skip
def test_a_spec_without_meaning_is_refused(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        spec(**{field: value})


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"": abs}, "called ''"), ({"loss": abs}, "not 'loss'"), ({"x" * 33: abs}, "at most 32 bytes"),
        ({"ü" * 17: abs}, "at most 32 bytes"), ({3: abs}, "called 3"), ({"a": 0.5}, "metric 'a' is 0.5"),
        ({"a": nn.L1Loss}, "metric 'a' is <class"), ({str(n): abs for n in range(17)}, "17 metrics .*at most 16"),
    ],
)  # fmt: skip
def test_a_metric_that_cannot_be_reported_is_refused(metrics: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        spec(metrics=metrics)
    assert list(spec(metrics={"ü" * 16: abs}).metrics) == ["ü" * 16]


def test_rows_of_an_evaluation_are_those_of_a_shard_in_training_unless_given() -> None:
    assert spec().rows_per_evaluation == 2
    assert spec(global_batch_size=5).rows_per_evaluation == 3
    assert spec(evaluation_rows=100).rows_per_evaluation == 100
