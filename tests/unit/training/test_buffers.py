from __future__ import annotations

import pytest
import torch
from torch import nn

from mizzle.errors import ModelError
from mizzle.training.buffers import ModelBuffers
from mizzle.training.flat import FlatParameters


class Counting(nn.Module):
    """Buffers of every kind: one written in place, one reassigned, one constant, one tied, a counter, a flag."""

    in_place: torch.Tensor
    assigned: torch.Tensor
    mask: torch.Tensor
    steps: torch.Tensor
    flags: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("in_place", torch.zeros(3))
        self.register_buffer("assigned", torch.zeros(3))
        self.register_buffer("mask", torch.full((2, 2), float("-inf")).triu(1), persistent=False)
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("flags", torch.zeros(4, dtype=torch.bool))
        self.inner = nn.Module()
        self.inner.register_buffer("tied", self.in_place)
        self.amount = 1.0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.in_place += self.amount
        self.assigned = self.assigned * 0.5 + self.amount * self.weight.sum()
        self.steps += 1
        return inputs


def made() -> tuple[Counting, ModelBuffers, FlatParameters, torch.Tensor]:
    model = Counting()
    flat = FlatParameters(model)
    weights = torch.zeros(flat.num_elements)
    flat.copy_to(weights)
    return model, ModelBuffers(model, flat), flat, weights


def test_every_shard_starts_from_the_same_values_and_its_own_are_collected() -> None:
    model, buffers, flat, weights = made()
    before = weights.clone()
    for amount in (1.0, 5.0):
        contribution = torch.zeros(flat.num_elements)
        buffers.begin()
        model.amount = amount
        model(torch.ones(1))
        changed, others = buffers.end(contribution)
        named = flat.named_tensors(contribution)
        assert named["in_place"].tolist() == [amount] * 3
        assert named["assigned"].tolist() == [2 * amount] * 3
        assert {flat.buffer_slots[number].name for number in changed} == {"in_place", "assigned"}
        assert list(others.values()) == [(1).to_bytes(8, "little")]
    assert model.inner.tied is model.in_place
    assert torch.equal(weights, before), "the start values were touched"


def test_only_changed_buffers_take_the_mean_and_others_the_lowest_shards_value() -> None:
    model, buffers, flat, weights = made()
    buffers.begin()
    model(torch.ones(1))
    changed, others = buffers.end(torch.zeros(flat.num_elements))
    mean = torch.full((flat.num_elements,), 7.0)
    half = flat.buffer_slots[0].start + 1
    buffers.copy_changed(changed, mean[:half], weights[:half], 0)
    assert flat.named_tensors(weights)["in_place"].tolist() == [7, 0, 0]
    buffers.copy_changed(changed, mean[half:], weights[half:], half)
    buffers.adopt(changed, weights, others)
    buffers.begin()
    assert model.in_place.tolist() == model.assigned.tolist() == [7, 7, 7]
    assert model.mask.tolist() == [[0, float("-inf")], [0, 0]]
    assert int(model.steps) == 1
    assert not model.flags.any()


def test_a_buffer_that_no_shard_changed_is_not_taken_from_weights_that_were_rounded() -> None:
    model, buffers, flat, weights = made()
    weights[flat.num_parameters :] = 9.0
    buffers.adopt((), weights, {})
    buffers.begin()
    assert model.in_place.tolist() == [0, 0, 0]
    assert model.mask.tolist() == [[0, float("-inf")], [0, 0]]


def test_buffers_come_back_from_a_state() -> None:
    model, buffers, _, _ = made()
    named = buffers.named()
    assert sorted(named) == ["assigned", "flags", "in_place", "mask", "steps"]
    named["steps"].fill_(41)
    named["in_place"].fill_(0.5)
    assert int(buffers.named()["steps"]) == 0, "a copy was given"
    buffers.adopt_named(named)
    buffers.begin()
    assert model.steps == 41
    assert torch.equal(torch.full((3,), 0.5), model.get_buffer("inner.tied"))


def test_a_buffer_that_changes_its_shape_is_named() -> None:
    model, buffers, flat, _ = made()
    buffers.begin()
    model.assigned = torch.zeros(4)
    with pytest.raises(ModelError, match="'assigned' changed its shape"):
        buffers.end(torch.zeros(flat.num_elements))
