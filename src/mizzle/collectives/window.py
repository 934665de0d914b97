"""The memory that bytes from other islands arrive in: room for a few buckets at a time, whatever the model's size."""

from __future__ import annotations

from typing import Self

from mizzle.blocks.region import Region, Span
from mizzle.blocks.store import BlockStore
from mizzle.collectives.layout import ExchangeLayout
from mizzle.collectives.routes import Routes
from mizzle.collectives.wire import Wire

_MAX_DEPTH = 8
LAG = 2
"""The least depth of any window, if there are so many buckets. Who must send in the order in which others fetch, or has
just learnt that a bucket is final, is so far ahead: the same on all ranks, whatever their windows."""
_FP32_BYTES = 4
_LINE_BYTES = 64


class Window:
    """Places for what comes, used in turn.

    Attributes:
        depth: buckets that may be on their way at once.
        num_bytes: of memory.
    """

    def __init__(self, region: Region | None, depth: int, stride: int, num_bytes: int) -> None:
        """See `of`."""
        self.depth = depth
        self.num_bytes = num_bytes
        self._region = region
        self._stride = stride
        self._places = num_bytes // (stride * depth) if region is not None else 0

    @classmethod
    def of(
        cls, store: BlockStore, layout: ExchangeLayout, routes: Routes, wires: tuple[Wire, Wire], *,
        name: str = "window", deepest: int = _MAX_DEPTH,
    ) -> Self:  # fmt: skip
        """Room for as many buckets as 2/N of the vector hold, but two at least and ``deepest`` at most.

        Args:
            store: makes the region.
            layout: of the exchange.
            routes: of this rank.
            wires: of contributions, and of weights.
            name: of the region.
            deepest: buckets, at least `LAG`.

        Raises:
            ArenaError: no memory.
        """
        buckets = layout.buckets
        longest = max(len(cut) for cut in layout.cuts(buckets[0]))
        # fp32 weights arrive where they belong
        rounded = len(routes.sources) if wires[1] is not Wire.FP32 else 0
        places = max(len(routes.incoming), rounded)
        stride = -(-longest * max(wires[0].element_bytes, 2) // _LINE_BYTES) * _LINE_BYTES
        if not places or not stride:
            return cls(None, min(LAG, len(buckets)), 1, 0)
        affordable = 2 * layout.num_elements * _FP32_BYTES // store.size // (places * stride)
        depth = min(len(buckets), deepest, max(LAG, affordable))
        num_bytes = depth * places * stride
        return cls(store.region(name, num_bytes), depth, stride, num_bytes)

    def span(self, turn: int, place: int, num_bytes: int) -> Span | None:
        """Where the block for a place of the ``turn``-th bucket goes; free again ``depth`` turns later."""
        if self._region is None:
            return None
        return Span(self._region, (turn % self.depth * self._places + place) * self._stride, num_bytes)
