"""A rank's contributions: its shards computed one after the other and pre-added along the canonical tree.

A node of one shard goes straight into the exchange's memory. A larger node needs one spare vector a level, as a
binary counter does: O(log V) of them, made at first use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

import torch

from mizzle.collectives.tree import Node
from mizzle.training.report import FINITE, ShardReport


class ComputeShard(Protocol):
    """Writes one shard's contribution."""

    def __call__(self, shard: int, into: torch.Tensor) -> ShardReport | None:
        """Overwrite ``into`` (M,) with the shard's gradients and buffers; None: it was dropped, they do not count."""
        ...


class Contributions:
    """Computes tree nodes into given vectors.

    Args:
        compute: computes one shard.
        num_elements: M.
    """

    def __init__(self, compute: ComputeShard, num_elements: int) -> None:
        """See the class."""
        self._compute = compute
        self._num_elements = num_elements
        self._spare: list[torch.Tensor] = []

    def fill(self, node: Node, counts: Mapping[int, int], into: torch.Tensor) -> list[ShardReport]:
        """Compute the shards of ``node`` that have rows, and add them in tree order.

        Args:
            node: a node whose shards are all held here.
            counts: rows of each shard in this iteration.
            into: (M,) fp32, overwritten with the sum; untouched when no shard has rows.

        Returns:
            The reports of the shards that had rows and were not dropped, ascending; empty: the node is absent.
        """
        return self._fill(node, counts, into, 0)

    @property
    def spare_bytes(self) -> int:
        """Memory of the spare vectors."""
        return sum(vector.nbytes for vector in self._spare)

    def _fill(self, node: Node, counts: Mapping[int, int], into: torch.Tensor, depth: int) -> list[ShardReport]:
        if node.is_leaf:
            report = self._compute(node.lo, into) if counts[node.lo] else None
            return [] if report is None else [report]
        left, right = node.children()
        first = self._fill(left, counts, into, depth)
        if not first:
            return self._fill(right, counts, into, depth)
        if not any(counts[shard] for shard in range(right.lo, right.hi)):
            return first
        spare = self._spare_at(depth)
        second = self._fill(right, counts, spare, depth + 1)
        if second:
            into.add_(spare)
        return first + second

    def _spare_at(self, depth: int) -> torch.Tensor:
        while len(self._spare) <= depth:
            self._spare.append(torch.zeros(self._num_elements))
        return self._spare[depth]


def mark(reports: list[ShardReport], position: int) -> list[ShardReport]:
    """Note a position that is not finite on the first report, where ``position`` is one."""
    if position == FINITE or not reports[0].finite:
        return reports
    first = reports[0]
    return [replace(first, not_finite_at=position), *reports[1:]]
