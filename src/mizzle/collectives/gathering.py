"""The gather phase: own ranges of a vector out, everybody's in; once for each island, which shares the vector."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from mizzle.blocks.ids import Kind
from mizzle.blocks.store import BlockStore, Fetched, Pending, Region, Span
from mizzle.collectives.collective import Collective, check_length
from mizzle.collectives.layout import ExchangeLayout
from mizzle.collectives.opening import Rounds
from mizzle.collectives.reducing import FIRST_BUCKET, GATHERED
from mizzle.collectives.routes import Routes
from mizzle.collectives.signature import check_agree, unpack
from mizzle.collectives.slices import Slice
from mizzle.collectives.timeline import Timeline
from mizzle.collectives.views import over_payload, over_region
from mizzle.collectives.window import Window
from mizzle.collectives.wire import Wire

_FP32_BYTES = 4


class Gathering:
    """The gather phase of one rank's exchanges.

    Args:
        store: makes the region for rounded values.
        layout: of the exchange.
        routes: of this rank.
        window: where rounded values arrive; fp32 ones arrive where they belong.
        wire: how weights travel.
        timeline: notes what took how long.

    Attributes:
        num_bytes: of memory for rounded values on their way out.
    """

    def __init__(
        self, store: BlockStore, layout: ExchangeLayout, routes: Routes, window: Window, wire: Wire, timeline: Timeline
    ) -> None:
        """See the class."""
        self._routes, self._window, self._wire, self._timeline = routes, window, wire, timeline
        self._cuts = [layout.cuts(bucket) for bucket in layout.buckets]
        self._rank = store.rank
        own = sum(len(cuts[store.rank]) for cuts in self._cuts)
        self.num_bytes = 0 if wire is Wire.FP32 else own * wire.element_bytes
        if self.num_bytes:
            self._rounded_region = store.region("rounded", self.num_bytes)
            self._rounded = over_region(self._rounded_region, wire.dtype, own)

    def run(
        self, collective: Collective, region: Region, values: torch.Tensor, master: Sequence[torch.Tensor] | None
    ) -> None:
        """All of the phase.

        Args:
            collective: the exchange under way.
            region: of the vector.
            values: (M,) fp32 over it.
            master: what is handed out instead of ``values``, rounded where weights are; None: ``values``, in fp32.
        """
        wire = Wire.FP32 if master is None else self._wire
        if master is not None and wire is not Wire.FP32:
            self._round(values, master)
        self._hand_out(collective, region, wire)
        with self._timeline.span("gather", "exchange"):
            self._take_in(collective, region, values, wire)
            self._await_island(collective)

    def _own(self) -> Iterator[tuple[int, Slice]]:
        """The own ranges, with the number of their bucket."""
        return ((number, cuts[self._rank]) for number, cuts in enumerate(self._cuts) if len(cuts[self._rank]))

    def _round(self, values: torch.Tensor, master: Sequence[torch.Tensor]) -> None:
        at = 0
        for (_, cut), exact in zip(self._own(), master, strict=True):
            rounded = self._rounded[at : at + len(cut)]
            at += len(cut)
            self._wire.encode(exact, rounded)
            self._wire.decode(rounded, values[cut.start : cut.stop])

    def _hand_out(self, collective: Collective, region: Region, wire: Wire) -> None:
        at = 0
        for number, cut in self._own():
            if wire is Wire.FP32:
                span = Span(region, *cut.of_bytes(_FP32_BYTES))
            else:
                span = Span(self._rounded_region, at, len(cut) * wire.element_bytes)
                at += span.length
            collective.put(
                Kind.RESULT, span, to=self._routes.readers, dtype=wire.block_dtype, slice_=self._rank,
                number=FIRST_BUCKET + number,
            )  # fmt: skip

    def _take_in(self, collective: Collective, region: Region, values: torch.Tensor, wire: Wire) -> None:
        """Fetch what this rank takes in for its island, as many buckets at once as there is room for."""
        if not self._routes.sources:
            return
        count = len(self._cuts)
        depth = count if wire is Wire.FP32 else self._window.depth
        pending: list[dict[int, Pending]] = []
        for turn in range(count):
            while len(pending) < min(count, turn + depth):
                pending.append(self._ask(collective, region, len(pending), wire))
            for rank, fetch in pending[turn].items():
                block = collective.await_all({rank: fetch})[rank]
                self._keep(block, values, self._cuts[turn][rank], wire)

    def _ask(self, collective: Collective, region: Region, turn: int, wire: Wire) -> dict[int, Pending]:
        asked: dict[int, Pending] = {}
        for place, rank in enumerate(self._routes.sources):
            cut = self._cuts[turn][rank]
            if not len(cut):
                continue
            into = (
                Span(region, *cut.of_bytes(_FP32_BYTES)) if wire is Wire.FP32
                else self._window.span(turn, place, len(cut) * wire.element_bytes)
            )  # fmt: skip
            asked[rank] = collective.fetch(
                Kind.RESULT, into, slice_=rank, source=rank, number=FIRST_BUCKET + turn
            )  # fmt: skip
        return asked

    def _keep(self, block: Fetched, values: torch.Tensor, cut: Slice, wire: Wire) -> None:
        check_length(block, len(cut) * wire.element_bytes)
        if wire is Wire.FP32 and block.in_place:
            return
        wire.decode(over_payload(block.payload, wire.dtype), values[cut.start : cut.stop])

    def _await_island(self, collective: Collective) -> None:
        """Until all ranks of the island have written what they write: then the vector is whole."""
        if len(self._routes.island) == 1:
            return
        rounds = Rounds(collective, self._routes)
        message = collective.signature.pack(b"")
        rounds.tell_island(message, GATHERED)
        said = rounds.hear_island(message)
        check_agree({rank: unpack(bytes(one))[0] for rank, one in sorted(said.items())}, str(collective))
