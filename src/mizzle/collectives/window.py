"""The memory that bytes from other islands arrive in: room for a few buckets at a time, whatever the model's size."""

from __future__ import annotations

from typing import Self

from mizzle.blocks.store import BlockStore, Region, Span
from mizzle.collectives.layout import ExchangeLayout
from mizzle.collectives.routes import Routes
from mizzle.collectives.wire import Wire

_MAX_DEPTH = 8
LAG = 2
"""Buckets on their way at once where results follow contributions: the same on all ranks, whatever their windows."""
_FP32_BYTES = 4
_LINE_BYTES = 64


class Window:
    """Places for what comes, used in turn.

    Attributes:
        depth: buckets that may be on their way at once.
        num_bytes: of memory.
    """

    def __init__(self, region: Region | None, depth: int, stride: int, places: int, first: int = 0) -> None:
        """See `of`."""
        self.depth = depth
        self.num_bytes = depth * places * stride
        self._region = region
        self._stride, self._places = stride, places
        self._first = first

    @classmethod
    def of(cls, store: BlockStore, layout: ExchangeLayout, routes: Routes, wires: tuple[Wire, Wire]) -> Self:
        """Room for as many buckets as 2/N of the vector hold, but two at least (four of 16 bits) and eight at most.

        Args:
            store: makes the region "window".
            layout: of the exchange.
            routes: of this rank.
            wires: of contributions, and of weights.

        Raises:
            ArenaError: no memory.
        """
        buckets = layout.buckets
        longest = max(len(cut) for cut in layout.cuts(buckets[0]))
        # fp32 weights arrive where they belong
        rounded = len(routes.sources) if wires[1] is not Wire.FP32 else 0
        places = max(len(routes.incoming), rounded)
        stride = -(-longest * max(wires[0].element_bytes, 2) // _LINE_BYTES) * _LINE_BYTES
        # `halves` have room for `LAG` buckets each, or for all there are
        least = min(LAG, len(buckets)) * (1 if wires[1] is Wire.FP32 else 2)
        if not places or not stride:
            return cls(None, least, 1, 0)
        affordable = 2 * layout.num_elements * _FP32_BYTES // store.size // (places * stride)
        depth = max(least, min(len(buckets), _MAX_DEPTH, affordable))
        return cls(store.region("window", depth * places * stride), depth, stride, places)

    def halves(self) -> tuple[Window, Window]:
        """Two that share this one's memory: for what comes in two streams at once."""
        depth = self.depth // 2
        first = self._first + depth
        return (
            Window(self._region, depth, self._stride, self._places, self._first),
            Window(self._region, self.depth - depth, self._stride, self._places, first),
        )

    def span(self, turn: int, place: int, num_bytes: int) -> Span | None:
        """Where the block for a place of the ``turn``-th bucket goes; free again ``depth`` turns later."""
        if self._region is None:
            return None
        slot = self._first + turn % self.depth
        return Span(self._region, (slot * self._places + place) * self._stride, num_bytes)
