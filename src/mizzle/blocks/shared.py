"""The store on one host: ranks read each other's arenas; what crosses is a note of where to look.

Short-circuit reads, as HDFS and Spark's host-local shuffle do. Waiting is a futex, so it costs no core. Payloads are
neither copied nor checksummed: they are the peer's own memory, mapped read-only; headers are checked.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from mizzle.blocks.arena import Arena, MappedRegion, open_region
from mizzle.blocks.board import SharedBoard
from mizzle.blocks.deadline import Deadline
from mizzle.blocks.futex import SLICE_S
from mizzle.blocks.ids import BlockId, DType, Header
from mizzle.blocks.island import Board, Island, islands_of
from mizzle.blocks.notes import CONTROL, FENCE_AT, SLOTS, Control, Note, Place, control_bytes
from mizzle.blocks.region import Span
from mizzle.blocks.shared_island import Peer, SharedIsland, place_of
from mizzle.blocks.store import Fetched, OwnBlocks, Pending, checked
from mizzle.errors import CollectiveTimeout, ConfigError, Fenced, PeerLost

_GRACE_S = 0.5
"""How long a wait for one rank goes on after another was lost: what it had sent may still come, and may say more."""


class SharedStore:
    """A rank's `BlockStore` over the arenas of the ranks of its host.

    Args:
        arena: this rank's regions; its control region was emptied by `prepare_control` before the peers were told.
        run: the run's id, 32 hex digits.
        generation: membership epoch.
        rank: this rank.
        controls: path of every rank's control region, by rank; "" for ranks that are not on this host.
        timeout_s: how long a put waits for a reader that lags `SLOTS` notes behind. Puts have no deadline of their
            own: one that waits may take longer than its collective was given, but never longer than this.
    """

    def __init__(
        self, arena: Arena, *, run: str, generation: int, rank: int, controls: Sequence[str], timeout_s: float
    ) -> None:
        """Map the peers' control regions.

        Raises:
            ArenaError: one cannot be opened; reach that peer through the BlockManager instead.
        """
        self.run, self.generation, self.rank, self.size = run, generation, rank, len(controls)
        self._arena = arena
        self._timeout_s = timeout_s
        length = control_bytes(self.size)
        self._own = Control(arena.region(CONTROL, length).buffer, self.size)
        self._peers = {
            peer: Peer(Control(open_region(CONTROL, path, length).buffer, self.size))
            for peer, path in enumerate(controls)
            if peer != rank and path
        }
        self._told = [0] * self.size
        self._blocks = OwnBlocks(run, rank)
        board = SharedBoard(
            self._own, {peer: known.control for peer, known in self._peers.items()}, blocks=self._blocks, run=run,
            generation=generation, refuse_fenced=self._refuse_fenced, refuse_hopeless=self._refuse_hopeless,
        )  # fmt: skip
        self.board: Board | None = board if len(self._peers) == self.size - 1 > 0 else None
        self.islands = islands_of(["here" if path or peer == rank else peer for peer, path in enumerate(controls)])
        self.island: Island = SharedIsland(rank, self._own, self._peers, board, arena, self._refuse_hopeless)

    def region(self, name: str, num_bytes: int) -> MappedRegion:
        """As `BlockStore.region`."""
        return self._arena.region(name, num_bytes)

    def put(self, block: BlockId, payload: Span | None, *, meta: bytes, dtype: DType, to: Sequence[int]) -> None:
        """As `BlockStore.put`."""
        self._refuse_fenced(block.generation)
        self._blocks.check_put(block, meta)
        header = Header(block, dtype, len(meta), payload.length if payload else 0)
        note = self._own.pack(Note(header, _place(payload), meta))
        for reader in to:
            self._await_room(reader)
            self._own.write(reader, self._told[reader], note)
            self._told[reader] += 1

    def _await_room(self, reader: int) -> None:
        words = self._peer(reader).control.words
        at = self._own.read_at(self.rank)
        deadline = Deadline.after(self._timeout_s)
        grace: Deadline | None = None
        while self._told[reader] - (seen := words.get(at)) >= SLOTS:
            grace = self._refuse_hopeless([reader], grace)
            deadline.check(f"rank {reader} to read what rank {self.rank} has put")
            words.wait_while(at, seen, SLICE_S)

    def _peer(self, rank: int) -> Peer:
        peer = self._peers.get(rank)
        if peer is None:
            raise ConfigError(f"rank {rank} is not on the host of rank {self.rank}")
        return peer

    def fetch(self, block: BlockId, into: Span | None) -> Pending:
        """As `BlockStore.fetch`."""
        self._refuse_fenced(block.generation)
        peer = self._peer(block.source)
        peer.asked += 1
        return _Read(self, block, into, peer.asked - 1)

    def read(self, block: BlockId, into: Span | None, turn: int, deadline: Deadline) -> Fetched:
        """The ``turn``-th note of the block's source; see `Pending.wait`."""
        peer = self._peer(block.source)
        self._await_note(peer, block, turn, deadline)
        note = peer.control.note(self.rank, turn)
        fetched = self._look_up(peer, note, block, into)
        self._own.words.set(self._own.read_at(block.source), turn + 1)
        return fetched

    def _await_note(self, peer: Peer, block: BlockId, turn: int, deadline: Deadline) -> None:
        words, at = peer.control.words, Control.told_at(self.rank)
        grace: Deadline | None = None
        while (seen := words.get(at)) <= turn:
            grace = self._refuse_hopeless([block.source], grace)
            if deadline.passed:
                raise CollectiveTimeout(f"{block} did not come before the deadline")
            words.wait_while(at, seen, min(SLICE_S, deadline.remaining_s()))

    def _look_up(self, peer: Peer, note: Note, block: BlockId, into: Span | None) -> Fetched:
        checked(block, note.header, note.meta, into)
        if not note.place.path:
            return Fetched(note.header, note.meta, memoryview(b""), in_place=False)
        start = note.place.offset
        payload = peer.map(note.place)[start : start + note.header.payload_bytes]
        return Fetched(note.header, note.meta, payload, in_place=False)

    def together(self) -> AbstractContextManager[None]:
        """As `BlockStore.together`: nothing leaves."""
        return nullcontext()

    def drop(self, iteration: int, op: int) -> None:
        """As `BlockStore.drop`: the memory is the rank's own again."""
        self._blocks.drop(iteration, op)

    def fence(self, generation: int) -> None:
        """As `BlockStore.fence`: for this rank and for who waits for it."""
        if generation > self._own.words.get(FENCE_AT):
            self._own.words.set(FENCE_AT, generation)

    def abort(self, why: str) -> None:
        """As `BlockStore.abort`."""
        self._own.give_up(why)

    def close(self) -> None:
        """As `BlockStore.close`. What was put stays in this rank's memory, for peers that still read it."""
        self._blocks.close()
        self.board = None
        for peer in self._peers.values():
            peer.regions.clear()

    def _refuse_fenced(self, generation: int) -> None:
        fence = max(self._own.fence(), *[peer.control.fence() for peer in self._peers.values()], 0)
        if generation < fence:
            raise Fenced(f"generation {generation} of run {self.run[:4]} was superseded by generation {fence}")

    def _lost(self) -> PeerLost | None:
        """The first peer known to be lost: it said so itself, or the bridge saw its end."""
        for rank, peer in self._peers.items():
            reason = peer.control.reason()
            if reason is not None:
                return PeerLost(rank, reason)
        return self._own.lost()

    def _refuse_hopeless(self, awaited: Collection[int], grace: Deadline | None) -> Deadline | None:
        """Raise if no more is to be expected of an awaited rank; else when the grace ends, if some rank is lost."""
        self._refuse_fenced(self.generation)
        lost = self._lost()
        if lost is None:
            return None
        grace = grace or Deadline.after(_GRACE_S)
        if lost.rank in awaited or grace.passed:
            raise lost
        return grace


@dataclass(frozen=True, slots=True)
class _Read:
    """A fetch from a peer's arena."""

    store: SharedStore
    block: BlockId
    into: Span | None
    turn: int

    def wait(self, deadline: Deadline) -> Fetched:
        """As `Pending.wait`."""
        return self.store.read(self.block, self.into, self.turn, deadline)


def _place(payload: Span | None) -> Place:
    if payload is None:
        return Place()
    return place_of(payload.region, payload.offset)
