"""The store between hosts: blocks in Spark's BlockManager, reached through the bridge.

A put leaves the bytes in the arena and rings each reader's bell; a fetch streams them from the peer's block service
into this rank's arena. The driver is never asked (``docs/architecture.md``; measured in ``tests/cluster``).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from mizzle.blocks.arena import BridgeArena, MappedRegion
from mizzle.blocks.bridge import BridgeClient, Membership, rank_list
from mizzle.blocks.deadline import Deadline
from mizzle.blocks.frames import Request, Writer
from mizzle.blocks.ids import BlockId, DType, Header
from mizzle.blocks.island import Alone, Board, Island, islands_of
from mizzle.blocks.notes import CONTROL, Control, control_bytes
from mizzle.blocks.region import Span
from mizzle.blocks.store import Fetched, OwnBlocks, Pending, checked
from mizzle.errors import CollectiveTimeout, ConfigError, Fenced

_FETCH_LASTS_MS = 24 * 3600 * 1000
"""When the bridge gives a fetch up by itself: practically never. At the deadline of its wait it is cancelled."""


def _range(span: Span | None) -> Writer:
    """A range of a region in wire form: u8 0, or u8 1, u32 region, u64 offset, u64 length."""
    if span is None:
        return Writer().number("B", 0)
    region = span.region
    if not isinstance(region, MappedRegion) or region.number < 0:
        raise ConfigError(f"region {region.name!r} is not in the bridge's arena: make it with this store's region()")
    return Writer().number("BIQQ", 1, region.number, span.offset, span.length)


@dataclass(frozen=True, slots=True)
class _Transfer:
    """A fetch that the bridge carries out."""

    client: BridgeClient
    tag: int
    block: BlockId
    into: Span | None

    def wait(self, deadline: Deadline) -> Fetched:
        """As `Pending.wait`. At the deadline the bridge is told to stop: afterwards ``into`` is the caller's again."""
        if not self.client.has_answer(self.tag, deadline):
            self.client.cancel(self.tag)  # a bridge that does not answer even this is not put down to the block
        try:
            answer = self.client.answer(self.tag, deadline)
        except CollectiveTimeout as error:
            raise CollectiveTimeout(f"{self.block} did not come before the deadline") from error
        header = Header.unpack(answer.raw(64))
        meta = answer.blob()
        checked(self.block, header, meta, self.into)
        payload = self.into.view[: header.payload_bytes] if self.into else memoryview(b"")
        return Fetched(header, meta, payload, in_place=True)


class TransferStore:
    """A rank's `BlockStore` over the BlockManagers of its group. Payloads are checked by CRC32C on arrival."""

    def __init__(
        self, client: BridgeClient, arena: BridgeArena, membership: Membership, timeout_s: float, *,
        islands: tuple[tuple[int, ...], ...] | None = None,
    ) -> None:  # fmt: skip
        """Use a connection that has joined.

        Args:
            client: the connection.
            arena: of this rank.
            membership: the answer to the join.
            timeout_s: bounds requests to the bridge, not the waits for peers.
            islands: see `BlockStore`; without them every rank is alone.
        """
        self.run = membership.run
        self.generation = membership.generation
        self.rank = membership.rank
        self.size = len(membership.peers)
        self.board: Board | None = None
        self.islands = islands or islands_of(range(self.size))
        self.island: Island = Alone(self.rank, arena.renew)
        self._client = client
        self._arena = arena
        self._timeout_s = timeout_s
        self._blocks = OwnBlocks(self.run, self.rank)
        self._own = Control(arena.region(CONTROL, control_bytes(self.size)).buffer, self.size)

    def region(self, name: str, num_bytes: int) -> MappedRegion:
        """As `BlockStore.region`."""
        return self._arena.region(name, num_bytes)

    def put(self, block: BlockId, payload: Span | None, *, meta: bytes, dtype: DType, to: Sequence[int]) -> None:
        """As `BlockStore.put`; what the bridge refuses surfaces at the next wait."""
        self._refuse_fenced(block)
        self._blocks.check_put(block, meta)
        header = Header(block, dtype, len(meta), payload.length if payload else 0)
        body = Writer().raw(header.pack()).blob(meta).append(_range(payload)).append(rank_list(to))
        self._client.send(Request.PUT, body, Deadline.after(self._timeout_s), silent=True)

    def fetch(self, block: BlockId, into: Span | None) -> Pending:
        """As `BlockStore.fetch`."""
        self._refuse_fenced(block)
        wanted = Header(block, DType.RAW, 0, 0).pack()
        body = Writer().number("I", _FETCH_LASTS_MS).raw(wanted).append(_range(into))
        tag = self._client.send(Request.FETCH, body, Deadline.after(self._timeout_s))
        return _Transfer(self._client, tag, block, into)

    def together(self) -> AbstractContextManager[None]:
        """As `BlockStore.together`: one write to the bridge, which wakes it once."""
        return self._client.together(Deadline.after(self._timeout_s))

    def drop(self, iteration: int, op: int) -> None:
        """As `BlockStore.drop`."""
        if self._blocks.drop(iteration, op):  # where memory is shared nothing was put here, and nobody is asked
            body = Writer().number("QH", iteration, op)
            self._client.send(Request.DROP, body, Deadline.after(self._timeout_s), silent=True)

    def fence(self, generation: int) -> None:
        """As `BlockStore.fence`, for every rank of the run in this executor."""
        body = Writer().text(self.run).number("I", generation)
        self._client.call(Request.FENCE, body, Deadline.after(self._timeout_s))

    def abort(self, why: str) -> None:
        """As `BlockStore.abort`."""
        self._client.abort(why)

    def close(self) -> None:
        """As `BlockStore.close`: leave the group, in peace."""
        self._blocks.close()
        self._client.leave(Deadline.after(self._timeout_s))

    def _refuse_fenced(self, block: BlockId) -> None:
        """What the bridge would say at the next wait, now: it notes a fence in this rank's control region."""
        fence = self._own.fence()
        if block.generation < fence:
            raise Fenced(f"generation {block.generation} of run {self.run[:4]} was superseded by generation {fence}")
