"""The worker's end of the bridge: a Unix socket with small frames; bulk data lies in the arena.

Never a pickle, never a path or class from a peer. Answers come in any order and are matched by tag.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Self

from mizzle.blocks.arena import BridgeArena, open_region
from mizzle.blocks.card import find_bridge
from mizzle.blocks.deadline import Deadline
from mizzle.blocks.frames import (
    ANSWER,
    ERROR,
    LEAST_FRAME_BYTES,
    MAX_FRAME_BYTES,
    PREFIX,
    PROTOCOL_VERSION,
    Reader,
    Request,
    Writer,
    is_intact,
)
from mizzle.errors import (
    ArenaError,
    BlockExists,
    BlockNotFound,
    BridgeError,
    BridgeLost,
    BridgeMissing,
    CollectiveTimeout,
    CorruptBlock,
    Fenced,
    MizzleError,
    PeerLost,
    PeerUnreachable,
)

_ERRORS: dict[int, Callable[[str], MizzleError]] = {
    1: CollectiveTimeout,
    3: CorruptBlock,
    4: Fenced,
    5: BlockExists,
    6: BlockNotFound,
    7: BridgeError,
    8: ArenaError,
    9: BridgeLost,
}
_OF_PEERS = {2: PeerLost, 10: PeerUnreachable}
_SILENT = 1 << 31
"""Bit of the tags of requests that are answered only when they fail."""
_GRACE_S = 1.0
"""How long after a deadline the bridge may still say so itself, before the worker gives the bridge up."""
_LEAST_S = 0.0005
_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Peer:
    """A rank of this generation, as the driver admitted it.

    Attributes:
        rank: its rank.
        host_id: equal for processes that can open each other's memory.
        control: path of its control region.
        executor_id: Spark's name of its executor.
    """

    rank: int
    host_id: str
    control: str
    executor_id: str


@dataclass(frozen=True, slots=True)
class Membership:
    """Who takes part in a group: this rank and all peers, by rank."""

    run: str
    generation: int
    rank: int
    peers: tuple[Peer, ...]


class BridgeClient:
    """One connection to the bridge of this executor; used by one thread at a time."""

    def __init__(self, path: str, token: bytes, deadline: Deadline) -> None:
        """Connect and say hello.

        Raises:
            BridgeError: refused, or of another release of mizzle.
        """
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._tag = 0
        self._answers: dict[int, tuple[int, bytes]] = {}
        self._held: bytearray | None = None
        self._received = bytearray()
        with ExitStack() as undo:
            undo.callback(self._socket.close)
            self._connect(path, deadline)
            hello = self.call(Request.HELLO, Writer().number("H", PROTOCOL_VERSION).raw(token), deadline)
            self.executor_id = hello.text()
            self.host = hello.text()
            hello.number("H")  # of the executor's block service
            self.host_id = hello.text()
            self.directory = Path(hello.text())
            _check_release(hello.text(), self.executor_id)
            undo.pop_all()

    def _connect(self, path: str, deadline: Deadline) -> None:
        # A Unix socket with a timeout of Python's does not wait while others are being accepted, it fails at once.
        seconds = max(_LEAST_S, deadline.remaining_s())
        self._socket.setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))
        )
        try:
            self._socket.connect(path)
        except OSError as error:
            raise BridgeMissing(f"the bridge at {path} does not answer: {error.strerror}") from error

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self.close()

    @classmethod
    def connect(cls, deadline: Deadline) -> BridgeClient:
        """Connect to the bridge of the executor that started this process."""
        path, token = find_bridge(os.environ.get("SPARK_LOCAL_DIRS"))
        return cls(path, token, deadline)

    def send(self, request: Request, body: Writer, deadline: Deadline, *, silent: bool = False) -> int:
        """Send without waiting; the tag of the answer to come. ``silent``: answered only if it fails.

        Raises:
            BridgeLost: the bridge is gone; run the group again.
        """
        self._tag = (self._tag + 1) & (_SILENT - 1)
        tag = self._tag | (_SILENT if silent else 0)
        frame = body.frame(request, tag)
        if self._held is None:
            self._write(frame, deadline)
        else:
            self._held += frame
        return tag

    @contextmanager
    def together(self, deadline: Deadline) -> Iterator[None]:
        """What is sent within the body leaves at its end, or before the first wait, in one piece.

        Raises:
            BridgeLost: the bridge is gone; run the group again.
        """
        if self._held is not None:
            yield
            return
        self._held = bytearray()
        try:
            yield
            self._flush(deadline)
        finally:
            self._held = None

    def _flush(self, deadline: Deadline) -> None:
        if self._held:
            held, self._held = self._held, bytearray()
            self._write(held, deadline)

    def _write(self, frames: bytes | bytearray, deadline: Deadline) -> None:
        self._socket.settimeout(deadline.remaining_s() + _GRACE_S)
        try:
            self._socket.sendall(frames)
        except OSError as error:
            raise BridgeLost(f"the bridge is gone: {error}") from error

    def call(self, request: Request, body: Writer, deadline: Deadline) -> Reader:
        """Send and wait for the answer."""
        return self.answer(self.send(request, body, deadline), deadline)

    def answer(self, tag: int, deadline: Deadline) -> Reader:
        """Wait for the answer with that tag.

        Raises:
            MizzleError: the bridge's error, mapped to its class; also that of an earlier silent request.
            CollectiveTimeout: the bridge itself did not answer.
        """
        self._await_answer(tag, Deadline(deadline.at_s + _GRACE_S))
        kind, body = self._answers.pop(tag)
        if kind == ERROR:
            raise _error(Reader(body))
        return Reader(body)

    def _await_answer(self, tag: int, deadline: Deadline) -> None:
        if not self.has_answer(tag, deadline):
            raise CollectiveTimeout("the bridge does not answer: its executor hangs or is overloaded")

    def has_answer(self, tag: int, deadline: Deadline) -> bool:
        """Wait until the answer with that tag is here; whether it is.

        Raises:
            MizzleError: an earlier silent request failed.
            BridgeLost: the bridge is gone; run the group again.
        """
        while tag not in self._answers:
            self._flush(deadline)
            if not self._read(deadline):
                return False
        return True

    def _read(self, deadline: Deadline) -> bool:
        """Take in one frame; false if the deadline came first. What has come of a frame is kept."""
        if not self._fill(PREFIX.size, deadline):
            return False
        length, kind, tag, _ = PREFIX.unpack_from(self._received)
        if not LEAST_FRAME_BYTES <= length <= MAX_FRAME_BYTES:
            raise BridgeLost(f"the bridge sent a frame of {length} bytes: its connection is of no use any more")
        if not self._fill(4 + length, deadline):
            return False
        if not is_intact(self._received):
            raise BridgeLost(f"a frame of {length} bytes from the bridge fails its CRC32C: the connection is given up")
        body = bytes(self._received[PREFIX.size : 4 + length])
        del self._received[: 4 + length]
        if tag & _SILENT:
            raise _error(Reader(body))
        if kind != ERROR and not kind & ANSWER:
            raise BridgeError(f"the bridge sent a frame of type {kind}")
        self._answers[tag] = (kind, body)
        return True

    def _fill(self, count: int, deadline: Deadline) -> bool:
        while len(self._received) < count:
            # Zero would mean not to wait at all, and then what is there already might not be seen.
            self._socket.settimeout(max(_LEAST_S, deadline.remaining_s()))
            try:
                part = self._socket.recv(_CHUNK_BYTES)
            except TimeoutError:
                return False
            except OSError as error:
                raise BridgeLost(f"the connection to the bridge broke: {error}") from error
            if not part:
                raise BridgeLost("the bridge closed the connection: its executor is ending")
            self._received += part
        return True

    def cancel(self, tag: int) -> None:
        """Have a fetch answered now, if it was not; afterwards its memory is not written to any more.

        Raises:
            CollectiveTimeout: the bridge itself did not answer.
        """
        self.send(Request.CANCEL, Writer().number("I", tag), Deadline.after(_GRACE_S), silent=True)
        self._await_answer(tag, Deadline.after(_GRACE_S))

    def claim(
        self, run: str, preferred_rank: int, deadline: Deadline, *, boundary: int = -1
    ) -> tuple[int, bytes, BridgeArena]:
        """Hold an arena of the run: (the rank it served or -1, its label, the arena).

        Args:
            run: its id.
            preferred_rank: whose arena to take, where there is a choice; or -1.
            deadline: for the answer.
            boundary: generation of the ranks that left their states at the boundary: an arena of theirs goes first.
        """
        answer = self.call(Request.CLAIM, Writer().text(run).number("ii", preferred_rank, boundary), deadline)
        rank, label = answer.number("i"), answer.blob()
        regions = []
        for _ in range(answer.number("H")):
            number, name = answer.number("I"), answer.text()
            size, path = answer.number("Q"), answer.text()
            regions.append(open_region(name, path, size, number=number, writable=True))
        return rank, label, BridgeArena(regions, self._register, self.directory)

    def _register(self, name: str, path: Path, num_bytes: int) -> tuple[int, str]:
        body = Writer().text(name).text(str(path)).number("Q", num_bytes)
        answer = self.call(Request.REGION, body, Deadline.after(30))
        number = answer.number("I")
        answer.text()
        answer.number("Q")
        return number, answer.text()

    def label(self, label: bytes, deadline: Deadline) -> None:
        """Note a few bytes with the arena, for whoever claims it next."""
        self.call(Request.LABEL, Writer().blob(label), deadline)

    def join(
        self,
        run: str,
        *,
        generation: int,
        group: int,
        size: int,
        control: str,
        deadline: Deadline,
        wanted: int = -1,
        preferred: Sequence[int] = (),
    ) -> Membership:
        """Take part in a group; returns when all ``size`` ranks are there.

        Args:
            run: as in `claim`.
            generation: membership epoch.
            group: number of the group's job, new for every job.
            size: number of ranks.
            control: path of this rank's control region.
            deadline: when to give up.
            wanted: the rank to have, or -1 for the one whose state this arena holds, or a preferred one, or any.
            preferred: ranks whose data is near, the nearest first.

        Raises:
            CollectiveTimeout: not all ranks came: too few free task slots.
            Fenced: the group was complete without this rank, or the run has ended.
            PeerLost: an executor of the group cannot be reached.
        """
        body = Writer().number("IQHiI", generation, group, size, wanted, deadline.remaining_ms()).text(control)
        body.append(rank_list(preferred))
        answer = self.call(Request.JOIN, body, deadline)
        answer.number("B")
        rank = answer.number("H")
        peers = []
        for peer in range(answer.number("H")):
            executor_id = answer.text()
            answer.text()  # host, port and nonce: what the bridges themselves go by
            answer.number("H")
            answer.number("Q")
            host_id, control_path = answer.text(), answer.text()
            peers.append(Peer(peer, host_id, control_path, executor_id))
        return Membership(run, generation, rank, tuple(peers))

    def leave(self, deadline: Deadline) -> None:
        """End this rank's part in the group in peace; its blocks stay for its peers."""
        self.call(Request.LEAVE, Writer(), deadline)

    def abort(self, why: str) -> None:
        """Tell all peers that this rank gives up."""
        self.send(Request.ABORT, Writer().text(why[:1000]), Deadline.after(_GRACE_S), silent=True)

    def counters(self, timeout_s: float = 10.0) -> dict[str, int]:
        """What the bridge has done so far, by name."""
        answer = self.call(Request.COUNTERS, Writer(), Deadline.after(timeout_s))
        return {answer.text(): answer.number("Q") for _ in range(answer.number("H"))}

    def count_blocks(self, prefix: str) -> int:
        """How many blocks with such names this executor's BlockManager holds."""
        return self.call(Request.COUNT_BLOCKS, Writer().text(prefix), Deadline.after(10)).number("Q")

    def fileno(self) -> int:
        """Descriptor of the connection, to wait for its end."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the connection; without `leave` before, peers are told that this rank is lost."""
        self._socket.close()


def _check_release(bridge: str, executor_id: str) -> None:
    try:
        own = version("mizzle")
    except PackageNotFoundError:  # shipped as bare modules: nobody knows
        return
    if bridge not in {"", own}:
        raise BridgeError(
            f"executor {executor_id} has mizzle {own}, the driver, whose bridge this is, {bridge}: let "
            "spark.pyspark.python name an equal environment everywhere, or ship one with spark.archives"
        )


def _error(answer: Reader) -> MizzleError:
    code, rank, message = answer.number("B"), answer.number("i"), answer.text()
    if code in _OF_PEERS:
        return _OF_PEERS[code](rank, message)
    return _ERRORS.get(code, BridgeError)(message)


def rank_list(ranks: Sequence[int]) -> Writer:
    """Ranks in wire form: u16 count, u16 each."""
    return Writer().number("H", len(ranks)).raw(b"".join(rank.to_bytes(2, "little") for rank in ranks))
