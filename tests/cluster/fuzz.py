"""Frames that no worker of ours would send: random bytes, and valid frames that are cut, changed or out of place."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from pyspark.sql import SparkSession

from contract.stores import TIMEOUT_S, LocalBridge, join
from harness import RUN
from mizzle.blocks.bridge import BridgeClient
from mizzle.blocks.deadline import Deadline
from mizzle.blocks.frames import PREFIX, PROTOCOL_VERSION, Request, Writer
from mizzle.blocks.ids import BlockId, DType, Header, Kind
from mizzle.blocks.notes import prepare_control
from mizzle.errors import Fenced

FRAMES_A_CONNECTION = 20
MB = 1 << 20
MOST_GROWTH = 64 * MB
_NOBODY = 1 << 30
"""No process has such a number: the bridge ends residents that do not answer."""
_NO_PICKLE = b"\xff"
"""Nothing that can be unpickled begins so: an idle resident that is given it says so."""


def held_bytes(jvm: Any) -> int:
    """What a JVM reached through py4j still holds after a garbage collection: heap, direct and mapped buffers."""
    runtime = jvm.java.lang.Runtime.getRuntime()
    runtime.gc()
    pools = jvm.java.lang.management.ManagementFactory.getPlatformMXBeans(
        jvm.java.lang.Class.forName("java.lang.management.BufferPoolMXBean")
    )
    used = int(runtime.totalMemory()) - int(runtime.freeMemory())
    return used + sum(int(pool.getMemoryUsed()) for pool in pools)


class Fuzzer:
    """Repeatable: the same seed gives the same frames. Where ``runs`` may be begun, some come from within a group."""

    def __init__(self, path: str, token: bytes, seed: int, runs: LocalBridge | None = None) -> None:
        self._path, self._token, self._admits = path, token, runs
        self._dice = random.Random(seed)  # noqa: S311 - to be repeatable, not secret
        self._runs = 0
        self.sent = 0
        self.answers = 0
        self._begin()

    def play(self, frames: int) -> None:
        """Send so many, by strangers, by workers that have said hello, and by ranks within a group."""
        while self.sent < frames:
            kind = self._dice.randrange(2 if self._admits is None else 3)
            with self._member() if kind == 2 else self._connected(hello=kind == 1) as raw:
                self._pour(raw)

    def _connected(self, *, hello: bool) -> socket.socket:
        raw = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        raw.connect(self._path)
        if hello:
            raw.sendall(Writer().number("H", PROTOCOL_VERSION).raw(self._token).frame(Request.HELLO, 1))
        return raw

    def _member(self) -> socket.socket:
        """A connection whose rank has joined a group of one."""
        while True:
            self._generation += 1
            try:
                return self._joined()
            except Fenced:  # a frame has named a later generation, so the run goes no further
                self.end()
                self._begin()

    def _joined(self) -> socket.socket:
        within = Deadline.after(TIMEOUT_S)
        with BridgeClient(self._path, self._token, within) as client:
            _, _, arena = client.claim(self._run, 0, within)
            control = prepare_control(arena, 1).path
            client.join(self._run, generation=self._generation, group=0, size=1, control=control, deadline=within)
            return client._socket.dup()

    def _begin(self) -> None:
        self._runs += 1
        self._generation = 0
        self._run = f"{self._runs:032x}"
        if self._admits is not None:
            self._admits.begin(self._run)

    def end(self) -> None:
        """The run that frames were about is over."""
        if self._admits is not None:
            self._admits.end(self._run)

    def _pour(self, raw: socket.socket) -> None:
        frames = [self._frame() for _ in range(FRAMES_A_CONNECTION)]
        self.sent += len(frames)
        raw.settimeout(TIMEOUT_S)
        try:
            raw.sendall(b"".join(frames))
            raw.shutdown(socket.SHUT_WR)
            while part := raw.recv(1 << 16):
                self.answers += len(part)
        except (ConnectionResetError, BrokenPipeError):
            return  # shut out, with some of it unread

    def _frame(self) -> bytes:
        dice = self._dice
        if dice.random() < 0.2:
            kind, body = dice.randrange(256), dice.randbytes(dice.choice([0, 1, 4, 9, 64, 300]))
        else:
            kind, writer = dice.choice(list(self._valid()))
            body = self._changed(writer.frame(kind, 0)[PREFIX.size :])
        if kind == Request.SERVE and len(body) >= 4:
            body = struct.pack("<I", struct.unpack_from("<I", body)[0] | _NOBODY) + body[4:]
        return Writer().raw(body).frame(kind, dice.randrange(1 << 32))

    def _changed(self, body: bytes) -> bytes:
        dice = self._dice
        out = bytearray(body if dice.random() < 0.7 else body[: dice.randrange(len(body) + 1)] + dice.randbytes(5))
        for _ in range(dice.randrange(3)):
            if out:
                out[dice.randrange(len(out))] = dice.choice([0, 1, 127, 128, 255, dice.randrange(256)])
        return bytes(out)

    def _valid(self) -> Iterator[tuple[Request, Writer]]:
        """One of each request, as a worker would send it."""
        block = BlockId(self._run, self._generation, 1, 0, Kind.RESULT, slice=0, source=0)
        header = Header(block, DType.RAW, 4, 0).pack()
        whole = Writer().number("BIQQ", 1, 0, 0, 64)
        yield Request.HELLO, Writer().number("H", PROTOCOL_VERSION).raw(bytes(32))
        yield Request.CLAIM, Writer().text(self._run).number("ii", 0, -1)
        yield Request.REGION, Writer().text("r").text("/proc/1/fd/3").number("Q", 64)
        yield Request.JOIN, Writer().number("IQHiI", self._generation, 0, 1, -1, 5).text("/x").number("H", 0)
        yield Request.PUT, Writer().raw(header).blob(b"meta").number("B", 0).number("HH", 1, 0)
        large = Header(block, DType.RAW, 0, 64).pack()
        yield Request.PUT, Writer().raw(large).blob(b"").append(whole).number("H", 0)
        yield Request.FETCH, Writer().number("I", 5).raw(header).append(whole)
        yield Request.DROP, Writer().number("QH", 1, 0)
        yield Request.FENCE, Writer().text("e" * 32).number("I", 0)
        yield Request.ABORT, Writer().text("because")
        yield Request.LEAVE, Writer()
        yield Request.LABEL, Writer().blob(b"label")
        yield Request.COUNTERS, Writer()
        yield Request.COUNT_BLOCKS, Writer().text("test_")
        yield Request.CANCEL, Writer().number("I", 5)
        yield Request.SERVE, Writer().number("IQi", _NOBODY, 0, -1).blob(b"")
        yield Request.HIRE, Writer().text(self._run).number("IBI", 0, 0, 5).blob(_NO_PICKLE)


def fuzzed(spark: SparkSession, bridge: LocalBridge, *, frames: int, seed: int) -> None:
    """Send that many to a bridge, beside ranks that go on with their work, and weigh it before and after."""
    a, b = join(bridge, 2)
    jvm: Any = spark.sparkContext._jvm
    fuzzer = Fuzzer(bridge.path, bridge.token, seed, bridge)
    with closing(a.client), closing(b.client):
        fuzzer.play(frames // 10)  # its classes are loaded, its buffers have their sizes
        before = held_bytes(jvm)
        fuzzer.play(frames)
        fuzzer.end()
        assert fuzzer.answers > frames, "somebody answered"
        name = BlockId(RUN, 0, 0, 0, Kind.RESULT, slice=0, source=0)
        a.blocks.put(name, None, meta=b"well", dtype=DType.RAW, to=[1])
        assert b.blocks.fetch(name, None).wait(Deadline.after(10)).meta == b"well"
        grown = held_bytes(jvm) - before
        print(f"{grown / MB:.1f} MB more after {fuzzer.sent} frames, answered by {fuzzer.answers} bytes")  # noqa: T201
        assert grown <= MOST_GROWTH, f"{grown / MB:.0f} MB more after {fuzzer.sent} frames"
