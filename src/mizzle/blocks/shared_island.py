"""The island of ranks that map each other's arenas: regions by place, shared regions, and a number told in a word."""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from mizzle.blocks.arena import Arena, MappedRegion, open_region
from mizzle.blocks.deadline import Deadline
from mizzle.blocks.futex import SLICE_S
from mizzle.blocks.island import Board
from mizzle.blocks.notes import LAID_AT, TOLD_AT, Control, Place
from mizzle.blocks.region import Region
from mizzle.errors import BlockNotFound, CollectiveTimeout, ConfigError

_PLACE = struct.Struct("<QQ")
RefuseHopeless = Callable[[Collection[int], Deadline | None], Deadline | None]
"""(awaited ranks, grace so far) -> grace; raises when no more is to be expected of them."""


@dataclass(slots=True)
class Peer:
    """What a rank has mapped of a peer, and how many of its notes it has asked for and read."""

    control: Control
    regions: dict[int, MappedRegion] = field(default_factory=dict)
    asked: int = 0

    def map(self, place: Place) -> memoryview:
        """The peer's region, mapped once."""
        region = self.regions.get(place.inode)
        if region is None:
            region = open_region("peer", place.path, place.region_bytes)
            if region.inode != place.inode:
                raise BlockNotFound(f"the region at {place.path} was replaced while it was announced")
            self.regions[place.inode] = region
        return region.buffer


class SharedIsland:
    """A rank's `Island` over the control regions and arenas of one host.

    Args:
        rank: which.
        own: its control region.
        peers: the other ranks of the island.
        board: of the island.
        arena: its regions.
        refuse_hopeless: asked whenever a sleep was in vain.
    """

    def __init__(
        self, rank: int, own: Control, peers: Mapping[int, Peer], board: Board, arena: Arena,
        refuse_hopeless: RefuseHopeless,
    ) -> None:  # fmt: skip
        """See the class."""
        self.ranks = tuple(sorted([rank, *peers]))
        self.board = board
        self._rank = rank
        self._own = own
        self._peers = peers
        self._arena = arena
        self._refuse_hopeless = refuse_hopeless
        self._shared: dict[str, MappedRegion] = {}

    def place(self, region: Region) -> bytes:
        """As `Island.place`."""
        place = place_of(region)
        return _PLACE.pack(place.inode, place.region_bytes) + place.path.encode()

    def view(self, rank: int, place: bytes) -> memoryview:
        """As `Island.view`."""
        inode, region_bytes = _PLACE.unpack_from(place)
        return self._peers[rank].map(Place(place[_PLACE.size :].decode(), inode, region_bytes)).toreadonly()

    def shared(self, name: str, num_bytes: int, deadline: Deadline) -> Region:
        """As `Island.shared`."""
        region = self._shared.get(name)
        if region is None or region.size < num_bytes:
            region = self._shared[name] = self._make_or_find(name, num_bytes, deadline)
        return region

    def _make_or_find(self, name: str, num_bytes: int, deadline: Deadline) -> MappedRegion:
        maker = self.ranks[0]
        if maker == self._rank:
            region = self._arena.renew(f"shared.{name}", num_bytes)
            self._own.lay_out(name, place_of(region))
            return region
        control = self._peers[maker].control
        place, grace = None, None
        while place is None:
            seen = control.words.get(LAID_AT)
            place = control.laid_out(name)
            if place is None:
                what = f"rank {maker} to make shared region {name!r}"
                grace = self._await_change(maker, LAID_AT, seen, deadline, what, grace)
        return self._arena.adopt(f"shared.{name}", place.path, place.region_bytes)

    def tell(self, count: int) -> None:
        """As `Island.tell`."""
        self._own.words.set(TOLD_AT, count)

    def await_told(self, rank: int, count: int, deadline: Deadline) -> None:
        """As `Island.await_told`."""
        if rank == self._rank:
            return
        words = self._peers[rank].control.words
        grace = None
        while (seen := words.get(TOLD_AT)) < count:
            grace = self._await_change(rank, TOLD_AT, seen, deadline, f"rank {rank} to come so far", grace)

    def _await_change(
        self, rank: int, at: int, seen: int, deadline: Deadline, what: str, grace: Deadline | None
    ) -> Deadline | None:  # fmt: skip
        """Sleep a while; the grace that is left when some rank is lost."""
        words = self._peers[rank].control.words
        words.wait_while(at, seen, min(SLICE_S, deadline.remaining_s()))
        if words.get(at) == seen:
            grace = self._refuse_hopeless([rank], grace)
            if deadline.passed:
                raise CollectiveTimeout(f"rank {self._rank} waited for {what}, and it did not by the deadline")
        return grace


def place_of(region: Region, offset: int = 0) -> Place:
    """Where processes of this host find a region.

    Raises:
        ConfigError: it is no shared memory; make it with the store's `region`.
    """
    if not isinstance(region, MappedRegion):
        raise ConfigError(f"region {region.name!r} is no shared memory: make it with this store's region()")
    return Place(region.path, region.inode, region.size, offset)
