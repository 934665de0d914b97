"""The reduce phase: contributions to every bucket out, those to the own ranges in, added up as they come."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import torch

from mizzle.blocks.ids import Kind
from mizzle.blocks.region import Region
from mizzle.blocks.store import Fetched, Pending
from mizzle.collectives.ahead import Ahead
from mizzle.collectives.collective import Collective, check_length
from mizzle.collectives.combine import TreeCombiner
from mizzle.collectives.layout import ExchangeLayout
from mizzle.collectives.opening import Opening, Rounds
from mizzle.collectives.outgoing import Outgoing
from mizzle.collectives.routes import Held, Parcel, Routes
from mizzle.collectives.signature import check_agree
from mizzle.collectives.timeline import Timeline
from mizzle.collectives.tree import Node
from mizzle.collectives.views import over_payload
from mizzle.collectives.window import LAG, Window
from mizzle.collectives.wire import Wire
from mizzle.errors import CollectiveMismatch

OPENING, CLOSING, GATHERED, FIRST_BUCKET = range(4)
"""Numbers of an exchange's rounds; then come its buckets."""


Follow = Callable[[int, torch.Tensor | None], None]
"""Called with the number of a bucket as soon as it is reduced, and the own range's sum, None if that is empty."""


class Reducing:
    """The reduce phase of one rank's exchanges.

    Buckets are taken from the last to the first, as backward makes them final.

    Args:
        layout: of the exchange.
        routes: of this rank.
        wire: how contributions travel.
        combiner: adds in tree order.
        outgoing: makes what is sent.
        window: where arrives what is fetched.
        own: region and (M,) fp32 vector of each of the own nodes.
        timeline: notes what took how long.
    """

    def __init__(
        self, layout: ExchangeLayout, routes: Routes, wire: Wire, *, combiner: TreeCombiner, outgoing: Outgoing,
        window: Window, own: Sequence[tuple[Region, torch.Tensor]], timeline: Timeline,
    ) -> None:  # fmt: skip
        """See the class."""
        self._routes, self._wire, self._combiner = routes, wire, combiner
        self._outgoing, self._window, self._timeline = outgoing, window, timeline
        self._own = [vector for _, vector in own]
        self._num_elements = layout.num_elements
        self._cuts = [layout.cuts(bucket) for bucket in layout.buckets]
        self._peers: dict[tuple[int, int], tuple[bytes, torch.Tensor]] = {}
        self._told = 0

    def begin(self, collective: Collective, opening: Opening, follow: Follow | None = None) -> None:
        """Tell the peers; without an island to wait for, send what is final. Waits for nobody.

        Args:
            collective: the exchange under way.
            opening: what this rank tells.
            follow: what happens to buckets that have been reduced, if anything. It puts and fetches between those of
                this phase, so on all ranks alike no more than `LAG` buckets are sent ahead of it.
        """
        self._follow = follow
        self._collective, self._rank = collective, collective.store.rank
        self._rounds = Rounds(collective, self._routes)
        self._opening, self._packed = opening, opening.pack()
        self._sent = 0
        self._base = self._told
        self._rounds.tell_island(self._packed, OPENING)
        if opening.is_final:
            self._tell(len(self._cuts))
        if len(self._routes.island) == 1:
            self._meet({self._rank: opening})
            if opening.is_final:
                self._send_up_to(min(LAG, len(self._cuts)) if follow else len(self._cuts))

    def run(self, into: Sequence[torch.Tensor], ahead: Ahead | None = None) -> list[bytes]:
        """All the rest of the phase; the metas of all ranks.

        Args:
            into: for each own range (len,) fp32, overwritten with the sum over all active nodes.
            ahead: tells which buckets are final, where `begin` was called before they were.
        """
        if len(self._routes.island) > 1:
            said = self._rounds.hear_island(self._packed)
            openings = {rank: Opening.unpack(message) for rank, message in sorted(said.items())}
            self._check(openings)
            self._meet(openings)
        pending: deque[list[Pending]] = deque()
        abroad: dict[int, Opening] | None = None
        count, asked = len(self._cuts), 0
        depth = min(LAG, self._window.depth) if ahead or self._follow else self._window.depth
        targets = list(into)
        for turn in range(count):
            while asked < min(count, turn + depth):
                self._await_final(asked, ahead)
                begun = time.perf_counter()
                with self._collective.store.together():
                    self._send_up_to(asked + 1)
                    pending.append(self._ask(asked))
                asked += 1
                self._note(begun, ahead)
            begun = time.perf_counter()
            if abroad is None:  # nothing is summed before it is sure that all make the same call
                abroad = self._hear_abroad()
            total = self._reduce(turn, pending.popleft(), targets)
            self._note(begun, ahead)
            if self._follow:
                self._follow(self._number(turn), total)
        return self._metas(abroad or {}, ahead)

    def _check(self, openings: Mapping[int, Opening]) -> None:
        signatures = {rank: one.signature for rank, one in openings.items()} | {self._rank: self._opening.signature}
        check_agree(dict(sorted(signatures.items())), str(self._collective))

    def _meet(self, openings: Mapping[int, Opening]) -> None:
        """The island is here: speak for it, and look where its contributions lie."""
        self._openings = openings
        with self._collective.store.together():
            self._rounds.tell_abroad({rank: one.stripped() for rank, one in openings.items()}, OPENING)
            self._rounds.ask_abroad(self._routes.others, OPENING)
        self._vectors = {
            held: self._vector(held, openings[held.rank].places[held.part])
            for held in self._routes.held
            if openings[held.rank].active[held.part]
        }

    def _vector(self, held: Held, place: bytes) -> torch.Tensor:
        """What a rank of the island contributes, (M,), in its own memory."""
        if held.rank == self._rank:
            return self._own[held.part]
        key = held.rank, held.part
        known = self._peers.get(key)
        if known is None or known[0] != place:
            view = self._collective.store.island.view(held.rank, place)
            known = self._peers[key] = place, over_payload(view, torch.float32, self._num_elements)
        return known[1]

    def _tell(self, buckets: int) -> None:
        self._told += buckets
        self._collective.store.island.tell(self._told)

    def _await_final(self, turn: int, ahead: Ahead | None) -> None:
        """Wait until the whole island's contributions to a bucket are final."""
        if ahead is not None:
            ahead.await_announced(self._number(turn))
            self._tell(1)
            self._collective.rearm(ahead.timeout_s)
        for rank, opening in self._openings.items():
            if not opening.is_final:
                self._collective.store.island.await_told(rank, self._base + turn + 1, self._collective.deadline)

    def _number(self, turn: int) -> int:
        return len(self._cuts) - 1 - turn

    def _note(self, begun: float, ahead: Ahead | None) -> None:
        if ahead is not None:
            ahead.note(begun)

    def _send_up_to(self, turns: int) -> None:
        """Send the contributions of the island to the first so many buckets, as far as they are this rank's to send."""
        while self._sent < turns:
            number = self._number(self._sent)
            self._sent += 1
            if not self._routes.outgoing:
                continue
            with self._timeline.span("send", "exchange", bucket=number), self._collective.store.together():
                for parcel in self._routes.outgoing:
                    self._send(parcel, number)

    def _send(self, parcel: Parcel, number: int) -> None:
        cut = self._cuts[number][parcel.owner]
        if len(cut):
            span = self._outgoing.make(parcel, cut, self._vectors)
            self._collective.put(
                Kind.CONTRIBUTION, span, to=(parcel.owner,), dtype=self._wire.block_dtype, slice_=parcel.owner,
                part=parcel.number, number=FIRST_BUCKET + number,
            )  # fmt: skip

    def _ask(self, turn: int) -> list[Pending]:
        """Start the fetch of a bucket's contributions from other islands, in the order of `Routes.incoming`."""
        number = self._number(turn)
        num_bytes = len(self._cuts[number][self._rank]) * self._wire.element_bytes
        if not num_bytes:
            return []
        return [
            self._collective.fetch(
                Kind.CONTRIBUTION, self._window.span(turn, place, num_bytes), slice_=self._rank,
                source=parcel.sender, part=parcel.number, number=FIRST_BUCKET + number,
            )
            for place, parcel in enumerate(self._routes.incoming)
        ]  # fmt: skip

    def _hear_abroad(self) -> dict[int, Opening]:
        openings = {rank: Opening.unpack(message) for rank, message in self._rounds.hear_abroad().items()}
        self._check({**self._openings, **openings})
        return openings

    def _reduce(self, turn: int, pending: Sequence[Pending], targets: list[torch.Tensor]) -> torch.Tensor | None:
        """Add up the own range of a bucket, unless it is empty; the last of the targets is its."""
        number = self._number(turn)
        cut = self._cuts[number][self._rank]
        if not len(cut):
            return None
        with self._timeline.span("reduce", "exchange", bucket=number):
            sources: dict[Node, torch.Tensor] = {
                held.node: vector[cut.start : cut.stop] for held, vector in self._vectors.items()
            }
            incoming = self._routes.incoming
            coming = [(parcel.sender, one) for parcel, one in zip(incoming, pending, strict=True)]
            for parcel, block in zip(incoming, self._collective.await_each(coming), strict=True):
                source = self._checked(block, len(cut))
                if source is not None:
                    sources[parcel.node] = source
            total = targets.pop()
            self._combiner.combine(sources, total)
            return total

    def _checked(self, block: Fetched, count: int) -> torch.Tensor | None:
        """A contribution from another island; None when it is absent."""
        if block.header.payload_bytes == 0:
            return None
        if block.header.dtype != self._wire.block_dtype:
            raise CollectiveMismatch(f"{block.header.block} holds {block.header.dtype.name}, not {self._wire.value}")
        check_length(block, count * self._wire.element_bytes)
        return over_payload(block.payload, self._wire.dtype)

    def _metas(self, abroad: Mapping[int, Opening], ahead: Ahead | None) -> list[bytes]:
        """Every rank's meta; who did not know it at the beginning says it now."""
        metas = {rank: opening.meta for rank, opening in (*self._openings.items(), *abroad.items())}
        own = self._opening.meta
        if ahead is not None:
            own = ahead.await_meta()
            self._collective.rearm(ahead.timeout_s)
        # Who comes through this round knows that all its neighbours have computed: only then may weights be written.
        if not all(opening.is_final for opening in self._openings.values()):
            self._rounds.tell_island(own, CLOSING)
            said = {rank: bytes(message) for rank, message in self._rounds.hear_island(own).items()}
            self._rounds.tell_abroad(said, CLOSING)
            metas |= said
        late = [island for island in self._routes.others if not all(abroad[rank].is_final for rank in island)]
        self._rounds.ask_abroad(late, CLOSING)
        metas |= self._rounds.hear_abroad()
        return [metas[rank] for rank in range(len(metas))]
