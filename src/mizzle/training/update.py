"""From the mean of the own slice to new weights on every rank: the optimizer and the gather, in their two orders.

Sharded: update the own slice of the weights, then gather weights. Unsharded: gather gradients, then update all weights
on every rank; it costs the same traffic, and the memory of one more vector and of the whole optimizer state.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import torch

from mizzle.collectives.exchange import Exchange
from mizzle.collectives.slices import Slice
from mizzle.training.buffers import ModelBuffers
from mizzle.training.flat import FlatParameters
from mizzle.training.optimizer import FlatOptimizer, is_elementwise, probe
from mizzle.training.spec import TrainingSpec

REDUCED = "reduced"
"""Name of the exchange's vector that holds gathered gradients."""


class Update(Protocol):
    """Both orders, seen from the iteration: ``before_gather``, `Exchange.gather` of ``vector``, ``after_gather``.

    Attributes:
        optimizer: with its state.
        owned: the range of the weights that this rank's state holds.
        vector: name of the exchange's vector to gather.
    """

    optimizer: FlatOptimizer
    owned: Slice
    vector: str

    def before_gather(self, mean: torch.Tensor, hyper: Sequence[Mapping[str, Any]], changed: Collection[int]) -> None:
        """Take the mean of the own slice, (len(slice),): gradients, then buffers, of which ``changed`` count."""
        ...

    def after_gather(self, hyper: Sequence[Mapping[str, Any]], changed: Collection[int]) -> None:
        """Finish."""
        ...


class ShardedUpdate:
    """Every rank updates its slice; peers get weights. See `Update`."""

    vector = "weights"

    def __init__(self, spec: TrainingSpec, flat: FlatParameters, buffers: ModelBuffers, exchange: Exchange) -> None:
        """Build the optimizer over the own slice."""
        self.owned = exchange.slice
        self.optimizer = FlatOptimizer.sharded(spec.optimizer, flat, exchange.weights, exchange.slice)
        self._weights = exchange.weights
        self._buffers = buffers

    def before_gather(self, mean: torch.Tensor, hyper: Sequence[Mapping[str, Any]], changed: Collection[int]) -> None:
        """Update the own slice of the weights."""
        self.optimizer.set_hyperparameters(hyper)
        self.optimizer.step(mean)
        self._buffers.copy_changed(changed, mean, self._weights, self.owned.start)

    def after_gather(self, hyper: Sequence[Mapping[str, Any]], changed: Collection[int]) -> None:
        """Nothing is left to do."""


class WholeUpdate:
    """Peers get gradients; every rank updates all weights. See `Update`."""

    vector = REDUCED

    def __init__(self, spec: TrainingSpec, flat: FlatParameters, buffers: ModelBuffers, exchange: Exchange) -> None:
        """Build the optimizer over all parameters."""
        self.owned = Slice(0, flat.num_elements)
        self.optimizer = FlatOptimizer.whole(spec.optimizer, flat, exchange.weights)
        self._weights = exchange.weights
        self._reduced = exchange.vector(REDUCED)
        self._slice = exchange.slice
        self._buffers = buffers

    def before_gather(self, mean: torch.Tensor, hyper: Sequence[Mapping[str, Any]], changed: Collection[int]) -> None:  # noqa: ARG002
        """Lay the own slice of the mean out for the peers."""
        self._reduced[self._slice.start : self._slice.stop].copy_(mean)

    def after_gather(self, hyper: Sequence[Mapping[str, Any]], changed: Collection[int]) -> None:
        """Update all weights."""
        self.optimizer.set_hyperparameters(hyper)
        self.optimizer.step(self._reduced)
        self._buffers.copy_changed(changed, self._reduced, self._weights, 0)


def make_update(spec: TrainingSpec, flat: FlatParameters, buffers: ModelBuffers, exchange: Exchange) -> Update:
    """The order that fits the optimizer: the same on every rank.

    Raises:
        ModelError: the optimizer cannot work here.
    """
    kind = ShardedUpdate if is_elementwise(probe(spec.optimizer, flat)) else WholeUpdate
    return kind(spec, flat, buffers, exchange)
