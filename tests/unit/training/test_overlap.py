from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from mizzle.collectives.layout import ExchangeLayout
from mizzle.collectives.slices import ALIGNMENT, Slice
from mizzle.errors import ModelError
from mizzle.training.flat import FlatParameters
from mizzle.training.gradients import LandingGradients
from mizzle.training.overlap import BucketAnnouncer

LAYERS = 6


class Deep(nn.Module):
    """Layers of different sizes; those in ``unused`` take no part, one may be run in two parts."""

    def __init__(self, sizes: Sequence[int], *, norm: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, size) for size in sizes)
        self.back = nn.ModuleList(nn.Linear(size, 8) for size in sizes)
        self.norm = nn.BatchNorm1d(8) if norm else nn.Identity()
        self.unused: set[int] = set()
        self.twice: set[int] = set()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.norm(inputs)
        for number, (into, back) in enumerate(zip(self.layers, self.back, strict=True)):
            if number in self.unused:
                continue
            if number in self.twice:
                # the reentrant kind runs a backward within backward, for each use one
                out = checkpoint(into, out, use_reentrant=True) + checkpoint(into, out * 2, use_reentrant=True)
            else:
                out = into(out)
            out = torch.tanh(back(out))
        return out


class Watched:
    """A model with its gradients bound, that writes down what was announced, and what the bucket held then."""

    def __init__(self, model: nn.Module, stripe: int) -> None:
        self.model = model
        self.flat = FlatParameters(model)
        self.gradients = torch.full((self.flat.num_elements,), 9.0)
        self.landing = LandingGradients(self.flat)
        self.buckets = ExchangeLayout(self.flat.num_elements, 1, ((0,),), stripe=stripe).buckets
        self.announced: dict[int, torch.Tensor] = {}
        self.announcer = BucketAnnouncer(self.flat, self.buckets, self._announce)

    def _announce(self, bucket: int) -> None:
        assert bucket not in self.announced, "a bucket was announced twice"
        self.announced[bucket] = self._held(bucket)

    def _held(self, bucket: int) -> torch.Tensor:
        return self.gradients[self.buckets[bucket].start : self.buckets[bucket].stop].clone()

    def backward(self) -> None:
        self.announced.clear()
        self.landing.begin(self.gradients)
        inputs = torch.randn(4, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        loss = self.model(inputs).square().sum()
        with self.announcer.armed():
            loss.backward()
        self.landing.end()
        for bucket, held in self.announced.items():
            assert torch.equal(held, self._held(bucket)), f"bucket {bucket} was announced before it was final"

    def of(self, *modules: nn.Module) -> set[int]:
        """The buckets in which the parameters of modules lie."""
        names = {id(p): n for n, p in self.model.named_parameters()}
        wanted = {names[id(p)] for module in modules for p in module.parameters()}
        spans = [Slice(slot.start, slot.stop) for slot in self.flat.slots if slot.name in wanted]
        return {
            number
            for number, one in enumerate(self.buckets)
            for span in spans if one.start < span.stop and span.start < one.stop
        }  # fmt: skip


def deep(sizes: Sequence[int] = (300,) * LAYERS, **how: Any) -> Deep:
    torch.manual_seed(0)
    return Deep(sizes, **how)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 700), min_size=1, max_size=5), st.integers(1, 6))
def test_every_bucket_of_parameters_is_announced_once_and_final(sizes: list[int], chunks: int) -> None:
    watched = Watched(deep(sizes), chunks * ALIGNMENT)
    watched.backward()
    assert not watched.announced, "the first backward is watched"
    for _ in range(2):
        watched.backward()
        assert set(watched.announced) == watched.of(watched.model)


def test_buckets_are_announced_from_the_last_layer_to_the_first_while_backward_goes_on() -> None:
    model = deep()
    watched = Watched(model, ALIGNMENT)
    watched.backward()
    watched.backward()
    order = list(watched.announced)
    assert len(order) > LAYERS
    assert order.index(min(watched.of(model.back[-1]))) < order.index(min(watched.of(model.layers[0])))
    assert torch.count_nonzero(watched.announced[order[0]]) > 0


def test_nothing_is_announced_by_a_backward_that_is_not_the_last_one() -> None:
    watched = Watched(deep(), ALIGNMENT)
    watched.backward()
    watched.announced.clear()
    watched.model(torch.ones(4, 8)).sum().backward()
    assert not watched.announced


def test_a_parameter_without_gradient_keeps_its_buckets_back() -> None:
    model = deep()
    watched = Watched(model, ALIGNMENT)
    watched.backward()
    model.unused = {2, 4}
    watched.backward()
    left = watched.of(model.layers[2], model.back[2], model.layers[4], model.back[4])
    assert set(watched.announced) == watched.of(model) - left
    model.unused = set()
    watched.backward()
    assert set(watched.announced) == watched.of(model)


def test_the_bucket_with_buffers_is_not_announced_in_backward() -> None:
    model = deep((10,), norm=True)
    watched = Watched(model, 4 * ALIGNMENT)
    assert len(watched.buckets) == 1
    watched.backward()
    watched.backward()
    assert not watched.announced
    apart = Watched(deep((300,), norm=True), ALIGNMENT)
    apart.backward()
    apart.backward()
    assert max(apart.announced) == len(apart.buckets) - 2


def test_a_gradient_that_always_comes_in_parts_travels_after_backward(caplog: pytest.LogCaptureFixture) -> None:
    model = deep()
    model.twice = {3}
    watched = Watched(model, ALIGNMENT)
    with caplog.at_level("INFO"):
        watched.backward()
    assert "parameter=layers.3.weight and 1 more" in caplog.text
    watched.backward()
    assert set(watched.announced) == watched.of(model) - watched.of(model.layers[3])


def test_a_gradient_that_begins_to_come_in_parts_is_refused_with_the_remedy() -> None:
    model = deep()
    watched = Watched(model, ALIGNMENT)
    watched.backward()
    model.twice = {3}
    with pytest.raises(
        ModelError, match=r"'layers\.3\.(weight|bias)' came in several parts.*use_reentrant=False.*overlap=False"
    ):
        watched.backward()


def test_hooks_go_when_it_is_closed() -> None:
    watched = Watched(deep(), ALIGNMENT)
    watched.backward()
    watched.announcer.close()
    watched.backward()
    assert not watched.announced


def shared_weight() -> nn.Module:
    model = deep()
    model.layers[1].weight = model.layers[0].weight
    return model


@pytest.mark.parametrize("make", [deep, shared_weight])
def test_a_weight_that_is_used_twice_has_one_gradient(make: Callable[[], Deep]) -> None:
    watched = Watched(make(), ALIGNMENT)
    watched.backward()
    watched.backward()
    assert set(watched.announced) == watched.of(watched.model)
