"""What the collectives see of the world below: named immutable bytes between ranks.

Three stores keep this contract (``tests/contract``): `memory` (ranks are threads), `shared` (ranks on one host read
each other's arenas), `transfer` (Spark's BlockManager); `routed` joins the last two. The collectives never see a
socket, a JVM or a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from mizzle.blocks.deadline import Deadline
from mizzle.blocks.ids import MAX_META_BYTES, BlockId, DType, Header
from mizzle.blocks.island import Board, Island
from mizzle.blocks.region import Region, Span
from mizzle.errors import BlockExists, CollectiveMismatch, ConfigError


@dataclass(frozen=True, slots=True)
class Fetched:
    """A block that arrived, its header checked against what was asked for.

    Attributes:
        header: identity, dtype and lengths.
        meta: the block's small part.
        payload: the bytes: ``into`` itself, or a read-only view of the peer's memory (then nothing was copied, and
            it is valid only until this rank announces its next collective).
        in_place: whether the payload lies in ``into``.
    """

    header: Header
    meta: bytes
    payload: memoryview
    in_place: bool


class Pending(Protocol):
    """A fetch under way."""

    def wait(self, deadline: Deadline) -> Fetched:
        """The block.

        Raises:
            CollectiveTimeout: not there by the deadline.
            PeerLost: its source is gone.
            CorruptBlock: header, length or CRC are wrong.
            Fenced: the generation was superseded.
        """
        ...


class BlockStore(Protocol):
    """One rank's door to its peers. Used by one thread at a time.

    Attributes:
        run: the run's id, 32 hex digits.
        generation: membership epoch.
        rank: this rank.
        size: number of ranks.
        board: what to tell everybody by; None where a put to each is all there is. All ranks have one, or none has.
        islands: which ranks see each other's memory, ascending by lowest rank; every rank is in one. The same at all.
        island: the own one.
    """

    run: str
    generation: int
    rank: int
    size: int
    board: Board | None
    islands: tuple[tuple[int, ...], ...]
    island: Island

    def region(self, name: str, num_bytes: int) -> Region:
        """The region of that name, at least ``num_bytes`` long; grown (and zeroed) when it was shorter.

        Raises:
            ArenaError: no memory; nothing was created.
        """
        ...

    def put(self, block: BlockId, payload: Span | None, *, meta: bytes, dtype: DType, to: Sequence[int]) -> None:
        """Publish immutable bytes and tell the ranks in ``to``. The memory must not change until `drop`.

        Between one pair of ranks, puts are seen in the order in which they were made.

        Raises:
            BlockExists: this name was put before.
            ConfigError: the block is another rank's, its meta is too long, or this store is closed.
            Fenced: ``block.generation`` is below the fence.
        """
        ...

    def fetch(self, block: BlockId, into: Span | None) -> Pending:
        """Ask for a peer's block, before or after it is put; ``into`` holds at least its payload.

        Fetches from one source must be made in the order of its puts, each once. ``into`` None accepts no payload.
        A payload longer than ``into`` raises `CollectiveMismatch` at the wait.
        """
        ...

    def together(self) -> AbstractContextManager[None]:
        """In the body of a ``with``, puts and fetches may be held back, to leave in one piece at its end.

        A wait for a block sends what is held first. What is held when the body raises may be lost.
        """
        ...

    def drop(self, iteration: int, op: int) -> None:
        """Forget every block this rank put before (iteration, op). Their readers must have finished."""
        ...

    def fence(self, generation: int) -> None:
        """Refuse every generation below this one from now on, and wake all who wait for one with `Fenced`."""
        ...

    def abort(self, why: str) -> None:
        """Tell every peer at once that this rank will not go on: their waits raise `PeerLost`."""
        ...

    def close(self) -> None:
        """Leave in peace: nothing more can be put.

        What this rank put stays readable until the run's next group or its end, for peers that are not so far yet.
        Regions stay.
        """
        ...


class OwnBlocks:
    """The names that a rank has put or posted in one group, and what no store lets it put."""

    def __init__(self, run: str, rank: int) -> None:
        """Start with none."""
        self._run, self._rank = run, rank
        self._names: set[BlockId] = set()
        self._posted: set[tuple[int, int]] = set()
        self._dropped_before = (0, 0)
        self._closed = False

    def check_put(self, block: BlockId, meta: bytes) -> None:
        """Refuse what must not be put; otherwise note the name as put. Raises as `BlockStore.put`."""
        if self._closed:
            raise ConfigError(f"rank {self._rank}: put of {block} after close")
        if (block.run, block.source) != (self._run, self._rank):
            raise ConfigError(
                f"rank {self._rank} of run {self._run[:4]} cannot put {block}: a rank puts only what is its own"
            )
        if len(meta) > MAX_META_BYTES:
            raise ConfigError(f"meta of {len(meta)} bytes is over the limit of {MAX_META_BYTES}: send it as payload")
        if block in self._names or (block.iteration, block.op) < self._dropped_before:
            raise BlockExists(f"{block} was put before; names are never used twice")
        self._names.add(block)

    def check_post(self, iteration: int, op: int, message: bytes) -> None:
        """Refuse what must not be posted; otherwise note the name as posted. Raises as `Board.post`."""
        name = iteration, op
        if self._closed:
            raise ConfigError(f"rank {self._rank}: post for {name} after close")
        if len(message) > MAX_META_BYTES:
            raise ConfigError(f"{len(message)} bytes are over the limit of {MAX_META_BYTES} for a message to all ranks")
        if name in self._posted or name < self._dropped_before:
            raise BlockExists(f"rank {self._rank} posted for {name} before; names are never used twice")
        self._posted.add(name)

    def drop(self, iteration: int, op: int) -> bool:
        """Forget the names before (iteration, op); none of them is ever put again. Whether blocks were among them."""
        self._dropped_before = max(self._dropped_before, (iteration, op))
        self._posted = {name for name in self._posted if name >= self._dropped_before}
        if not self._names:
            return False
        before = len(self._names)
        self._names = {name for name in self._names if (name.iteration, name.op) >= self._dropped_before}
        return len(self._names) < before

    def close(self) -> None:
        """Nothing more can be put."""
        self._closed = True


def checked(block: BlockId, header: Header, meta: bytes, into: Span | None) -> None:
    """Refuse a block that is not the one asked for, or that is longer than the room made for it.

    Raises:
        CorruptBlock: the header is another block's.
        CollectiveMismatch: the payload does not fit; carries the block's meta, which says what its source called.
    """
    header.check_is(block)
    room = 0 if into is None else into.length
    if header.payload_bytes > room:
        message = f"{block} holds {header.payload_bytes} bytes where at most {room} were expected"
        raise CollectiveMismatch(message, meta=meta)
