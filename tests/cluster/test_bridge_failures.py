"""The bridge of a real executor, spoken to by this process: what fails says so soon, and harms nobody else."""

from __future__ import annotations

import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from contract.stores import DATA, TIMEOUT_S, Joined, LocalBridge, join
from harness import RUN, eventually
from mizzle.blocks.arena import allocate
from mizzle.blocks.bridge import BridgeClient
from mizzle.blocks.deadline import Deadline
from mizzle.blocks.frames import PROTOCOL_VERSION, Request, Writer
from mizzle.blocks.ids import BlockId, DType, Kind
from mizzle.blocks.notes import prepare_control
from mizzle.blocks.region import Span
from mizzle.blocks.store import Pending
from mizzle.errors import (
    BlockNotFound,
    BridgeError,
    CollectiveTimeout,
    Fenced,
    MizzleError,
    PeerLost,
)

SOON_S = 2.0
Open = Callable[[int], list[Joined]]


def name(source: int, op: int = 0, generation: int = 0) -> BlockId:
    return BlockId(RUN, generation, 0, op, Kind.RESULT, slice=0, source=source)


@pytest.fixture
def bridge(local_bridge: LocalBridge) -> Iterator[LocalBridge]:
    """The bridge, within a run of its own; afterwards nothing is left of it."""
    local_bridge.begin()
    yield local_bridge
    local_bridge.end()
    observer = local_bridge.client()
    assert eventually(lambda: observer.count_blocks("test_mizzle") == 0, within_s=10), "blocks are left"
    observer.close()


@pytest.fixture
def ranks(bridge: LocalBridge) -> Iterator[Open]:
    """Joins ranks, and closes their connections after the test."""
    with ExitStack() as stack:

        def opened(size: int) -> list[Joined]:
            joined = join(bridge, size)
            for one in joined:
                stack.callback(one.client.close)
            return joined

        yield opened


def ask(one: Joined, source: int, op: int = 0) -> Pending:
    return one.blocks.fetch(name(source, op), Span(one.blocks.region("into", 64), 0, 64))


def failure(pending: Pending, within_s: float = TIMEOUT_S) -> tuple[MizzleError, float]:
    """How a wait failed, and after how many seconds."""
    start = time.monotonic()
    with pytest.raises(MizzleError) as caught:
        pending.wait(Deadline.after(within_s))
    return caught.value, time.monotonic() - start


def refused(client: BridgeClient, request: Request, body: Writer) -> str:
    with pytest.raises(BridgeError) as caught:
        client.call(request, body, Deadline.after(5))
    return str(caught.value)


def test_a_worker_that_ends_without_leaving_is_lost_to_all_within_two_seconds(ranks: Open) -> None:
    a, b, c = ranks(3)
    of_a, of_c = ask(b, 0), ask(b, 2)
    a.client.close()
    error, seconds = failure(of_a)
    assert isinstance(error, PeerLost)
    assert (error.rank, error.why) == (0, "its Python worker ended within a group")
    assert seconds < SOON_S
    error, seconds = failure(of_c)
    assert isinstance(error, PeerLost)
    assert error.rank == 0, "c can never complete this collective without a"
    assert seconds < SOON_S
    assert c.blocks.rank == 2


def test_the_reason_of_an_abort_comes_with_the_loss(ranks: Open) -> None:
    a, b = ranks(2)
    pending = ask(b, 0)
    a.blocks.abort("CollectiveMismatch: é " + "x" * 400)
    error, seconds = failure(pending)
    assert isinstance(error, PeerLost)
    assert error.why.startswith("CollectiveMismatch: é xxx")
    assert seconds < SOON_S
    assert isinstance(failure(ask(b, 0, op=1))[0], PeerLost)


def test_what_was_dropped_before_it_was_asked_for_is_not_found(ranks: Open) -> None:
    a, b = ranks(2)
    a.blocks.put(name(0), None, meta=b"m", dtype=DType.RAW, to=[1])
    a.client.counters()  # answered after the put
    a.blocks.drop(1, 0)
    assert eventually(lambda: a.client.count_blocks(DATA) == 0, within_s=5)
    error, seconds = failure(ask(b, 0))
    assert isinstance(error, BlockNotFound)
    assert seconds < SOON_S


def test_a_deadline_ends_a_wait_and_the_connection_goes_on(ranks: Open) -> None:
    a, b = ranks(2)
    error, seconds = failure(ask(b, 0), within_s=0.3)
    assert isinstance(error, CollectiveTimeout)
    assert 0.3 <= seconds < 0.8
    a.blocks.put(name(0), None, meta=b"late", dtype=DType.RAW, to=[1])
    a.blocks.put(name(0, op=1), None, meta=b"next", dtype=DType.RAW, to=[1])
    assert ask(b, 0, op=1).wait(Deadline.after(5)).meta == b"next"


def test_after_its_deadline_a_fetch_writes_no_more(ranks: Open) -> None:
    a, b = ranks(2)
    into = Span(b.blocks.region("into", 64), 0, 64)
    pending = b.blocks.fetch(name(0), into)
    assert isinstance(failure(pending, within_s=0.05)[0], CollectiveTimeout)
    out = Span(a.blocks.region("out", 64), 0, 64)
    out.view[:] = b"x" * 64
    a.blocks.put(name(0), out, meta=b"", dtype=DType.RAW, to=[1])
    a.blocks.put(name(0, op=1), None, meta=b"", dtype=DType.RAW, to=[1])
    b.blocks.fetch(name(0, op=1), None).wait(Deadline.after(5))
    assert not any(into.view)


def test_too_few_ranks_are_a_timeout_and_free_their_places(bridge: LocalBridge, ranks: Open) -> None:
    client = bridge.client()
    _, _, arena = client.claim(RUN, -1, Deadline.after(5))
    control = prepare_control(arena, 2)
    start = time.monotonic()
    with pytest.raises(CollectiveTimeout, match=r"not all 2 ranks.*task slots"):
        client.join(RUN, generation=0, group=0, size=2, control=control.path, deadline=Deadline.after(0.3))
    assert 0.3 <= time.monotonic() - start < SOON_S
    assert eventually(lambda: client.count_blocks("test_mizzle") == 0, within_s=SOON_S), "what was hung up comes down"
    a, b = ranks(2)  # the one that gave up takes nobody's place
    a.blocks.put(name(0), None, meta=b"m", dtype=DType.RAW, to=[1])
    assert ask(b, 0).wait(Deadline.after(5)).meta == b"m"
    client.close()


def test_a_joiner_whose_worker_ends_is_not_admitted(bridge: LocalBridge, ranks: Open) -> None:
    client = bridge.client()
    _, _, arena = client.claim(RUN, -1, Deadline.after(5))
    body = Writer().number("IQHiI", 0, 0, 2, -1, 60_000).text(prepare_control(arena, 2).path).number("H", 0)
    client.send(Request.JOIN, body, Deadline.after(5))
    observer = bridge.client()
    assert eventually(lambda: observer.count_blocks("test_mizzle-bell") == 2, within_s=5)
    client.close()
    assert eventually(lambda: observer.count_blocks("test_mizzle-bell") == 0, within_s=SOON_S)
    observer.close()
    a, b = ranks(2)
    a.blocks.put(name(0), None, meta=b"m", dtype=DType.RAW, to=[1])
    assert ask(b, 0).wait(Deadline.after(5)).meta == b"m"


def test_whoever_comes_after_the_group_is_complete_is_fenced(bridge: LocalBridge, ranks: Open) -> None:
    ranks(1)
    client = bridge.client()
    _, _, arena = client.claim(RUN, -1, Deadline.after(5))
    with pytest.raises(Fenced, match="superseded"):
        client.join(
            RUN, generation=0, group=0, size=1, control=prepare_control(arena, 1).path, deadline=Deadline.after(5)
        )
    client.close()


def test_the_end_of_a_run_fences_its_ranks(bridge: LocalBridge, ranks: Open) -> None:
    _, b = ranks(2)
    pending = ask(b, 0)
    bridge.end()
    error, seconds = failure(pending)
    assert isinstance(error, Fenced)
    assert seconds < SOON_S
    with pytest.raises(Fenced):
        b.blocks.put(name(1), None, meta=b"", dtype=DType.RAW, to=[0])


def test_a_group_of_the_same_session_follows_another_and_leaves_nothing_watching(bridge: LocalBridge) -> None:
    """K=1: thousands of groups over the same pooled connections."""
    client = bridge.client()
    within = Deadline.after(TIMEOUT_S)
    before = open_memory(jvm_pid(client))
    for group in range(20):
        _, _, arena = client.claim(RUN, 0, within)
        control = prepare_control(arena, 1)
        client.join(RUN, generation=0, group=group, size=1, control=control.path, deadline=within)
        client.leave(within)
    assert eventually(lambda: client.count_blocks("test_mizzle") == 3, within_s=5), "of the last group alone"
    assert open_memory(jvm_pid(client)) <= before + 1, "one control region for all"
    pid = jvm_pid(client)
    bridge.end()
    assert eventually(lambda: open_memory(pid) == before, within_s=5), "memory outlives the run"
    client.close()


def jvm_pid(client: BridgeClient) -> int:
    """The process at the other end of the socket."""
    return int(struct.unpack("3i", client._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])


def open_memory(pid: int) -> int:
    """How many descriptors of regions a process holds."""
    count = 0
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            count += "memfd:mizzle-" in str(fd.readlink())
        except FileNotFoundError:  # closed meanwhile
            continue
    return count


def connect(bridge: LocalBridge) -> socket.socket:
    raw = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    raw.connect(bridge.path)
    raw.settimeout(10)
    return raw


def hello(bridge: LocalBridge, *, version: int = PROTOCOL_VERSION, token: bytes | None = None) -> bytes:
    return Writer().number("H", version).raw(token or bridge.token).frame(Request.HELLO, 1)


def received(raw: socket.socket) -> bytes:
    """Everything until the bridge closes."""
    parts = b""
    while part := raw.recv(1 << 16):
        parts += part
    return parts


@pytest.mark.parametrize(
    ("first", "words"),
    [
        (lambda bridge: hello(bridge, token=bytes(32)), b"not a worker"),
        (lambda bridge: hello(bridge, version=99), b"speaks version 2, the worker 99"),
        (lambda _: Writer().frame(Request.COUNTERS, 1), b"say hello first"),
        (lambda bridge: hello(bridge)[:-1], b""),
        (lambda _: struct.pack("<I", (1 << 20) + 1), b""),
        (lambda _: struct.pack("<I", 4), b""),
        (lambda _: struct.pack("<i", -1), b""),
        (lambda bridge: hello(bridge) + hello(bridge), b"not understood"),
        (lambda bridge: hello(bridge) + Writer().frame(99, 2), b"not understood"),
        (lambda bridge: hello(bridge) + Writer().number("I", 1 << 31).frame(Request.CLAIM, 2), b"not understood"),
    ],
    ids=["token", "version", "no hello", "cut", "long", "short", "negative", "second hello", "unknown", "blob"],
)
def test_whoever_breaks_the_protocol_is_told_and_shut_out(
    bridge: LocalBridge, first: Callable[[LocalBridge], bytes], words: bytes
) -> None:
    with connect(bridge) as raw:
        raw.sendall(first(bridge))
        raw.shutdown(socket.SHUT_WR)
        assert words in received(raw)
    client = bridge.client()
    assert client.counters()["driver_asks"] >= 0
    client.close()


def test_what_is_not_legal_now_is_refused_by_name_and_the_session_goes_on(bridge: LocalBridge, ranks: Open) -> None:
    client = bridge.client()
    assert "claim an arena first" in refused(client, Request.LABEL, Writer().blob(b"x"))
    assert "join a group first" in refused(client, Request.DROP, Writer().number("QH", 0, 0))
    client.close()
    (one,) = ranks(1)
    assert "leave the group first" in refused(one.client, Request.CLAIM, Writer().text(RUN).number("ii", 0, -1))
    body = Writer().raw(bytes(64)).blob(b"").number("B", 0).number("H", 0)
    assert "another run" in refused(one.client, Request.PUT, body)
    assert one.client.counters()["refused"] >= 0


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "/proc/self/mem", "/proc/1/../../etc/passwd", "relative", "{bridge}/../x", "/proc/{me}/fd/0"],
)
def test_no_other_file_can_be_made_a_region(bridge: LocalBridge, path: str) -> None:
    client = bridge.client()
    client.claim(RUN, -1, Deadline.after(5))
    body = Writer().text("r").text(path.format(bridge=client.directory, me=os.getpid())).number("Q", 1)
    assert "no memory of a worker" in refused(client, Request.REGION, body)
    client.close()


def test_a_region_is_as_long_as_it_says(bridge: LocalBridge) -> None:
    client = bridge.client()
    client.claim(RUN, -1, Deadline.after(5))
    fd, path = allocate("short", 4096)
    with pytest.raises(MizzleError, match="4096 bytes, expected 4097"):
        client.call(Request.REGION, Writer().text("r").text(str(path)).number("Q", 4097), Deadline.after(5))
    os.close(fd)
    client.close()


def test_thousands_of_garbage_frames_harm_neither_the_bridge_nor_other_sessions(
    bridge: LocalBridge, ranks: Open
) -> None:
    a, b = ranks(2)
    before = open_memory(jvm_pid(a.client))
    dice = random.Random(20)  # noqa: S311 - to be repeatable, not secret
    kinds = [int(kind) for kind in Request if kind not in (Request.JOIN, Request.FENCE)]
    sent = 0
    for _ in range(300):
        with connect(bridge) as raw:
            raw.sendall(hello(bridge) + Writer().text("f" * 32).number("ii", -1, -1).frame(Request.CLAIM, 2))
            for _ in range(10):
                kind = dice.choice([*kinds, dice.randrange(256)])
                body = dice.randbytes(dice.choice([0, 1, 4, 9, 64, 90, 300]))
                if dice.random() < 0.5:
                    body = struct.pack("<I", dice.randrange(20)) + body
                if kind in (Request.JOIN, Request.FENCE):
                    continue
                try:
                    raw.sendall(Writer().raw(body).frame(kind, dice.randrange(1 << 32)))
                    sent += 1
                except OSError:  # shut out already
                    break
    assert sent > 1000
    a.blocks.put(name(0), None, meta=b"well", dtype=DType.RAW, to=[1])
    assert ask(b, 0).wait(Deadline.after(5)).meta == b"well"
    assert a.client.counters()["refused"] > 0
    assert eventually(lambda: open_memory(jvm_pid(a.client)) <= before + 1, within_s=5)


_STOPPED = """
import os, signal, sys
from mizzle.blocks.bridge import BridgeClient
from mizzle.blocks.deadline import Deadline
from mizzle.blocks.frames import Request, Writer
client = BridgeClient(sys.argv[1], bytes.fromhex(sys.argv[2]), Deadline.after(20))
client.claim("e" * 32, -1, Deadline.after(20))
client.call(Request.LABEL, Writer().blob(bytes(60000)), Deadline.after(20))
print("ready", flush=True)
client._socket.settimeout(None)
while True:
    client._socket.sendall(Writer().frame(Request.COUNTERS, 1))
"""


def test_a_worker_that_is_stopped_holds_up_nobody(bridge: LocalBridge, ranks: Open) -> None:
    a, b = ranks(2)
    command = [sys.executable, "-c", _STOPPED, bridge.path, bridge.token.hex()]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as worker:
        try:
            assert worker.stdout is not None
            assert worker.stdout.readline() == b"ready\n"
            os.kill(worker.pid, signal.SIGSTOP)
            for op in range(20):
                a.blocks.put(name(0, op), None, meta=b"m", dtype=DType.RAW, to=[1])
                start = time.monotonic()
                assert ask(b, 0, op).wait(Deadline.after(5)).meta == b"m"
                assert time.monotonic() - start < SOON_S
            assert isinstance(failure(ask(b, 0, op=20), within_s=0.1)[0], CollectiveTimeout)
        finally:
            worker.kill()


def test_fetches_are_cancelled_while_their_blocks_arrive_and_all_others_come(ranks: Open) -> None:
    """Deadlines that pass in the middle of transfers, in both directions: no connection may suffer."""
    a, b = ranks(2)
    count, length = 60, 2_000_000
    out = Span(a.blocks.region("out", length), 0, length)
    out.view[:] = bytes(range(250)) * (length // 250)
    into = b.blocks.region("into", length)
    done = threading.Event()

    def write() -> None:
        for op in range(count):
            a.blocks.put(name(0, op), out, meta=b"m", dtype=DType.RAW, to=[1])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    arrived = 0
    for op in range(count):
        pending = b.blocks.fetch(name(0, op), Span(into, 0, length))
        try:
            block = pending.wait(Deadline.after(0.002 if op % 2 else 10))
        except CollectiveTimeout:
            continue
        arrived += 1
        assert block.payload == out.view
    writer.join(10)
    assert done.is_set()
    assert arrived >= count // 2
