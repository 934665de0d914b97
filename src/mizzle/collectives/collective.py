"""One collective under way: its block names, its first round, its deadline and what happens when it fails.

In the first round every rank sends one block to every other rank, with or without a payload, headed by the signature
of its call: so all ranks see all signatures, and refuse a mismatch before any sum. Because of that round, a rank that
completes a collective knows that all its peers finished the one before it: memory is re-used by that rule.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from mizzle.blocks.deadline import Deadline
from mizzle.blocks.ids import BlockId, DType, Kind
from mizzle.blocks.store import BlockStore, Fetched, Pending, Span
from mizzle.collectives.signature import Signature, check_agree, unpack
from mizzle.errors import CollectiveMismatch, CollectiveTimeout, MizzleError, PeerLost

_log = logging.getLogger(__name__)
_MISMATCH = CollectiveMismatch.__name__ + ": "


class Collective:
    """The names and rounds of one collective; a context manager that fails for everybody when it fails here.

    Leaving it with an exception aborts the store, so that the peers get `PeerLost` at once and need not wait for
    their deadline. A peer that aborted because it saw a mismatch is reported as that mismatch.
    """

    def __init__(self, store: BlockStore, iteration: int, op: int, *, signature: Signature, timeout_s: float) -> None:
        """The deadline is ``timeout_s`` seconds from now; `rearm` sets it anew."""
        self.store = store
        self.iteration = iteration
        self.op = op
        self.signature = signature
        self.others = tuple(rank for rank in range(store.size) if rank != store.rank)
        self._asked: dict[int, Pending] = {}
        self.rearm(timeout_s)

    def rearm(self, timeout_s: float) -> None:
        """Give the waits from now on ``timeout_s`` seconds."""
        self._timeout_s = timeout_s
        self._deadline = Deadline.after(timeout_s)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Tell the peers of a failure."""
        if kind is None or error is None:
            return
        _log.info("run=%s rank=%d %s failed: %s", self.store.run[:4], self.store.rank, self, error)
        if isinstance(error, PeerLost) and error.why.startswith(_MISMATCH):
            self._abort(error.why)
            raise CollectiveMismatch(error.why.removeprefix(_MISMATCH)) from error
        self._abort(f"{kind.__name__}: {error}")

    def _abort(self, why: str) -> None:
        """Tell the peers; that this fails as well must not hide what failed before."""
        try:
            self.store.abort(why)
        except MizzleError as error:
            _log.warning("run=%s rank=%d could not tell its peers: %s", self.store.run[:4], self.store.rank, error)

    def __str__(self) -> str:
        """Short form for messages."""
        return f"{self.signature.call} (iteration {self.iteration}, op {self.op})"

    def put(
        self, kind: Kind, payload: Span | None, *, to: tuple[int, ...], dtype: DType = DType.RAW, meta: bytes = b"",
        slice_: int, part: int = 0,
    ) -> None:  # fmt: skip
        """Publish a block of this collective to ``to``; see `BlockStore.put`. An empty payload is none."""
        if not to:
            return
        block = self._block(kind, slice_, self.store.rank, part)
        self.store.put(block, payload if payload and payload.length else None, meta=meta, dtype=dtype, to=to)

    def fetch(self, kind: Kind, into: Span | None, *, slice_: int, source: int, part: int = 0) -> Pending:
        """Ask for a block of this collective; see `BlockStore.fetch`. An empty ``into`` is none."""
        return self.store.fetch(self._block(kind, slice_, source, part), into if into and into.length else None)

    def tell(
        self, rest: bytes = b"", *, payload_for: Callable[[int], Span | None] | None = None, dtype: DType = DType.RAW
    ) -> None:
        """First round, out: to every other rank the signature, ``rest`` and that rank's payload."""
        meta = self.signature.pack(rest)
        for rank in self.others:
            payload = payload_for(rank) if payload_for else None
            self.put(Kind.CONTRIBUTION, payload, to=(rank,), dtype=dtype, meta=meta, slice_=rank)

    def ask(self, into_of: Callable[[int], Span | None] | None = None) -> None:
        """First round, in: start the fetch of what every other rank sends to this one."""
        for rank in self.others:
            into = into_of(rank) if into_of else None
            self._asked[rank] = self.fetch(Kind.CONTRIBUTION, into, slice_=self.store.rank, source=rank)

    def hear(self) -> dict[int, tuple[Fetched, bytes, Signature]]:
        """First round, in: wait for all, and refuse a mismatch.

        Returns:
            For every other rank its block, the rest of its meta, and its signature.

        Raises:
            CollectiveMismatch: names the ranks and what they called.
            CollectiveTimeout: names the ranks that are missing.
            PeerLost: a peer is gone.
        """
        pending, self._asked = self._asked, {}
        fetched, refused = self._await(pending)
        heard = {rank: (block, *_swap(unpack(block.meta))) for rank, block in fetched.items()}
        signatures = {rank: signature for rank, (_, _, signature) in heard.items()}
        signatures[self.store.rank] = self.signature
        for rank, error in refused.items():
            signatures[rank] = unpack(error.meta)[0] if error.meta else Signature(f"unknown ({error})")
        check_agree([signatures[rank] for rank in range(self.store.size)], str(self))
        for error in refused.values():
            raise error
        return heard

    def await_all(self, pending: Mapping[int, Pending]) -> dict[int, Fetched]:
        """Wait for one block of each of several ranks.

        Raises:
            CollectiveTimeout: names the ranks that are missing.
            CollectiveMismatch: a block is longer than was agreed.
        """
        fetched, refused = self._await(pending)
        for error in refused.values():
            raise error
        return fetched

    def _block(self, kind: Kind, slice_: int, source: int, part: int) -> BlockId:
        store = self.store
        return BlockId(store.run, store.generation, self.iteration, self.op, kind, slice_, source, part)

    def _await(self, pending: Mapping[int, Pending]) -> tuple[dict[int, Fetched], dict[int, CollectiveMismatch]]:
        fetched: dict[int, Fetched] = {}
        refused: dict[int, CollectiveMismatch] = {}
        missing: dict[int, CollectiveTimeout] = {}
        for rank, fetch in pending.items():
            try:
                fetched[rank] = fetch.wait(self._deadline)
            except CollectiveMismatch as error:
                refused[rank] = error
            except CollectiveTimeout as error:
                missing[rank] = error
        if missing:
            ranks = ", ".join(map(str, missing))
            raise CollectiveTimeout(
                f"{self}: rank {self.store.rank} waited {self._timeout_s:g} s, still missing: "
                f"rank{'s' if len(missing) > 1 else ''} {ranks}"
            ) from next(iter(missing.values()))
        return fetched, refused


def check_length(block: Fetched, num_bytes: int) -> None:
    """Refuse a payload of another length than was agreed.

    Raises:
        CollectiveMismatch: says both lengths.
    """
    if block.header.payload_bytes != num_bytes:
        raise CollectiveMismatch(
            f"{block.header.block} holds {block.header.payload_bytes} bytes where {num_bytes} were agreed"
        )


def _swap(pair: tuple[Signature, bytes]) -> tuple[bytes, Signature]:
    return pair[1], pair[0]
