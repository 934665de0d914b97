"""The store of one process: a rank is a thread, a peer's memory is simply there. For tests and debugging.

It keeps the whole contract of `BlockStore` (headers and CRCs included), so that what works here works over sockets.
It never copies a payload unless told to (``in_place``): then it behaves as a store that must bring bytes over a wire.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TypeVar

import crc32c
import numpy as np

from mizzle.blocks.deadline import Deadline
from mizzle.blocks.ids import BlockId, DType, Header
from mizzle.blocks.island import Alone, Board, Island, island_with, islands_of
from mizzle.blocks.region import Region, Span
from mizzle.blocks.store import Fetched, OwnBlocks, checked
from mizzle.errors import (
    ArenaError,
    BlockNotFound,
    CollectiveTimeout,
    ConfigError,
    CorruptBlock,
    Fenced,
    PeerLost,
)

T = TypeVar("T")
_Posted = tuple[tuple[int, int], bytes]
"""Under which name something was posted, and what."""


class MemoryRegion:
    """Named bytes of one rank, zeroed when created."""

    def __init__(self, name: str, num_bytes: int) -> None:
        """Allocate ``num_bytes`` zeros."""
        self.name = name
        self._buffer = np.zeros(num_bytes, dtype=np.uint8).data

    @property
    def buffer(self) -> memoryview:
        """The whole region, writable, format 'B'."""
        return self._buffer


@dataclass(frozen=True, slots=True)
class _Announced:
    """A block as its source published it: packed header, small part, view of the source's memory, who may read it."""

    header: bytes
    meta: bytes
    payload: memoryview
    to: frozenset[int]


@dataclass(slots=True)
class _Membership:
    """What the fabric knows of one (run, generation)."""

    blocks: dict[BlockId, _Announced] = field(default_factory=dict)
    dropped_before: dict[int, tuple[int, int]] = field(default_factory=dict)
    aborted: tuple[int, str] | None = None
    posted: dict[tuple[int, int], _Posted] = field(default_factory=dict)
    told: dict[int, int] = field(default_factory=dict)


class MemoryFabric:
    """What the ranks of one process share: blocks, regions and fences, under one condition.

    Args:
        size: number of ranks.
        in_place: whether a fetch copies the payload into the reader's memory (as over a wire) or hands out a
            read-only view of the source's (as shared memory does). The CRC is always taken over what is handed out.
        islands: which ranks see each other's memory; without them every rank is alone.
    """

    def __init__(
        self, size: int, *, in_place: bool = False, islands: tuple[tuple[int, ...], ...] | None = None
    ) -> None:
        """See the class."""
        if size < 1:
            raise ConfigError(f"a fabric needs at least one rank, not {size}")
        self.size = size
        self.in_place = in_place
        self.islands = islands or islands_of(range(size))
        self._changed = threading.Condition()
        self._members: dict[tuple[str, int], _Membership] = {}
        self._fences: dict[str, int] = {}
        self._regions: dict[tuple[str, int, str], MemoryRegion] = {}

    def store(self, rank: int, *, run: str, generation: int = 0) -> MemoryStore:
        """The door of ``rank``; a later one of a higher generation finds the same regions.

        Raises:
            ConfigError: there is no such rank.
            Fenced: the generation was superseded already.
        """
        if not 0 <= rank < self.size:
            raise ConfigError(f"rank {rank} is not one of 0..{self.size - 1}")
        store = MemoryStore(self, rank, run=run, generation=generation)
        with self._changed:
            self._refuse_fenced(run, generation)
        return store

    def region(self, run: str, rank: int, name: str, num_bytes: int) -> MemoryRegion:
        """See `BlockStore.region`."""
        key = (run, rank, name)
        with self._changed:
            region = self._regions.get(key)
            if region is None or len(region.buffer) < num_bytes:
                try:
                    region = MemoryRegion(name, num_bytes)
                except MemoryError as error:
                    raise ArenaError(
                        f"region {name!r} of rank {rank} needs {num_bytes} bytes: the process has no such memory"
                    ) from error
                self._regions[key] = region
            return region

    def announce(self, block: BlockId, announced: _Announced) -> None:
        """Make a block visible to its readers."""
        with self._changed:
            self._refuse_fenced(block.run, block.generation)
            self._member(block.run, block.generation).blocks[block] = announced
            self._changed.notify_all()

    def await_block(self, block: BlockId, reader: int, deadline: Deadline) -> _Announced:
        """Wait until ``reader`` may read the block.

        A block that is there is delivered even when a peer has aborted since: whoever fails for what it saw in this
        round lets the others see the same.
        """
        with self._changed:
            while True:
                self._refuse_fenced(block.run, block.generation)
                member = self._member(block.run, block.generation)
                announced = member.blocks.get(block)
                if announced is not None and reader in announced.to:
                    return announced
                if (block.iteration, block.op) < member.dropped_before.get(block.source, (0, 0)):
                    raise BlockNotFound(f"{block} was dropped by its source")
                if member.aborted is not None:
                    raise PeerLost(*member.aborted)
                if not self._changed.wait(deadline.remaining_s()) and deadline.passed:
                    raise CollectiveTimeout(f"{block} did not come before the deadline")

    def post(self, store: MemoryStore, turn: int, name: tuple[int, int], message: bytes) -> None:
        """Say something to all ranks of the island, for the ``turn``-th time."""
        with self._changed:
            self._refuse_fenced(store.run, store.generation)
            posted = self._member(store.run, store.generation).posted
            posted[store.rank, turn] = name, message
            posted.pop((store.rank, turn - 2), None)
            self._changed.notify_all()

    def await_posts(self, store: MemoryStore, turn: int, deadline: Deadline) -> dict[int, _Posted]:
        """What the other ranks of the island said at their ``turn``-th time; late ones are left out."""
        others = [rank for rank in store.island.ranks if rank != store.rank]

        def found(member: _Membership) -> dict[int, _Posted]:
            return {rank: member.posted[rank, turn] for rank in others if (rank, turn) in member.posted}

        return self._await(store, lambda member: len(found(member)) == len(others), found, deadline)

    def tell(self, store: MemoryStore, count: int) -> None:
        """See `mizzle.blocks.island.Island.tell`."""
        with self._changed:
            self._member(store.run, store.generation).told[store.rank] = count
            self._changed.notify_all()

    def await_told(self, store: MemoryStore, rank: int, count: int, deadline: Deadline) -> None:
        """See `mizzle.blocks.island.Island.await_told`."""

        def came(member: _Membership) -> bool:
            return member.told.get(rank, 0) >= count

        if not self._await(store, came, came, deadline):
            raise CollectiveTimeout(f"rank {rank} did not come so far before the deadline")

    def _await(
        self, store: MemoryStore, ready: Callable[[_Membership], bool], value: Callable[[_Membership], T],
        deadline: Deadline,
    ) -> T:  # fmt: skip
        """Wait until something is so, or the deadline comes."""
        with self._changed:
            while True:
                self._refuse_fenced(store.run, store.generation)
                member = self._member(store.run, store.generation)
                if ready(member) or deadline.passed:
                    return value(member)
                if member.aborted is not None:
                    raise PeerLost(*member.aborted)
                self._changed.wait(deadline.remaining_s())

    def drop(self, store: MemoryStore, before: tuple[int, int]) -> None:
        """Forget what the store's rank put before (iteration, op)."""
        with self._changed:
            member = self._member(store.run, store.generation)
            for block in [block for block in member.blocks if block.source == store.rank]:
                if (block.iteration, block.op) < before:
                    del member.blocks[block]
            member.dropped_before[store.rank] = max(before, member.dropped_before.get(store.rank, (0, 0)))

    def end(self, run: str) -> None:
        """The run is over, none of its ranks works any more: forget its blocks and regions."""
        with self._changed:
            for key in [key for key in self._members if key[0] == run]:
                del self._members[key]
            for name in [name for name in self._regions if name[0] == run]:
                del self._regions[name]
            self._changed.notify_all()

    def fence(self, run: str, generation: int) -> None:
        """See `BlockStore.fence`."""
        with self._changed:
            self._fences[run] = max(generation, self._fences.get(run, 0))
            for key in [key for key in self._members if key[0] == run and key[1] < generation]:
                del self._members[key]
            self._changed.notify_all()

    def abort(self, store: MemoryStore, why: str) -> None:
        """See `BlockStore.abort`; the first one to abort is the one that is named."""
        with self._changed:
            if store.generation < self._fences.get(store.run, 0):
                return  # everybody of that generation is told `Fenced`, which says more
            member = self._member(store.run, store.generation)
            if member.aborted is None:
                member.aborted = (store.rank, why)
            self._changed.notify_all()

    def num_blocks(self) -> int:
        """How many blocks are announced now; 0 when everybody has dropped what it put, or the run has ended."""
        with self._changed:
            return sum(len(member.blocks) for member in self._members.values())

    def _member(self, run: str, generation: int) -> _Membership:
        return self._members.setdefault((run, generation), _Membership())

    def _refuse_fenced(self, run: str, generation: int) -> None:
        fence = self._fences.get(run, 0)
        if generation < fence:
            raise Fenced(f"generation {generation} of run {run[:4]} was superseded by generation {fence}: stop here")


class MemoryStore:
    """One rank's door to a `MemoryFabric`; see `BlockStore` for every promise. Made by `MemoryFabric.store`."""

    def __init__(self, fabric: MemoryFabric, rank: int, *, run: str, generation: int) -> None:
        """See `MemoryFabric.store`."""
        self.run = run
        self.generation = generation
        self.rank = rank
        self.size = fabric.size
        self.islands = fabric.islands
        self._fabric = fabric
        self._blocks = OwnBlocks(run, rank)
        self.island: Island = Alone(rank, lambda name, num_bytes: self.region(f"{name}.{generation}", num_bytes))
        if len(self.islands) < self.size:
            self.island = MemoryIsland(fabric, self, self._blocks)
        self.board: Board | None = self.island.board if len(self.island.ranks) == self.size > 1 else None

    def region(self, name: str, num_bytes: int) -> MemoryRegion:
        """See `BlockStore.region`."""
        return self._fabric.region(self.run, self.rank, name, num_bytes)

    def put(self, block: BlockId, payload: Span | None, *, meta: bytes, dtype: DType, to: Sequence[int]) -> None:
        """See `BlockStore.put`."""
        self._blocks.check_put(block, meta)
        view = payload.view.toreadonly() if payload is not None else memoryview(b"")
        header = Header(block, dtype, len(meta), len(view), _body_crc(meta, view))
        self._fabric.announce(block, _Announced(header.pack(), bytes(meta), view, frozenset(to)))

    def fetch(self, block: BlockId, into: Span | None) -> MemoryPending:
        """See `BlockStore.fetch`."""
        return MemoryPending(self._fabric, block, into, self.rank)

    def together(self) -> AbstractContextManager[None]:
        """As `BlockStore.together`: nothing leaves."""
        return nullcontext()

    def drop(self, iteration: int, op: int) -> None:
        """See `BlockStore.drop`."""
        self._blocks.drop(iteration, op)
        self._fabric.drop(self, (iteration, op))

    def fence(self, generation: int) -> None:
        """See `BlockStore.fence`."""
        self._fabric.fence(self.run, generation)

    def abort(self, why: str) -> None:
        """See `BlockStore.abort`."""
        self._fabric.abort(self, why)

    def close(self) -> None:
        """See `BlockStore.close`. Closing twice is allowed."""
        self._blocks.close()


class MemoryIsland:
    """A rank's `Island` in one process."""

    def __init__(self, fabric: MemoryFabric, store: MemoryStore, blocks: OwnBlocks) -> None:
        """See `MemoryFabric.store`."""
        self.ranks = island_with(store.rank, fabric.islands)
        self.board: Board = MemoryBoard(fabric, store, blocks)
        self._fabric = fabric
        self._store = store

    def place(self, region: Region) -> bytes:
        """See `Island.place`."""
        return region.name.encode()

    def view(self, rank: int, place: bytes) -> memoryview:
        """See `Island.view`."""
        return self._fabric.region(self._store.run, rank, bytes(place).decode(), 0).buffer.toreadonly()

    def shared(self, name: str, num_bytes: int, deadline: Deadline) -> Region:  # noqa: ARG002 - it is there at once
        """See `Island.shared`."""
        name = f"shared.{self._store.generation}.{name}"
        return self._fabric.region(self._store.run, self.ranks[0], name, num_bytes)

    def tell(self, count: int) -> None:
        """See `Island.tell`."""
        self._fabric.tell(self._store, count)

    def await_told(self, rank: int, count: int, deadline: Deadline) -> None:
        """See `Island.await_told`."""
        if rank != self._store.rank:
            self._fabric.await_told(self._store, rank, count, deadline)


class MemoryBoard:
    """A rank's `Board` in one process."""

    def __init__(self, fabric: MemoryFabric, store: MemoryStore, blocks: OwnBlocks) -> None:
        """See `MemoryFabric.store`."""
        self._fabric = fabric
        self._store = store
        self._blocks = blocks
        self._turn = 0
        self._name = (0, 0)

    def post(self, iteration: int, op: int, message: bytes) -> None:
        """See `Board.post`."""
        self._blocks.check_post(iteration, op, message)
        self._turn += 1
        self._name = iteration, op
        self._fabric.post(self._store, self._turn, self._name, bytes(message))

    def read(self, deadline: Deadline) -> dict[int, memoryview]:
        """See `Board.read`."""
        posts = self._fabric.await_posts(self._store, self._turn, deadline)
        for rank, (name, _) in posts.items():
            if name != self._name:
                raise CorruptBlock(f"rank {rank} posted under {name}, not {self._name}, which was asked for")
        return {rank: memoryview(message) for rank, (_, message) in posts.items()}


class MemoryPending:
    """A fetch from a `MemoryFabric`."""

    def __init__(self, fabric: MemoryFabric, block: BlockId, into: Span | None, reader: int) -> None:
        """See `MemoryStore.fetch`."""
        self._fabric = fabric
        self._block = block
        self._into = into
        self._reader = reader

    def wait(self, deadline: Deadline) -> Fetched:
        """See `Pending.wait`."""
        announced = self._fabric.await_block(self._block, self._reader, deadline)
        header = Header.unpack(announced.header)
        checked(self._block, header, announced.meta, self._into)
        if (header.meta_bytes, header.payload_bytes) != (len(announced.meta), len(announced.payload)):
            raise CorruptBlock(f"{self._block}: lengths differ from what its header says")
        payload = self._hand_out(announced.payload)
        if _body_crc(announced.meta, payload) != header.body_crc:
            raise CorruptBlock(f"{self._block} fails its CRC32C")
        return Fetched(header, announced.meta, payload, in_place=self._fabric.in_place)

    def _hand_out(self, payload: memoryview) -> memoryview:
        if not self._fabric.in_place or self._into is None:
            return payload
        into = self._into.view[: len(payload)]
        into[:] = payload
        return into


def _body_crc(meta: bytes, payload: memoryview) -> int:
    return crc32c.crc32c(payload, crc32c.crc32c(meta))
