from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from mizzle.collectives.slices import ALIGNMENT
from mizzle.errors import ModelError
from mizzle.training.flat import PARAMETER_ALIGNMENT, FlatParameters
from mizzle.training.groups import ParameterGroup, groups_of


class Tied(nn.Module):
    """Encoder and decoder share one weight; with batch norm and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(6, 50, bias=False)
        self.norm = nn.BatchNorm1d(50)
        self.frozen = nn.Linear(50, 50).requires_grad_(requires_grad=False)
        self.out = nn.Linear(50, 6)
        self.out.weight = nn.Parameter(torch.randn(6, 50))
        self.again = nn.Linear(6, 50, bias=False)
        self.again.weight = self.into.weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.into(inputs) + self.again(inputs))
        out: torch.Tensor = self.out(self.frozen(hidden))
        return out


def bound(model: nn.Module) -> tuple[FlatParameters, torch.Tensor]:
    flat = FlatParameters(model)
    weights = torch.full((flat.num_elements,), 9.0)
    flat.copy_to(weights)
    flat.bind_weights(weights)
    return flat, weights


def test_writing_the_vector_changes_the_model() -> None:
    model = Tied()
    flat, weights = bound(model)
    before = model.out.weight.detach().clone()
    weights.mul_(2)
    assert torch.equal(model.out.weight, 2 * before)
    assert torch.equal(flat.named_tensors(weights)["out.weight"], 2 * before)


def test_tied_parameters_lie_once_and_frozen_ones_not_at_all() -> None:
    flat = FlatParameters(Tied())
    names = [slot.name for slot in flat.slots]
    assert names == ["into.weight", "norm.weight", "norm.bias", "out.weight", "out.bias"]
    assert [slot.name for slot in flat.buffer_slots] == ["norm.running_mean", "norm.running_var"]


def test_groups_are_aligned_ranges_and_padding_is_zero() -> None:
    model = Tied()
    groups = groups_of(model, [{"params": model.out.parameters(), "lr": 1.0}, {"params": [
        p for name, p in model.named_parameters() if not name.startswith("out")
    ]}])  # fmt: skip
    flat = FlatParameters(model, groups)
    assert [(r.start, r.stop) for r in flat.ranges] == [(0, 310), (ALIGNMENT, ALIGNMENT + 304 + 64 + 50)]
    assert groups[0].options == {"lr": 1.0}
    assert flat.num_parameters == 2 * ALIGNMENT
    assert flat.num_elements == 3 * ALIGNMENT
    weights = torch.full((flat.num_elements,), 9.0)
    flat.copy_to(weights)
    for slot in (*flat.slots, *flat.buffer_slots):
        assert slot.start % PARAMETER_ALIGNMENT == 0
        slot.view(weights).zero_()
    assert not weights.any()


def test_positions_have_names() -> None:
    flat = FlatParameters(Tied())
    for slot in (*flat.slots, *flat.buffer_slots):
        assert flat.name_at(slot.start) == flat.name_at(slot.stop - 1) == slot.name
    assert flat.name_at(flat.slots[-1].stop) == "padding"


def test_signature_tells_models_apart_and_values_do_not_matter() -> None:
    assert FlatParameters(Tied()).signature() == FlatParameters(Tied()).signature()
    one, two = nn.Linear(3, 4), nn.Linear(4, 3)
    assert FlatParameters(one).signature() != FlatParameters(two).signature()
    grouped = FlatParameters(one, [ParameterGroup(("weight",)), ParameterGroup(("bias",))])
    assert grouped.signature() != FlatParameters(one).signature()


def test_non_contiguous_parameters_are_laid_out() -> None:
    model = nn.Linear(3, 4)
    model.weight = nn.Parameter(torch.arange(12.0).view(3, 4).t())
    _, weights = bound(model)
    assert torch.equal(model.weight, torch.arange(12.0).view(3, 4).t())
    assert torch.equal(weights[:12].view(4, 3), model.weight)


def test_padding_is_what_belongs_to_no_parameter() -> None:
    flat = FlatParameters(Tied())
    counts = torch.zeros(flat.num_parameters)
    counts[flat.padding()] += 1
    for slot in flat.slots:
        counts[slot.start : slot.stop] += 1
    assert torch.equal(counts, torch.ones_like(counts))


def linear(change: Callable[[nn.Linear], object]) -> nn.Module:
    model = nn.Linear(3, 4)
    change(model)
    return model


def with_sparse() -> nn.Module:
    model = nn.Module()
    model.table = nn.Parameter(torch.eye(3).to_sparse())
    return model


def overlapping() -> nn.Module:
    model = nn.Linear(3, 4)
    model.part = nn.Parameter(model.weight.data[1:2])
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Linear(3, 4, device="meta"), "'weight' is on the meta device.*to_empty"),
        (lambda: nn.Linear(3, 4, dtype=torch.float16), "'weight' is torch.float16.*float"),
        (lambda: nn.Linear(3, 4, dtype=torch.complex64), "'weight' is torch.complex64"),
        (lambda: nn.LazyLinear(3), "'weight' is not initialised yet.*one batch"),
        (with_sparse, "'table' has layout torch.sparse_coo.*to_dense"),
        (overlapping, "'weight' and 'part' share memory|'part' and 'weight' share memory"),
        (lambda: linear(lambda m: m.requires_grad_(requires_grad=False)), "no trainable parameter"),
        (lambda: linear(lambda m: m.register_buffer("b", torch.empty(2, device="meta"))), "buffer 'b' is on the meta"),
    ],
)
def test_what_cannot_be_trained_is_named_with_the_remedy(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        FlatParameters(make())


def test_parameters_in_no_group_or_in_two_are_named() -> None:
    model = nn.Linear(3, 4)
    with pytest.raises(ModelError, match="'bias' is trainable but in no parameter group"):
        groups_of(model, [{"params": [model.weight]}])
    with pytest.raises(ModelError, match="'weight' is in groups 0 and 1"):
        groups_of(model, [{"params": model.weight}, {"params": model.parameters()}])
    with pytest.raises(ModelError, match="group 0 holds something"):
        groups_of(model, [{"params": nn.Linear(3, 4).parameters()}])
    with pytest.raises(ModelError, match="'nothing'"):
        FlatParameters(model, [ParameterGroup(("nothing",))])
