"""The gather phase: own ranges of a vector out, everybody's in; once for each island, which shares the vector.

Bucket by bucket: all of them when all are there, or each as soon as it is reduced.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch

from mizzle.blocks.ids import Kind
from mizzle.blocks.region import Region, Span
from mizzle.blocks.store import BlockStore, Fetched, Pending
from mizzle.collectives.collective import Collective, check_length
from mizzle.collectives.layout import ExchangeLayout
from mizzle.collectives.opening import Rounds
from mizzle.collectives.reducing import FIRST_BUCKET, GATHERED
from mizzle.collectives.routes import Routes
from mizzle.collectives.signature import check_agree, unpack
from mizzle.collectives.slices import Slice
from mizzle.collectives.timeline import Timeline
from mizzle.collectives.views import over_payload, over_region
from mizzle.collectives.window import LAG, Window
from mizzle.collectives.wire import Wire

_FP32_BYTES = 4


class _Coming(NamedTuple):
    """A bucket whose values are on their way, from every rank that has some for this one."""

    number: int
    blocks: Sequence[tuple[int, Pending]]


class Gathering:
    """The gather phase of one rank's exchanges: `run`; or `begin`, `offer` and `take` of every bucket, and `finish`.

    Args:
        store: makes the region for rounded values.
        layout: of the exchange.
        routes: of this rank.
        window: where rounded values arrive; fp32 ones arrive where they belong.
        wire: how weights travel.
        timeline: notes what took how long.

    """

    def __init__(
        self, store: BlockStore, layout: ExchangeLayout, routes: Routes, window: Window, wire: Wire, timeline: Timeline
    ) -> None:
        """See the class."""
        self._store, self._layout, self._routes = store, layout, routes
        self._window, self._wire, self._timeline = window, wire, timeline
        self._beside: Window | None = None
        self._cuts = [layout.cuts(bucket) for bucket in layout.buckets]
        self._rank = store.rank
        lengths = [len(cuts[store.rank]) for cuts in self._cuts]
        self._starts = [0, *accumulate(lengths)]
        own = self._starts[-1]
        self._rounded_bytes = 0 if wire is Wire.FP32 else own * wire.element_bytes
        if self._rounded_bytes:
            self._rounded_region = store.region("rounded", self._rounded_bytes)
            self._rounded = over_region(self._rounded_region, wire.dtype, own)

    @property
    def num_bytes(self) -> int:
        """Of memory for rounded values on their way out, and for those that come while contributions still do."""
        return self._rounded_bytes + (self._beside.num_bytes if self._beside else 0)

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
        self.begin(collective, region, values, Wire.FP32 if master is None else self._wire)
        own = [cuts[self._rank] for cuts in self._cuts]
        exact = iter(master or [values[cut.start : cut.stop] for cut in own if len(cut)])
        for number, cut in enumerate(own):
            if len(cut):
                self.offer(number, next(exact))
        with self._timeline.span("gather", "exchange"):
            for number in range(len(self._cuts)):
                self.take(number)
            self._await_all()

    def begin(
        self, collective: Collective, region: Region, values: torch.Tensor, wire: Wire, *, beside_reduce: bool = False
    ) -> None:
        """Say what is gathered.

        Args:
            collective: as in `run`.
            region: as in `run`.
            values: as in `run`.
            wire: how they travel.
            beside_reduce: whether contributions arrive meanwhile, so that rounded values need a window of their own.
        """
        self._collective, self._region, self._values = collective, region, values
        self._travelling, self._into = wire, self._window
        if beside_reduce and wire is not Wire.FP32:
            if self._beside is None:
                self._beside = Window.of(
                    self._store, self._layout, self._routes, (wire, wire), name="window.sums", deepest=LAG
                )
            self._into = self._beside
        self._room = len(self._cuts) if wire is Wire.FP32 else self._into.depth
        self._coming: deque[_Coming] = deque()
        self._turns = 0

    def offer(self, number: int, exact: torch.Tensor) -> None:
        """Hand out the own range of a bucket, which is not empty.

        Args:
            number: of the bucket.
            exact: (len,) fp32, what to round. Where nothing is rounded, it lies in its place already.
        """
        cut, wire = self._cuts[number][self._rank], self._travelling
        if wire is Wire.FP32:
            span = Span(self._region, *cut.of_bytes(_FP32_BYTES))
        else:
            span = self._round(number, self._values[cut.start : cut.stop], exact)
        self._collective.put(
            Kind.RESULT, span, to=self._routes.readers, dtype=wire.block_dtype, slice_=self._rank,
            number=FIRST_BUCKET + number,
        )  # fmt: skip

    def _round(self, number: int, values: torch.Tensor, exact: torch.Tensor) -> Span:
        start, stop = self._starts[number], self._starts[number + 1]
        rounded, size = self._rounded[start:stop], self._wire.element_bytes
        self._wire.encode(exact, rounded)
        self._wire.decode(rounded, values)
        return Span(self._rounded_region, start * size, (stop - start) * size)

    def take(self, number: int) -> None:
        """Start the fetch of what this rank takes in of a bucket for its island, in the order of `offer`.

        Waits for the oldest one under way if there is room for no more.
        """
        if not self._routes.sources:
            return
        while len(self._coming) >= self._room:
            self._keep_oldest()
        with self._collective.store.together():
            self._coming.append(_Coming(number, self._ask(number)))
        self._turns += 1

    def _ask(self, number: int) -> list[tuple[int, Pending]]:
        wire, asked = self._travelling, list[tuple[int, Pending]]()
        for place, rank in enumerate(self._routes.sources):
            cut = self._cuts[number][rank]
            if not len(cut):
                continue
            into = (
                Span(self._region, *cut.of_bytes(_FP32_BYTES)) if wire is Wire.FP32
                else self._into.span(self._turns, place, len(cut) * wire.element_bytes)
            )  # fmt: skip
            block = self._collective.fetch(Kind.RESULT, into, slice_=rank, source=rank, number=FIRST_BUCKET + number)
            asked.append((rank, block))
        return asked

    def finish(self) -> None:
        """Wait until the vector is whole, for the whole island."""
        with self._timeline.span("gather", "exchange"):
            self._await_all()

    def _await_all(self) -> None:
        while self._coming:
            self._keep_oldest()
        self._await_island(self._collective)

    def _keep_oldest(self) -> None:
        number, blocks = self._coming.popleft()
        for (rank, _), block in zip(blocks, self._collective.await_each(blocks), strict=True):
            self._keep(block, self._cuts[number][rank])

    def _keep(self, block: Fetched, cut: Slice) -> None:
        wire = self._travelling
        check_length(block, len(cut) * wire.element_bytes)
        if wire is Wire.FP32 and block.in_place:
            return
        wire.decode(over_payload(block.payload, wire.dtype), self._values[cut.start : cut.stop])

    def _await_island(self, collective: Collective) -> None:
        """Until all ranks of the island have written what they write: then the vector is whole."""
        if len(self._routes.island) == 1:
            return
        rounds = Rounds(collective, self._routes)
        message = collective.signature.pack(b"")
        rounds.tell_island(message, GATHERED)
        said = rounds.hear_island(message)
        check_agree({rank: unpack(bytes(one))[0] for rank, one in sorted(said.items())}, str(collective))
