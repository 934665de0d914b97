"""One collective under way: its block names, its first round, its deadline and what happens when it fails.

In the first round every rank tells every other rank the signature of its call, on the store's board if there is one,
else in front of a block for each: so all ranks see all signatures, and refuse a mismatch before any sum. Because of
that round, a rank that completes a collective knows that all its peers finished the one before it: memory is re-used by
that rule.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, NoReturn, Self

from mizzle.blocks.deadline import Deadline
from mizzle.blocks.ids import BlockId, DType, Header, Kind
from mizzle.blocks.island import Board
from mizzle.blocks.region import Span
from mizzle.blocks.store import BlockStore, Fetched, Pending
from mizzle.collectives.signature import Signature, check_agree, unpack
from mizzle.errors import CollectiveMismatch, CollectiveTimeout, MizzleError, PeerLost

_log = logging.getLogger(__name__)
_MISMATCH = CollectiveMismatch.__name__ + ": "
OPS = 64
"""Ops of an iteration; from here on their numbers stand for the rounds and buckets of an exchange."""


class Said(NamedTuple):
    """What a rank said in a first round without payloads.

    Attributes:
        signature: of its call.
        rest: what it said with it; perhaps the peer's own memory, valid until this rank's next collective.
    """

    signature: Signature
    rest: bytes | memoryview


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
        self._packed, self._head_bytes = b"", 0
        self._timeout_s = timeout_s
        self.rearm()

    def rearm(self, timeout_s: float | None = None) -> None:
        """Give the waits from now on ``timeout_s`` seconds; None: as many as before."""
        self._timeout_s = self._timeout_s if timeout_s is None else timeout_s
        self._deadline = Deadline.after(self._timeout_s)

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
        slice_: int, part: int = 0, number: int = 0,
    ) -> None:  # fmt: skip
        """Publish a block of this collective to ``to``; see `BlockStore.put`. An empty payload is none.

        ``number`` tells apart what bears the same name otherwise: rounds and buckets.
        """
        if not to:
            return
        block = self._block(kind, slice_, self.store.rank, part, number)
        self.store.put(block, payload if payload and payload.length else None, meta=meta, dtype=dtype, to=to)

    def fetch(
        self, kind: Kind, into: Span | None, *, slice_: int, source: int, part: int = 0, number: int = 0
    ) -> Pending:
        """Ask for a block of this collective; see `BlockStore.fetch` and `put`. An empty ``into`` is none."""
        return self.store.fetch(self._block(kind, slice_, source, part, number), into if into and into.length else None)

    def round_op(self, number: int) -> int:
        """The op under which something of this number goes."""
        return self.op + OPS * number

    @property
    def deadline(self) -> Deadline:
        """Of the wait under way."""
        return self._deadline

    def tell(
        self, rest: bytes = b"", *, payload_for: Callable[[int], Span | None] | None = None, dtype: DType = DType.RAW
    ) -> None:
        """First round, out: to every other rank the signature, ``rest`` and that rank's payload.

        With ``payload_for`` go `ask` and `hear`, without it goes `listen`.
        """
        packed = self._packed = self.signature.pack(rest)
        self._head_bytes = len(packed) - len(rest)
        board = self.store.board
        if payload_for or not board:
            for rank in self.others:
                payload = payload_for(rank) if payload_for else None
                self.put(
                    Kind.CONTRIBUTION, payload, to=(rank,), dtype=dtype, meta=b"" if board else packed, slice_=rank
                )
        if board:  # last: who reads the board finds the blocks there
            board.post(self.iteration, self.op, packed)

    def ask(self, into_of: Callable[[int], Span | None] | None = None) -> None:
        """First round, in: start the fetch of what every other rank sends to this one."""
        if self.store.board and not into_of:
            return  # what has no payload is on the board
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
        if self.store.board:
            said = self._read(self.store.board)
            fetched = self.await_all(pending) if pending else {rank: self._nothing(rank) for rank in self.others}
            return {rank: (block, bytes(said[rank].rest), said[rank].signature) for rank, block in fetched.items()}
        fetched, refused = self._await(pending)
        heard = {rank: (block, *_swap(unpack(block.meta))) for rank, block in fetched.items()}
        signatures = {rank: signature for rank, (_, _, signature) in heard.items()}
        signatures[self.store.rank] = self.signature
        for rank, error in refused.items():
            signatures[rank] = _signature_in(error)
        check_agree(dict(sorted(signatures.items())), str(self))
        for error in refused.values():
            raise error
        return heard

    def listen(self) -> list[Said]:
        """First round, in, where nobody sends a payload: what every rank said, by rank, the own included.

        Raises:
            Exception: as `hear`.
        """
        if self.store.board:
            return self._read(self.store.board)
        self.ask()
        said = {rank: Said(signature, rest) for rank, (_, rest, signature) in self.hear().items()}
        said[self.store.rank] = Said(self.signature, self._packed[self._head_bytes :])
        return [said[rank] for rank in range(self.store.size)]

    def _read(self, board: Board) -> list[Said]:
        """What every rank posted, by rank, once it is sure that all make the same call."""
        posted: dict[int, bytes | memoryview] = dict(board.read(self._deadline))
        posted[self.store.rank] = self._packed
        if len(posted) < self.store.size:
            self._give_up(sorted(set(self.others) - set(posted)))
        by_rank = [posted[rank] for rank in range(self.store.size)]
        stop = self._head_bytes
        head = self._packed[:stop]
        if all(message[:stop] == head for message in by_rank):
            return [Said(self.signature, message[stop:]) for message in by_rank]
        said = [Said(*unpack(bytes(message))) for message in by_rank]
        check_agree({rank: one.signature for rank, one in enumerate(said)}, str(self))
        return said

    def _nothing(self, rank: int) -> Fetched:
        """The block that a rank without a payload would have sent."""
        block = self._block(Kind.CONTRIBUTION, self.store.rank, rank, 0)
        return Fetched(Header(block, DType.RAW, 0, 0), b"", memoryview(b""), in_place=False)

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

    def await_each(self, pending: Sequence[tuple[int, Pending]]) -> Iterator[Fetched]:
        """Wait for blocks one after the other; each is there to be used before the next one is waited for.

        Args:
            pending: in order, of which rank, and its block.

        Raises:
            CollectiveTimeout: names all ranks that are missing by then, not the first alone.
            CollectiveMismatch: a block is longer than was agreed.
        """
        for place, (rank, one) in enumerate(pending):
            try:
                block = one.wait(self._deadline)
            except CollectiveTimeout as error:
                late = {rank, *(other for other, behind in pending[place + 1 :] if not self._is_there(behind))}
                self._give_up(sorted(late), error, heard=sorted({other for other, _ in pending} - late))
            yield block

    def _is_there(self, pending: Pending) -> bool:
        try:
            pending.wait(self._deadline)
        except CollectiveTimeout:
            return False
        return True

    def await_messages(self, pending: Mapping[int, Pending]) -> dict[int, bytes]:
        """Wait for messages without payload, one of each of several ranks, that begin with its signature.

        Raises:
            CollectiveMismatch: a rank made another call, and sent numbers: both calls are named.
            CollectiveTimeout: names the ranks that are missing.
        """
        fetched, refused = self._await(pending)
        if refused:
            said = {rank: _signature_in(error) for rank, error in refused.items()}
            said |= {rank: unpack(block.meta)[0] for rank, block in fetched.items()}
            check_agree(dict(sorted((said | {self.store.rank: self.signature}).items())), str(self))
            raise next(iter(refused.values()))
        return {rank: block.meta for rank, block in fetched.items()}

    def check_complete(self, missing: Sequence[int]) -> None:
        """Give up when ranks are missing.

        Raises:
            CollectiveTimeout: names them.
        """
        if missing:
            self._give_up(missing)

    def _block(self, kind: Kind, slice_: int, source: int, part: int, number: int = 0) -> BlockId:
        store, op = self.store, self.round_op(number)
        return BlockId(store.run, store.generation, self.iteration, op, kind, slice_, source, part)

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
            self._give_up(list(missing), next(iter(missing.values())), heard=list(fetched))
        return fetched, refused

    def _give_up(
        self, missing: Sequence[int], cause: CollectiveTimeout | None = None, heard: Sequence[int] = ()
    ) -> NoReturn:
        ranks = ", ".join(map(str, missing))
        said = (
            f"{self}: rank {self.store.rank} waited {self._timeout_s:g} s, still missing: "
            f"rank{'s' if len(missing) > 1 else ''} {ranks}"
        )
        raise CollectiveTimeout(said, missing=missing, heard=heard) from cause


def check_length(block: Fetched, num_bytes: int) -> None:
    """Refuse a payload of another length than was agreed.

    Raises:
        CollectiveMismatch: says both lengths.
    """
    if block.header.payload_bytes != num_bytes:
        raise CollectiveMismatch(
            f"{block.header.block} holds {block.header.payload_bytes} bytes where {num_bytes} were agreed"
        )


def _signature_in(error: CollectiveMismatch) -> Signature:
    """What the rank called whose block was refused."""
    return unpack(error.meta)[0] if error.meta else Signature(f"unknown ({error})")


def _swap(pair: tuple[Signature, bytes]) -> tuple[bytes, Signature]:
    return pair[1], pair[0]
