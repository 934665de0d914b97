"""From the mean of the own ranges to new weights on every rank: the optimizer and the gather, in their two orders.

Sharded: update the own ranges of the weights, then gather weights. Unsharded: gather gradients, then update all weights
on every rank; it costs the same traffic, and the memory of all weights and of the whole optimizer state on every rank.

Ranks that see each other's memory share one copy of what is gathered. So a rank writes its own ranges of it only, and
only between `Exchange.reduce` and `Exchange.gather`, when no peer reads: all have published, so they have finished
forward and backward, and none goes on before it has been handed these ranges. A vector that every rank writes whole
must be its own.
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

PRIVATE_WEIGHTS = "weights.private"
"""Name of the exchange's vector with weights that no peer reads or writes."""

_PRIVATE_GRADIENT = "gradients.private"


class Update(Protocol):
    """Both orders, seen from the iteration: ``before_gather``, `Exchange.gather` of ``vector``, ``after_gather``.

    Attributes:
        optimizer: with its state.
        owned: the ranges of the flat vector that this rank's state holds.
        masters: the fp32 weights of these ranges: what the optimizer updates.
        weights: (M,) fp32, what the model computes with: to be read only.
        vector: name of the exchange's vector to gather.
    """

    optimizer: FlatOptimizer
    owned: tuple[Slice, ...]
    masters: tuple[torch.Tensor, ...]
    weights: torch.Tensor
    vector: str

    def before_gather(self, mean: torch.Tensor, hyper: Sequence[Mapping[str, Any]], changed: Collection[int]) -> None:
        """Take the mean of the exchange's own ranges: gradients, then buffers, of which ``changed`` count."""
        ...

    def after_gather(self, hyper: Sequence[Mapping[str, Any]], changed: Collection[int]) -> None:
        """Finish."""
        ...


class ShardedUpdate:
    """Every rank updates its ranges; peers get weights. See `Update`."""

    vector = "weights"

    def __init__(self, spec: TrainingSpec, flat: FlatParameters, buffers: ModelBuffers, exchange: Exchange) -> None:
        """Build the optimizer over the own ranges."""
        self.owned = exchange.owned
        self.masters = exchange.master
        self.weights = exchange.weights
        self.optimizer = FlatOptimizer.sharded(spec.optimizer, flat, self.owned, self.masters)
        self._buffers = buffers

    def before_gather(self, mean: torch.Tensor, hyper: Sequence[Mapping[str, Any]], changed: Collection[int]) -> None:
        """Update the own ranges of the weights."""
        self.optimizer.set_hyperparameters(hyper)
        self.optimizer.step(mean)
        for own, master, part in zip(self.owned, self.masters, cut(mean, self.owned), strict=True):
            self._buffers.copy_changed(changed, part, master, own.start)

    def after_gather(self, hyper: Sequence[Mapping[str, Any]], changed: Collection[int]) -> None:
        """Nothing is left to do."""


class WholeUpdate:
    """Peers get gradients; every rank updates all weights, in fp32 whatever the wire of weights. See `Update`."""

    vector = REDUCED

    def __init__(self, spec: TrainingSpec, flat: FlatParameters, buffers: ModelBuffers, exchange: Exchange) -> None:
        """Build the optimizer over all parameters."""
        self.weights = exchange.vector(PRIVATE_WEIGHTS)
        self.owned: tuple[Slice, ...] = (Slice(0, flat.num_elements),)
        self.masters: tuple[torch.Tensor, ...] = (self.weights,)
        self.optimizer = FlatOptimizer.whole(spec.optimizer, flat, self.weights)
        self._reduced = exchange.shared_vector(REDUCED)
        # Any optimizer may come here, also one that writes to gradients: it gets a copy, in memory that is free by now.
        nodes = exchange.nodes
        self._gradient = exchange.contribution(nodes[0]) if nodes else exchange.vector(_PRIVATE_GRADIENT)
        self._ranges = exchange.owned
        self._buffers = buffers

    def before_gather(self, mean: torch.Tensor, hyper: Sequence[Mapping[str, Any]], changed: Collection[int]) -> None:  # noqa: ARG002
        """Lay the own ranges of the mean out for the peers."""
        for own, part in zip(self._ranges, cut(mean, self._ranges), strict=True):
            self._reduced[own.start : own.stop].copy_(part)

    def after_gather(self, hyper: Sequence[Mapping[str, Any]], changed: Collection[int]) -> None:
        """Update all weights."""
        self._gradient.copy_(self._reduced)
        self.optimizer.set_hyperparameters(hyper)
        self.optimizer.step(self._gradient)
        self._buffers.copy_changed(changed, self._gradient, self.weights, 0)


def cut(values: torch.Tensor, ranges: Sequence[Slice]) -> tuple[torch.Tensor, ...]:
    """Views of what lies end to end in ``values`` (n,), one a range."""
    return torch.split(values, [len(one) for one in ranges]) if ranges else ()


def make_update(spec: TrainingSpec, flat: FlatParameters, buffers: ModelBuffers, exchange: Exchange) -> Update:
    """The order that fits the optimizer: the same on every rank.

    Raises:
        ModelError: the optimizer cannot work here.
    """
    kind = ShardedUpdate if is_elementwise(probe(spec.optimizer, flat)) else WholeUpdate
    return kind(spec, flat, buffers, exchange)
