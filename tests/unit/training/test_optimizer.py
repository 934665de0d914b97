from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from mizzle.collectives.layout import ExchangeLayout
from mizzle.collectives.slices import ALIGNMENT, Slice
from mizzle.errors import ModelError
from mizzle.training.flat import FlatParameters
from mizzle.training.groups import ParameterGroup
from mizzle.training.optimizer import ELEMENTWISE, FlatOptimizer, is_elementwise, probe
from mizzle.training.state import pack_state, unpack_state

FACTORIES: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    **{kind.__name__: partial(kind, lr=0.01) for kind in ELEMENTWISE},
    "SGD momentum": lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.1),
    "Adam amsgrad": lambda groups: torch.optim.Adam(groups, lr=0.01, amsgrad=True, weight_decay=0.1),
    "RMSprop centered": lambda groups: torch.optim.RMSprop(groups, lr=0.01, centered=True, momentum=0.5),
}


def model_of(rows: int = 150) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, rows), nn.ReLU(), nn.Linear(rows, 7))


def flat_of(model: nn.Module) -> FlatParameters:
    return FlatParameters(model, [
        ParameterGroup(("0.weight", "2.weight"), {"lr": 0.02}),
        ParameterGroup(("0.bias",)),
        ParameterGroup(("2.bias",)),
    ])  # fmt: skip


def gradients_for(flat: FlatParameters, step: int) -> torch.Tensor:
    stream = torch.Generator().manual_seed(step)
    gradients = torch.zeros(flat.num_elements)
    for slot in flat.slots:
        slot.view(gradients).copy_(torch.randn(slot.shape, generator=stream))
    return gradients


def owned_parts(num_elements: int, num_ranks: int, stripe: int) -> list[tuple[Slice, ...]]:
    """The ranges of every rank when each stripe is cut among all."""
    layout = ExchangeLayout(num_elements, num_ranks, tuple((rank,) for rank in range(num_ranks)), stripe=stripe)
    return [layout.owned(rank) for rank in range(num_ranks)]


def end_to_end(values: torch.Tensor, owned: Sequence[Slice]) -> torch.Tensor:
    return torch.cat([values[:0], *(values[one.start : one.stop] for one in owned)])


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("num_ranks", [2, 5, 9])
@pytest.mark.parametrize("stripe", [ALIGNMENT, 3 * ALIGNMENT, 1 << 20])
def test_slices_give_the_bits_of_the_whole_and_of_plain_torch(name: str, num_ranks: int, stripe: int) -> None:
    model = model_of()
    flat = flat_of(model)
    whole, cut = torch.empty(flat.num_elements), torch.empty(flat.num_elements)
    flat.copy_to(whole)
    flat.copy_to(cut)
    parts = owned_parts(flat.num_elements, num_ranks, stripe)
    assert flat.num_elements > 5 * ALIGNMENT
    assert max(map(len, parts)) == len(range(0, flat.num_elements, stripe)) or num_ranks > stripe // ALIGNMENT
    over_whole = FlatOptimizer.whole(FACTORIES[name], flat, whole)
    over_parts = [
        FlatOptimizer.sharded(FACTORIES[name], flat, owned, [cut[one.start : one.stop] for one in owned])
        for owned in parts
    ]
    plain = FACTORIES[name](
        [{"params": [dict(model.named_parameters())[n] for n in g.names], **g.options} for g in flat.groups]
    )
    for step in range(4):
        gradients = gradients_for(flat, step)
        over_whole.step(gradients)
        for owned, optimizer in zip(parts, over_parts, strict=True):
            optimizer.step(end_to_end(gradients, owned))
        for parameter, view in zip(flat.parameters, flat.views(gradients), strict=True):
            parameter.grad = view
        plain.step()
    assert torch.equal(whole, cut)
    for slot in flat.slots:
        assert torch.equal(slot.view(cut), dict(model.named_parameters())[slot.name]), slot.name


@pytest.mark.parametrize("name", FACTORIES)
def test_state_comes_back_bit_for_bit(name: str) -> None:
    flat = flat_of(model_of())
    own = owned_parts(flat.num_elements, 3, 3 * ALIGNMENT)[1]
    assert len(own) == 3
    weights = torch.empty(flat.num_elements)
    flat.copy_to(weights)
    first = FlatOptimizer.sharded(FACTORIES[name], flat, own, [weights[one.start : one.stop] for one in own])
    for step in range(3):
        first.step(end_to_end(gradients_for(flat, step), own))
    raw = pack_state(*first.state())
    copy = weights.clone()
    second = FlatOptimizer.sharded(FACTORIES[name], flat, own, [copy[one.start : one.stop] for one in own])
    second.load_state(*unpack_state(raw))
    assert pack_state(*second.state()) == raw
    for step in range(3, 6):
        first.step(end_to_end(gradients_for(flat, step), own))
        second.step(end_to_end(gradients_for(flat, step), own))
    assert torch.equal(weights, copy)


def test_hyperparameters_reach_their_group() -> None:
    flat = flat_of(model_of())
    weights, gradients = torch.zeros(flat.num_elements), torch.ones(flat.num_elements)
    optimizer = FlatOptimizer.whole(lambda groups: torch.optim.SGD(groups, lr=0.5), flat, weights)
    optimizer.set_hyperparameters([{}, {"lr": 3.0}, {}])
    optimizer.step(gradients)
    assert [float(weights[r.start]) for r in flat.ranges] == pytest.approx([-0.02, -3.0, -0.5])
    with pytest.raises(ModelError, match="group 0 has no hyper-parameter 'beta'"):
        optimizer.set_hyperparameters([{"beta": 1}, {}, {}])
    with pytest.raises(ModelError, match="for 2 groups, not 3"):
        optimizer.set_hyperparameters([{}, {}])


@pytest.mark.parametrize("betas", [(0.0, 0.5), [0.0, 0.5]])  # JSON makes lists of tuples
def test_hyperparameters_that_are_pairs_arrive(betas: Any) -> None:
    flat = FlatParameters(model_of())
    found = []
    for factory, hyper in [(0.9, {"betas": betas}), (0.0, {})]:
        weights = torch.zeros(flat.num_elements)
        optimizer = FlatOptimizer.whole(partial(torch.optim.Adam, betas=(factory, 0.5)), flat, weights)
        optimizer.set_hyperparameters([hyper])
        for step in range(3):
            optimizer.step(gradients_for(flat, step))
        found.append(weights)
    assert torch.equal(*found)


def test_only_known_classes_are_taken_as_elementwise(caplog: pytest.LogCaptureFixture) -> None:
    flat = FlatParameters(model_of())
    assert is_elementwise(probe(torch.optim.Adam, flat))
    with caplog.at_level("INFO"):
        assert not is_elementwise(probe(torch.optim.Adafactor, flat))
    assert "optimizer=Adafactor" in caplog.text


def test_fused_kernels_are_not_sharded_because_their_bits_depend_on_the_cut() -> None:
    flat = flat_of(model_of())
    assert not is_elementwise(probe(lambda groups: torch.optim.AdamW(groups, fused=True), flat))


def lr_as_tensor(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, lr=torch.tensor(0.1))


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (torch.optim.LBFGS, "LBFGS evaluates the loss in its step"),
        (torch.optim.SparseAdam, "SparseAdam needs sparse gradients"),
        (lambda groups: torch.optim.SGD([p for p in groups if p.dim() > 1], lr=0.1), "could not be built.*groups"),
        (lambda groups: torch.optim.SGD(groups[0]["params"][:1], lr=0.1), "regrouped parameters itself"),
        (lambda groups: groups, "returned list, not a torch.optim.Optimizer"),
        (lambda groups: torch.optim.SGD(groups, lr=-1), "could not be built: Invalid learning rate"),
        (lr_as_tensor, "'lr' of parameter group 0 is a tensor"),
    ],
)
def test_an_optimizer_that_cannot_work_is_refused(factory: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        probe(factory, FlatParameters(model_of()))


def test_state_that_cannot_be_saved_is_named() -> None:
    class Odd(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            super().step(closure)
            self.state[self.param_groups[0]["params"][0]]["seen"] = {"a": 1}

    flat = FlatParameters(model_of())
    optimizer = FlatOptimizer.whole(lambda groups: Odd(groups, lr=0.1), flat, torch.zeros(flat.num_elements))
    optimizer.step(torch.zeros(flat.num_elements))
    with pytest.raises(ModelError, match="Odd keeps 'seen' as dict"):
        optimizer.state()
