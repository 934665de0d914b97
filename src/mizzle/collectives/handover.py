"""Bytes that some ranks hand to some others, as many as they have: how states move when ranks change.

Two steps, and each byte travels once: all tell all how much they give to whom, then the bytes go in pieces.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence

from mizzle.blocks.ids import Kind
from mizzle.blocks.region import Span
from mizzle.blocks.store import Pending
from mizzle.collectives.collective import Collective, check_length
from mizzle.errors import ConfigError

MAX_SHARE_BYTES = 60 * 1024
"""Of a message to all ranks: it fits a block's meta, with the signature of its call."""
_PIECE_BYTES = 8 * 1024 * 1024
"""Of one block: long enough that its name costs nothing, short enough for any buffer on the way."""

Place = Callable[[int, Sequence[int]], Sequence[Span]]
"""Where to leave what a rank gives: (source, lengths in bytes) -> as many spans, of at least these lengths."""


class Handover:
    """What ranks tell and give each other beside the sums: all ranks make the same calls.

    Args:
        begin: the next collective, from what it is called.
    """

    def __init__(self, begin: Callable[[str], Collective]) -> None:
        """See the class."""
        self._begin = begin

    def share(self, payload: bytes) -> list[bytes]:
        """A tiny all-gather.

        Args:
            payload: at most `MAX_SHARE_BYTES`; lengths may differ between ranks.

        Returns:
            Every rank's payload, by rank.

        Raises:
            CollectiveTimeout: names the ranks that are missing.
            PeerLost: a peer is gone.
        """
        with self._begin("share") as collective:
            check_share(payload)
            collective.tell(payload)
            return [bytes(said.rest) for said in collective.listen()]

    def hand_over(self, give: Mapping[int, Sequence[Span]], place: Place) -> dict[int, list[Span]]:
        """Give bytes to other ranks and take theirs; also ranks that give nothing call it.

        Args:
            give: what goes to which other rank; must not change until this rank has completed one more collective.
            place: is asked once for every rank that gives something to this one.

        Returns:
            What each rank gave, by rank: copies in the spans that ``place`` named, cut to length. Ranks that gave
            nothing are left out.

        Raises:
            CollectiveTimeout: names the rank that did not send.
            PeerLost: a peer is gone.
            CorruptBlock: a piece did not arrive as it was sent.
        """
        with self._begin("hand over") as collective:
            collective.tell(
                json.dumps({rank: [span.length for span in spans] for rank, spans in give.items()}).encode()
            )
            for rank, spans in give.items():
                for number, piece in enumerate(_pieces(spans), start=1):
                    collective.put(Kind.RESULT, piece, to=(rank,), slice_=rank, number=number)
            told = [json.loads(bytes(said.rest)) for said in collective.listen()]
            taken = {
                source: _cut(place(source, mine), mine)
                for source, given in enumerate(told) if (mine := given.get(str(collective.store.rank)))
            }  # fmt: skip
            for source, spans in taken.items():
                _take(collective, source, spans)
        return taken


def check_share(payload: bytes) -> None:
    """Refuse a message to all ranks that is too long.

    Raises:
        ConfigError: says both lengths.
    """
    if len(payload) > MAX_SHARE_BYTES:
        raise ConfigError(f"{len(payload)} bytes are over the limit of {MAX_SHARE_BYTES} for a message to all ranks")


def _take(collective: Collective, source: int, spans: Sequence[Span]) -> None:
    """Fetch all that a rank gives, the next piece on its way while one arrives."""
    waiting: list[tuple[Span, Pending]] = []
    me = collective.store.rank
    for number, piece in enumerate(_pieces(spans), start=1):
        waiting.append((piece, collective.fetch(Kind.RESULT, piece, slice_=me, source=source, number=number)))
        if len(waiting) > 1:
            _land(collective, source, *waiting.pop(0))
    for piece, pending in waiting:
        _land(collective, source, piece, pending)


def _land(collective: Collective, source: int, piece: Span, pending: Pending) -> None:
    collective.rearm()
    block = collective.await_all({source: pending})[source]
    check_length(block, piece.length)
    if not block.in_place:
        piece.view[:] = block.payload


def _pieces(spans: Sequence[Span]) -> Iterator[Span]:
    for span in spans:
        for at in range(0, span.length, _PIECE_BYTES):
            yield Span(span.region, span.offset + at, min(_PIECE_BYTES, span.length - at))


def _cut(spans: Sequence[Span], lengths: Sequence[int]) -> list[Span]:
    return [Span(span.region, span.offset, length) for span, length in zip(spans, lengths, strict=True)]
