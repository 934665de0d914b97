"""The store between hosts: blocks in Spark's BlockManager, reached through the bridge.

A put leaves the bytes in the arena and rings each reader's bell; a fetch streams them from the peer's block service
into this rank's arena. The driver is never asked (``docs/architecture.md``; measured in ``tests/cluster``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mizzle.blocks.arena import BridgeArena, MappedRegion
from mizzle.blocks.bridge import BridgeClient, Membership, rank_list
from mizzle.blocks.deadline import Deadline
from mizzle.blocks.frames import Request, Writer
from mizzle.blocks.ids import MAX_META_BYTES, BlockId, DType, Header
from mizzle.blocks.notes import CONTROL, Control, control_bytes
from mizzle.blocks.store import Fetched, Pending, Span, checked
from mizzle.errors import BlockExists, CollectiveTimeout, ConfigError, Fenced


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
            self.client.cancel(self.tag)
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

    def __init__(self, client: BridgeClient, arena: BridgeArena, membership: Membership, timeout_s: float) -> None:
        """Use a connection that has joined; the bridge itself gives a fetch up after ``timeout_s`` seconds."""
        self.run = membership.run
        self.generation = membership.generation
        self.rank = membership.rank
        self.size = len(membership.peers)
        self._client = client
        self._arena = arena
        self._timeout_s = timeout_s
        self._names: set[BlockId] = set()
        self._dropped_before = (0, 0)
        self._own = Control(arena.region(CONTROL, control_bytes(self.size)).buffer, self.size)

    def region(self, name: str, num_bytes: int) -> MappedRegion:
        """As `BlockStore.region`."""
        return self._arena.region(name, num_bytes)

    def put(self, block: BlockId, payload: Span | None, *, meta: bytes, dtype: DType, to: Sequence[int]) -> None:
        """As `BlockStore.put`; what the bridge refuses surfaces at the next wait."""
        self._refuse_fenced(block)
        if block in self._names or (block.iteration, block.op) < self._dropped_before:
            raise BlockExists(f"{block} was put before; names are never used twice")
        if len(meta) > MAX_META_BYTES:
            raise ConfigError(f"meta of {len(meta)} bytes is over the limit of {MAX_META_BYTES}: send it as payload")
        self._names.add(block)
        header = Header(block, dtype, len(meta), payload.length if payload else 0)
        body = Writer().raw(header.pack()).blob(meta).append(_range(payload)).append(rank_list(to))
        self._client.send(Request.PUT, body, Deadline.after(self._timeout_s), silent=True)

    def fetch(self, block: BlockId, into: Span | None) -> Pending:
        """As `BlockStore.fetch`."""
        self._refuse_fenced(block)
        deadline = Deadline.after(self._timeout_s)
        wanted = Header(block, DType.RAW, 0, 0).pack()
        body = Writer().number("I", deadline.remaining_ms()).raw(wanted).append(_range(into))
        return _Transfer(self._client, self._client.send(Request.FETCH, body, deadline), block, into)

    def drop(self, iteration: int, op: int) -> None:
        """As `BlockStore.drop`."""
        self._dropped_before = max(self._dropped_before, (iteration, op))
        self._names = {name for name in self._names if (name.iteration, name.op) >= self._dropped_before}
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
        """Leave the group; the blocks stay until the run's next group or its end, for peers that still read."""
        self._client.leave(Deadline.after(self._timeout_s))

    def _refuse_fenced(self, block: BlockId) -> None:
        """What the bridge would say at the next wait, now: it notes a fence in this rank's control region."""
        fence = self._own.fence()
        if block.generation < fence:
            raise Fenced(f"generation {block.generation} of run {self.run[:4]} was superseded by generation {fence}")
