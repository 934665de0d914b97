"""Combining contributions in the order of the canonical tree, a cache-sized piece at a time. Knows no peers.

The order of additions of one element is fixed by the tree; cutting the vector into pieces changes nothing in it, and
keeps the intermediate sums in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from mizzle.collectives.tree import Node, Plan, plan
from mizzle.errors import ConfigError

PIECE_ELEMENTS = 128 * 1024
"""512 KB of fp32: a few of them fit into a core's second-level cache; 64 K and 256 K elements were slower."""

_MAX_PLANS = 1024
OPERATIONS: Mapping[str, Callable[..., torch.Tensor]] = {
    "sum": torch.add, "mean": torch.add, "max": torch.maximum, "min": torch.minimum,
}  # fmt: skip


def check_reduce_op(op: str) -> None:
    """Refuse an unknown operation.

    Raises:
        ConfigError: it is not one of sum, mean, max, min.
    """
    if op not in OPERATIONS:
        raise ConfigError(f"unknown reduce op {op!r}: write one of {', '.join(map(repr, OPERATIONS))}")


class TreeCombiner:
    """Combines sources in tree order into one vector; keeps its scratch memory and its plans between calls.

    Args:
        num_shards: V, the leaves of the tree.
        dtype: the element type in which is added; sources of another type are widened first.
        op: "sum", "mean" (adds only: the caller divides), "max" or "min"; NaN wins over everything.
    """

    def __init__(self, num_shards: int, dtype: torch.dtype = torch.float32, op: str = "sum") -> None:
        """See the class."""
        check_reduce_op(op)
        self._num_shards = num_shards
        self._dtype = dtype
        self._operation = OPERATIONS[op]
        self._plans: dict[tuple[Node, ...], Plan] = {}
        self._scratch = torch.empty((0, 0), dtype=dtype)
        self._widened = torch.empty((2, 0), dtype=dtype)

    def combine(self, sources: Mapping[Node, torch.Tensor], out: torch.Tensor) -> None:
        """Write the combination of ``sources`` to ``out``; zeros when there is none.

        Args:
            sources: disjoint nodes of the tree -> (n,) values, of any float type or that of ``out``.
            out: (n,), of the combiner's dtype; may be one of the sources as a whole, and overlaps none in part.

        Raises:
            ConfigError: the nodes overlap or are not of this tree.
        """
        nodes = tuple(sources)
        order = self._plans.get(nodes)
        if order is None:
            if len(self._plans) == _MAX_PLANS:
                self._plans.clear()
            order = self._plans[nodes] = plan(nodes, self._num_shards)
        operands = list(sources.values())
        if not operands:
            out.zero_()
        elif len(operands) == 1:
            out.copy_(operands[0])
        else:
            self._reserve(order, min(PIECE_ELEMENTS, out.numel()))
            for start in range(0, out.numel(), PIECE_ELEMENTS):
                stop = min(out.numel(), start + PIECE_ELEMENTS)
                self._piece(order, [operand[start:stop] for operand in operands], out[start:stop])

    def _reserve(self, order: Plan, width: int) -> None:
        rows, columns = self._scratch.shape
        if rows < order.num_scratch or columns < width:
            self._scratch = torch.empty((max(rows, order.num_scratch), max(columns, width)), dtype=self._dtype)
        if self._widened.shape[1] < width:
            self._widened = torch.empty((2, width), dtype=self._dtype)

    def _piece(self, order: Plan, sources: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        scratch = self._scratch[:, : out.numel()]
        widened = self._widened[:, : out.numel()]
        last = len(order.steps) - 1

        def operand(index: int, side: int) -> torch.Tensor:
            if index >= len(sources):
                return scratch[index - len(sources)]
            if sources[index].dtype == self._dtype:
                return sources[index]
            return widened[side].copy_(sources[index])

        for i, step in enumerate(order.steps):
            target = out if i == last else scratch[step.into]
            self._operation(operand(step.left, 0), operand(step.right, 1), out=target)
