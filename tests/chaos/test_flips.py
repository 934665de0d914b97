"""Single bits change, wherever mizzle's bytes lie or travel: each is found, and nothing of it is used.

What ranks of one host read in each other's memory is not checked: see "Not promised" in docs/guarantees.md.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from random import Random

import pytest

from contract.stores import Joined, LocalBridge, join
from harness import RUN
from mizzle.blocks.deadline import Deadline
from mizzle.blocks.frames import ANSWER, PREFIX, PROTOCOL_VERSION, Request, Writer
from mizzle.blocks.ids import BlockId, DType, Header, Kind
from mizzle.blocks.region import Span
from mizzle.blocks.store import Fetched
from mizzle.errors import CorruptBlock
from mizzle.spark.ranks.boundary import _is_intact, _sealed
from unit.spark.ranks.keepers import KeptArena, state_of

FEW, MANY, GOOD = 250, 10_000, 100_000
"""Flips in the default run, and in the long one; blocks that nothing happens to."""
SMALL, LARGE = 1000, 40_000
"""Payload bytes: one that is copied when it leaves, and one that is sent from where it lies."""
TIMEOUT_S = 20.0


@pytest.fixture(params=[FEW, pytest.param(MANY, marks=[pytest.mark.chaos, pytest.mark.timeout(900)])])
def flips(request: pytest.FixtureRequest) -> int:
    """How many bits change."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def dice() -> Random:
    """The same in every run."""
    return Random(15)  # noqa: S311 - to be repeatable, not secret


@pytest.fixture
def ranks(local_bridge: LocalBridge) -> Iterator[list[Joined]]:
    """Two, over the bridge and Spark's BlockManager."""
    local_bridge.begin()
    joined = join(local_bridge, 2)
    yield joined
    for one in joined:
        one.client.close()
    local_bridge.end()


def block_id(number: int) -> BlockId:
    return BlockId(RUN, 0, number // 60_000, number % 60_000, Kind.RESULT, slice=0, source=0)


def trade(ranks: list[Joined], number: int, length: int, change: Callable[[memoryview], None]) -> Fetched:
    """A block goes from rank 0 to rank 1, and its bytes change after it was put."""
    a, b = ranks
    out = Span(a.blocks.region("out", LARGE), 0, length)
    a.blocks.put(block_id(number), out, meta=b"meta", dtype=DType.RAW, to=[1])
    a.client.counters()  # answered when the put was carried out
    change(out.view)
    try:
        return b.blocks.fetch(block_id(number), Span(b.blocks.region("into", LARGE), 0, length)).wait(
            Deadline.after(TIMEOUT_S)
        )
    finally:
        change(out.view)
        a.blocks.drop(number // 60_000, number % 60_000 + 1)


@pytest.mark.parametrize("length", [SMALL, LARGE])
def test_a_bit_of_a_payload_that_changes_is_found_by_whoever_fetches_it(
    ranks: list[Joined], flips: int, dice: Random, length: int
) -> None:
    ranks[0].blocks.region("out", LARGE).buffer[:LARGE] = dice.randbytes(LARGE)
    found = 0
    for number in range(flips):
        bit = dice.randrange(8 * length)

        def flip(view: memoryview, bit: int = bit) -> None:
            view[bit // 8] ^= 1 << bit % 8

        with pytest.raises(CorruptBlock, match="CRC32C"):
            trade(ranks, number, length, flip)
        found += 1
    assert found == flips
    assert bytes(trade(ranks, flips, length, lambda _: None).payload) == bytes(
        ranks[0].blocks.region("out", LARGE).buffer[:length]
    ), "and the connection goes on"


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_no_block_that_nothing_happens_to_is_taken_for_a_damaged_one(ranks: list[Joined], dice: Random) -> None:
    before = ranks[0].client.counters()["corrupt"]
    for number in range(GOOD):
        ranks[0].blocks.region("out", LARGE).buffer[: SMALL // 2] = dice.randbytes(SMALL // 2)
        trade(ranks, number, SMALL, lambda _: None)
    assert ranks[0].client.counters()["corrupt"] == before


def test_a_bit_of_a_header_that_changes_is_found(flips: int, dice: Random) -> None:
    for _ in range(flips):
        header = Header(block_id(dice.randrange(10**6)), DType.FLOAT32, dice.randrange(99), dice.randrange(10**6), 7)
        raw = bytearray(header.pack())
        assert Header.unpack(bytes(raw)) == header
        bit = dice.randrange(8 * len(raw))
        raw[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptBlock):
            Header.unpack(bytes(raw))


def test_a_bit_of_a_frame_that_changes_is_found_and_the_request_not_carried_out(
    local_bridge: LocalBridge, flips: int, dice: Random
) -> None:
    hello = Writer().number("H", PROTOCOL_VERSION).raw(local_bridge.token).frame(Request.HELLO, 1)
    for _ in range(flips):
        raw = bytearray(Writer().text("test_mizzle" + "x" * dice.randrange(50)).frame(Request.COUNT_BLOCKS, 2))
        bit = dice.randrange(8 * len(raw))
        raw[bit // 8] ^= 1 << bit % 8
        with socket.socket(socket.AF_UNIX) as worker:
            worker.settimeout(TIMEOUT_S)
            worker.connect(local_bridge.path)
            worker.sendall(hello + raw)
            worker.shutdown(socket.SHUT_WR)
            answers = list(frames(worker))
        assert answers == [Request.HELLO | ANSWER], f"bit {bit} of {bytes(raw)!r}"


def frames(worker: socket.socket) -> Iterator[int]:
    """Types of the frames that come until the bridge hangs up."""
    received = b""
    while part := worker.recv(1 << 16):
        received += part
    while received:
        (length,) = struct.unpack_from("<I", received)
        yield PREFIX.unpack_from(received)[1]
        received = received[4 + length :]


def test_a_bit_of_a_state_that_changes_is_found(flips: int, dice: Random) -> None:
    arena, raw = KeptArena(), dice.randbytes(3000)
    span = Span(arena.region("state0", 4096), 0, 4096)
    kept = _sealed(span, state_of(raw))
    assert _is_intact(kept)
    for _ in range(flips):
        bit = dice.randrange(8 * kept.length)
        kept.view[bit // 8] ^= 1 << bit % 8
        assert not _is_intact(kept)
        kept.view[bit // 8] ^= 1 << bit % 8
    assert _is_intact(kept)
