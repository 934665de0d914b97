"""The worker's end of the bridge, against one that answers what the test tells it to."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from threading import Thread

import pytest

from harness import RUN
from mizzle.blocks.arena import BridgeArena, MappedRegion
from mizzle.blocks.bridge import BridgeClient, Membership, Peer
from mizzle.blocks.deadline import Deadline
from mizzle.blocks.frames import ANSWER, ERROR, PREFIX, Reader, Request, Writer
from mizzle.blocks.ids import BlockId, Kind
from mizzle.blocks.notes import CONTROL, control_bytes
from mizzle.blocks.transfer import TransferStore
from mizzle.errors import BridgeError, BridgeLost, CollectiveTimeout, Recoverable

BLOCK = BlockId(RUN, 0, 0, 0, Kind.RESULT, slice=1, source=1)
TIMEOUT_S = 0.05


class Bridge:
    """The other end of a connection, with its hello said."""

    def __init__(self, listener: socket.socket, release: str = "") -> None:
        self._socket, _ = listener.accept()
        _, tag, _ = self.read()
        body = Writer().text("7").text("host").number("H", 1).text("id").text("/d").text(release)
        self.send(Request.HELLO | ANSWER, tag, body)

    def read(self) -> tuple[int, int, Reader]:
        """Type, tag and body of the next request."""
        length, kind, tag, _ = PREFIX.unpack(self._socket.recv(PREFIX.size, socket.MSG_WAITALL))
        return kind, tag, Reader(self._socket.recv(length - 9, socket.MSG_WAITALL))

    def send(self, kind: int, tag: int, body: Writer) -> None:
        """A frame."""
        self._socket.sendall(body.frame(kind, tag))

    @property
    def has_request(self) -> bool:
        """Whether something has come that was not read."""
        return bool(select.select([self._socket], [], [], 0)[0])

    def close(self) -> None:
        """End the connection."""
        self._socket.close()


@contextmanager
def connected(directory: Path, release: str = "") -> Iterator[tuple[Bridge, BridgeClient]]:
    """A bridge and a worker."""
    path = str(directory / "bridge")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        accepted: list[Bridge] = []
        thread = Thread(target=lambda: accepted.append(Bridge(listener, release)))
        thread.start()
        try:
            with BridgeClient(path, bytes(32), Deadline.after(5)) as client:
                thread.join(5)
                yield accepted[0], client
        finally:
            thread.join(5)
            accepted[0].close()


def store(client: BridgeClient) -> TransferStore:
    control = MappedRegion(CONTROL, "", 0, 0, memoryview(bytearray(control_bytes(2))))
    arena = BridgeArena([control], lambda *_: (0, ""), Path("/"))
    membership = Membership(RUN, 0, 0, (Peer(0, "id", "", "a"), Peer(1, "id", "", "b")))
    return TransferStore(client, arena, membership, TIMEOUT_S)


@pytest.mark.parametrize("release", ["", version("mizzle")])
def test_a_bridge_of_the_same_or_of_an_unknown_release_is_served(tmp_path: Path, release: str) -> None:
    with connected(tmp_path, release) as (_, client):
        assert client.executor_id == "7"


def test_a_worker_of_another_release_than_its_bridge_goes_no_further_than_hello(tmp_path: Path) -> None:
    said = rf"executor 7 has mizzle {version('mizzle')}, the driver, whose bridge this is, 0\.0\.9: let spark.pyspark"
    with pytest.raises(BridgeError, match=said), connected(tmp_path, "0.0.9"):
        pass


def test_what_is_sent_together_leaves_at_the_end_or_with_a_wait(tmp_path: Path) -> None:
    with connected(tmp_path) as (bridge, client):
        one = store(client)
        with one.together():
            with one.together():
                one.fetch(BLOCK, None)
            one.fetch(replace(BLOCK, part=1), None)
            assert not bridge.has_request, "not even the end of the inner body sends anything"
        assert [bridge.read()[0] for _ in range(2)] == [Request.FETCH] * 2
        with one.together():
            one.fetch(replace(BLOCK, part=2), None)
            assert not client.has_answer(99, Deadline.after(0))
            assert bridge.read()[0] == Request.FETCH, "a wait sends what is held"
        assert not bridge.has_request


def test_a_bridge_that_goes_away_is_a_fault_of_the_cluster(tmp_path: Path) -> None:
    with connected(tmp_path) as (bridge, client):
        bridge.close()
        with pytest.raises(BridgeLost, match="closed the connection") as caught:
            client.answer(1, Deadline.after(5))
        with pytest.raises(BridgeLost, match="the bridge is gone"):
            client.call(Request.LEAVE, Writer(), Deadline.after(5))
        assert isinstance(caught.value, Recoverable)


def test_a_frame_with_a_changed_bit_ends_the_connection(tmp_path: Path) -> None:
    for bit in (3, 8 * 4 + 1, 8 * 6, 8 * 10, 8 * 14 + 2):
        with connected(tmp_path) as (bridge, client):
            frame = bytearray(Writer().blob(b"some body").frame(Request.LEAVE | ANSWER, 1))
            frame[bit // 8] ^= 1 << bit % 8
            bridge._socket.sendall(frame)
            bridge.close()
            with pytest.raises(BridgeLost):
                client.answer(1, Deadline.after(5))
        (tmp_path / "bridge").unlink()


def test_a_fetch_lasts_as_long_as_its_wait_and_is_cancelled_then(tmp_path: Path) -> None:
    with connected(tmp_path) as (bridge, client):
        pending = store(client).fetch(BLOCK, None)
        kind, fetch, body = bridge.read()
        assert (kind, body.number("I")) == (Request.FETCH, 24 * 3600 * 1000)
        cancels: list[tuple[int, int]] = []

        def cancel() -> None:
            kind, _, body = bridge.read()
            cancels.append((kind, body.number("I")))
            bridge.send(ERROR, fetch, Writer().number("Bi", 1, 1).text("cancelled"))

        thread = Thread(target=cancel)
        thread.start()
        start = time.monotonic()
        with pytest.raises(CollectiveTimeout, match=r"from rank 1 .* did not come before the deadline"):
            pending.wait(Deadline.after(4 * TIMEOUT_S))
        assert 4 * TIMEOUT_S <= time.monotonic() - start < 1
        thread.join(5)
        assert cancels == [(Request.CANCEL, fetch)]


def test_a_bridge_that_does_not_answer_is_named_as_what_is_late(tmp_path: Path) -> None:
    with connected(tmp_path) as (_, client):
        pending = store(client).fetch(BLOCK, None)
        with pytest.raises(CollectiveTimeout, match="the bridge does not answer"):
            pending.wait(Deadline.after(TIMEOUT_S))
