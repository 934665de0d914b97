"""What the ranks of an exchange tell each other beside numbers: what they call, where their gradients lie, their metas.

A rank tells its island on the board; one rank of the island passes it on to each owner on another. So every rank
hears every rank, and refuses a mismatch before anything is summed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mizzle.blocks.ids import Kind
from mizzle.blocks.store import Pending
from mizzle.collectives.collective import Collective
from mizzle.collectives.routes import Routes
from mizzle.collectives.signature import Signature, unpack

_HEAD = struct.Struct("<?H")
_PART = struct.Struct("<?H")


@dataclass(frozen=True, slots=True)
class Opening:
    """What a rank says at the beginning of an exchange.

    Attributes:
        signature: of its call.
        active: for each of its nodes, whether it has samples this time.
        places: for each of its nodes, where the contribution lies, for its island.
        meta: for every rank.
        is_final: whether ``meta`` is known yet; if not, it comes in a round at the end.
    """

    signature: Signature
    active: tuple[bool, ...]
    places: tuple[bytes, ...]
    meta: bytes
    is_final: bool

    def pack(self) -> bytes:
        """For the ranks of the island."""
        parts = b"".join(
            _PART.pack(is_active, len(place)) + place
            for is_active, place in zip(self.active, self.places, strict=True)
        )  # fmt: skip
        return self.signature.pack(_HEAD.pack(self.is_final, len(self.active)) + parts + self.meta)

    @classmethod
    def unpack(cls, message: bytes | memoryview) -> Opening:
        """What `pack` wrote."""
        signature, rest = unpack(bytes(message))
        at = _HEAD.size
        active, places = [], []
        is_final, count = _HEAD.unpack_from(rest)
        for _ in range(count):
            is_active, length = _PART.unpack_from(rest, at)
            at += _PART.size
            active.append(is_active)
            places.append(rest[at : at + length])
            at += length
        return cls(signature, tuple(active), tuple(places), rest[at:], is_final)

    def stripped(self) -> bytes:
        """For the ranks of other islands: without what only the own one can use."""
        return Opening(self.signature, (), (), self.meta, self.is_final).pack()


class Rounds:
    """The rounds of one exchange in which all ranks hear all.

    Args:
        collective: the exchange under way.
        routes: who speaks for whom.
    """

    def __init__(self, collective: Collective, routes: Routes) -> None:
        """See the class."""
        self._collective = collective
        self._routes = routes
        self._asked: dict[int, Pending] = {}

    def tell_island(self, message: bytes, number: int) -> None:
        """Out: to the own island; ``number`` tells the rounds of one exchange apart."""
        collective = self._collective
        collective.store.island.board.post(collective.iteration, collective.round_op(number), message)

    def hear_island(self, own: bytes) -> dict[int, bytes | memoryview]:
        """In: what every rank of the own island said in the last round, the own included.

        Raises:
            CollectiveTimeout: names the ranks that are missing.
        """
        collective = self._collective
        said: dict[int, bytes | memoryview] = dict(collective.store.island.board.read(collective.deadline))
        said[collective.store.rank] = own
        collective.check_complete([rank for rank in self._routes.island if rank not in said])
        return said

    def tell_abroad(self, said: Mapping[int, bytes], number: int) -> None:
        """Out: to the owners on other islands that this rank speaks to, what each rank of its island said."""
        collective, routes = self._collective, self._routes
        for owner in routes.sources:  # whose agent speaks to it
            for part, rank in enumerate(routes.island):
                collective.put(
                    Kind.CONTRIBUTION, None, to=(owner,), meta=said[rank], slice_=owner, part=part, number=number
                )

    def ask_abroad(self, islands: Iterable[tuple[int, ...]], number: int) -> None:
        """In: start the fetch of what the ranks of other islands said."""
        collective, routes = self._collective, self._routes
        for island in islands:
            speaker = routes.agent(island, collective.store.rank)
            for part, rank in enumerate(island):
                self._asked[rank] = collective.fetch(
                    Kind.CONTRIBUTION, None, slice_=collective.store.rank, source=speaker, part=part, number=number
                )

    def hear_abroad(self) -> dict[int, bytes]:
        """In: what every rank of the islands that were asked said.

        Raises:
            CollectiveMismatch: a rank made another call; all are named that are known.
            CollectiveTimeout: names the ranks that are missing.
        """
        pending, self._asked = self._asked, {}
        return self._collective.await_messages(pending)
