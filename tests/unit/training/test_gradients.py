from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mizzle.errors import ModelError
from mizzle.training.flat import FlatParameters
from mizzle.training.gradients import LandingGradients

GARBAGE = 9.0


class Odd(nn.Module):
    """Layers whose sizes leave padding, one of them used twice, one never, one by reentrant checkpointing."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(5, 7)
        self.never = nn.Linear(7, 3)
        self.again = nn.Linear(7, 7)
        self.parts = nn.Linear(7, 7)
        self.rows = nn.Embedding(11, 7, sparse=True)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.again(torch.tanh(self.again(self.into(inputs))))
        hidden = hidden + self.rows(torch.arange(len(inputs)))
        out: torch.Tensor = checkpoint(self.parts, hidden, use_reentrant=True) + checkpoint(
            self.parts, 2 * hidden, use_reentrant=True
        )
        return out


def pair() -> tuple[Odd, Odd]:
    torch.manual_seed(0)
    one, other = Odd(), Odd()
    other.load_state_dict(one.state_dict())
    return one, other


def vector(flat: FlatParameters) -> torch.Tensor:
    return torch.full((flat.num_elements,), GARBAGE)


def backward(model: nn.Module, seed: int) -> None:
    inputs = torch.randn(6, 5, generator=torch.Generator().manual_seed(seed))
    model(inputs).square().sum().backward()


def check_equal(flat: FlatParameters, gradients: torch.Tensor, plain: nn.Module) -> None:
    theirs = dict(plain.named_parameters())
    for slot in flat.slots:
        gradient = theirs[slot.name].grad
        dense = torch.zeros(slot.shape) if gradient is None else gradient.to_dense()
        assert torch.equal(slot.view(gradients), dense), slot.name
    assert not gradients[: flat.num_parameters][flat.padding()].any()


def test_gradients_of_several_passes_land_in_the_vector_with_the_bits_of_an_unbound_model() -> None:
    model, plain = pair()
    flat = FlatParameters(model)
    landing = LandingGradients(flat)
    first, second = vector(flat), vector(flat)
    for iteration, into in enumerate((first, second, first)):
        landing.begin(into)
        plain.zero_grad()
        for part in range(2):
            backward(model, 2 * iteration + part)
            backward(plain, 2 * iteration + part)
        landing.end()
        check_equal(flat, into, plain)


def test_a_parameter_without_a_gradient_this_time_has_a_zero_one() -> None:
    model = nn.Sequential(nn.Linear(5, 3), nn.Linear(5, 3))
    flat = FlatParameters(model)
    landing, into = LandingGradients(flat), vector(flat)
    for used in (0, 1):
        landing.begin(into)
        backward(model[used], 1)
        landing.end()
        for slot in flat.slots:
            assert slot.view(into).any() == slot.name.startswith(f"{used}."), slot.name


def test_hooks_registered_later_find_the_gradient_in_its_place() -> None:
    model = nn.Linear(5, 3)
    flat = FlatParameters(model)
    landing, into, found = LandingGradients(flat), vector(flat), []
    model.weight.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
        lambda _: found.append(flat.slots[0].view(into).clone())
    )
    landing.begin(into)
    backward(model, 1)
    landing.end()
    assert torch.equal(found[0], flat.slots[0].view(into))
    assert found[0].any()


def _zero_between(model: nn.Linear) -> None:
    backward(model, 1)
    model.zero_grad()


def _zero_and_again(model: nn.Linear) -> None:
    _zero_between(model)
    backward(model, 2)


def _set(model: nn.Linear) -> None:
    model.weight.grad = torch.zeros_like(model.weight)


@pytest.mark.parametrize("meddle", [_zero_between, _zero_and_again, _set])
def test_a_replaced_gradient_is_named(meddle: Callable[[nn.Linear], None]) -> None:
    model = nn.Linear(5, 3)
    landing = LandingGradients(flat := FlatParameters(model))
    landing.begin(vector(flat))

    def iteration() -> None:
        meddle(model)
        landing.end()

    with pytest.raises(ModelError, match=r"'(weight|bias)' was replaced"):
        iteration()


def test_closed_it_leaves_the_model_alone() -> None:
    model = nn.Linear(5, 3)
    landing = LandingGradients(flat := FlatParameters(model))
    landing.begin(into := vector(flat))
    landing.end()
    landing.close()
    backward(model, 1)
    assert not into[: flat.num_parameters].any()
    assert model.weight.grad is not None
