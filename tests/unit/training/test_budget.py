from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from mizzle.training.budget import TimeBudget


class Catching(nn.Module):
    """Goes on whatever its layers raise; time passes in between."""

    def __init__(self, passes: Callable[[], None]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 2), nn.Linear(2, 1)
        self.passes = passes
        self.done: list[str] = []

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.first(inputs)
        self.passes()
        try:
            hidden = self.last(hidden)
        except Exception:  # noqa: BLE001 - what user code does
            self.done.append("caught")
        self.done.append("forward")
        total: torch.Tensor = hidden.sum()
        return total


class Scene:
    """A model under a budget of three seconds, one of which passes in each forward."""

    def __init__(self) -> None:
        self.now = 0.0
        self.model = Catching(self.tick)
        self.budget = TimeBudget(self.model, lambda: self.now)

    def tick(self) -> None:
        self.now += 1.0

    def step(self) -> str:
        self.model(torch.ones(1, 2)).backward()
        return "done"


def test_what_is_done_in_time_counts_and_what_is_not_is_stopped_even_where_exceptions_are_caught() -> None:
    scene = Scene()
    scene.budget.begin(2.5)
    assert [scene.budget.within(scene.step) for _ in range(4)] == ["done", "done", None, None]
    assert scene.model.done == ["forward", "forward"], "the third one ended in its forward, the fourth never began"
    scene.budget.begin(None)
    assert scene.budget.within(scene.step) == "done"


def test_a_gradient_that_comes_too_late_ends_the_backward() -> None:
    scene = Scene()
    scene.model.last.weight.register_hook(lambda _gradient: scene.tick())  # type: ignore[no-untyped-call]
    scene.budget.begin(1.5)
    assert scene.budget.within(scene.step) is None
    assert scene.model.first.weight.grad is None, "backward came no further than the last layer"
    scene.budget.begin(9.0)
    assert scene.budget.within(scene.step) == "done"


def test_other_computations_have_any_time_and_a_closed_budget_leaves_no_hook() -> None:
    scene = Scene()
    scene.budget.begin(0.5)
    assert scene.budget.within(scene.step) is None
    assert scene.step() == "done", "an evaluation, say"
    scene.budget.close()
    assert not any(module._forward_pre_hooks for module in scene.model.modules())
    assert not any(parameter._post_accumulate_grad_hooks for parameter in scene.model.parameters())
