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
from mizzle.training.history import TrainingHistory
from mizzle.training.schedule import HyperSchedule
from mizzle.training.spec import IterationMetrics, IterationPlan, TrainingSpec


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


def metrics(iteration: int, loss: float, rows: int, *, skipped: bool = False) -> IterationMetrics:
    return IterationMetrics(iteration, loss, rows, 1.0, 0.5, 0.25, skipped)


def test_history_gathers_groups_into_epochs_and_times() -> None:
    history = TrainingHistory()
    plans = [IterationPlan(0, 0, 0), IterationPlan(1, 0, 1), IterationPlan(2, 1, 0), IterationPlan(3, 1, 1)]
    seen = [metrics(0, 2.0, 10), metrics(1, 5.0, 5), metrics(2, float("nan"), 10, skipped=True), metrics(3, 1.0, 5)]
    history.add_group(plans[:3], [seen[:3], seen[:3]], wall_s=6.0)
    history.add_group(plans[3:], [seen[3:], seen[3:]], wall_s=2.0)
    assert [(e.epoch, e.rows, e.loss, e.iterations) for e in history.epochs] == [(0, 15, 3.0, 2), (1, 5, 1.0, 2)]
    assert history.skipped == [2]
    time = history.time
    assert (time.compute_s, time.exchange_s, time.update_s, time.scheduling_s) == (4.0, 2.0, 1.0, 1.0)
    assert json.loads(json.dumps(history.as_dict(), allow_nan=False))["losses"] == [2.0, 5.0, None, 1.0]
    assert pickle.loads(pickle.dumps(history)).epochs == history.epochs  # noqa: S301 - our own bytes


def test_history_refuses_ranks_that_differ() -> None:
    with pytest.raises(AssertionError, match="ranks differ in iteration 0"):
        TrainingHistory().add_group([IterationPlan(0, 0, 0)], [[metrics(0, 2.0, 1)], [metrics(0, 2.1, 1)]], 1.0)


def spec(**changed: Any) -> TrainingSpec:
    values = {"num_rows": 5, "num_shards": 2, "global_batch_size": 4, **changed}
    return TrainingSpec(loss=nn.functional.mse_loss, optimizer=adam, clipping=ClipByNorm(1.0), **values)


def test_a_spec_travels_by_pickle() -> None:
    assert pickle.loads(pickle.dumps(spec())) == spec()  # noqa: S301 - our own bytes


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_rows", 0), ("num_shards", 0), ("global_batch_size", 0), ("accumulate", 0), ("threads", 0), ("seed", -1),
     ("not_finite", "ignore")],
)  # fmt: skip
def test_a_spec_without_meaning_is_refused(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        spec(**{field: value})
