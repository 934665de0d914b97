"""Frames and blocks are written byte for byte as protocol/frames.md says; the golden files are also Java's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mizzle.blocks.arena import MappedRegion
from mizzle.blocks.bridge import _error, rank_list
from mizzle.blocks.frames import (
    ANSWER,
    ERROR,
    MAX_FRAME_BYTES,
    PREFIX,
    PROTOCOL_VERSION,
    Reader,
    Request,
    Writer,
    is_intact,
)
from mizzle.blocks.ids import HEADER_BYTES, BlockId, DType, Header, Kind
from mizzle.blocks.region import Span
from mizzle.blocks.residence import Order, OrderKind, read_order
from mizzle.blocks.transfer import _range
from mizzle.errors import BridgeError, PeerLost

GOLDEN = Path(__file__).resolve().parents[3] / "protocol" / "golden"
RUN = bytes(range(16)).hex()
SILENT = 1 << 31
SMALL = Header(BlockId(RUN, 3, 11, 4, Kind.RESULT, 5, 6, 7), DType.FLOAT32, 4, 8, crc32c.crc32c(b"metapayload!"))
LARGEST = Header(BlockId(RUN, 2**32 - 1, 2**64 - 1, 65535, Kind.RESULT, 5, 6, 7), DType.FLOAT32, 0, 0, 0)


def golden(name: str) -> bytes:
    return (GOLDEN / f"{name}.bin").read_bytes()


def body(name: str, kind: int, tag: int) -> Reader:
    """The body of a golden frame, its prefix checked."""
    raw = golden(name)
    assert PREFIX.unpack_from(raw)[:3] == (len(raw) - 4, kind, tag)
    assert is_intact(raw)
    return Reader(raw[PREFIX.size :])


def span() -> Span:
    return Span(MappedRegion("weights", "", 9, 0, memoryview(bytearray(256))), 128, 8)


FRAMES: dict[str, Callable[[], bytes]] = {
    "hello": lambda: Writer().number("H", PROTOCOL_VERSION).raw(bytes(range(32))).frame(Request.HELLO, 1),
    "claim": lambda: Writer().text(RUN).number("ii", -1, 6).frame(Request.CLAIM, 2),
    "region": lambda: Writer().text("weights").text("/proc/1/fd/2").number("Q", 1 << 33).frame(Request.REGION, 3),
    "join": lambda: (
        Writer()
        .number("IQHiI", 3, 12, 4, -1, 60000)
        .text("/proc/1/fd/3")
        .append(rank_list([1, 65535]))
        .frame(Request.JOIN, 4)
    ),
    "put": lambda: (
        Writer()
        .raw(SMALL.pack())
        .blob(b"meta")
        .append(_range(span()))
        .append(rank_list([0, 3]))
        .frame(Request.PUT, SILENT | 5)
    ),
    "fetch_without_payload": lambda: (
        Writer().number("I", 1500).raw(SMALL.pack()).append(_range(None)).frame(Request.FETCH, 6)
    ),
    "drop": lambda: Writer().number("QH", 12, 4).frame(Request.DROP, SILENT | 7),
    "cancel": lambda: Writer().number("I", 6).frame(Request.CANCEL, SILENT | 8),
    "serve": lambda: Writer().number("IQi", 4711, 3, -1).blob(b"outcome").frame(Request.SERVE, 9),
    "hire": lambda: Writer().text(RUN).number("IBI", 3, 1, 60000).blob(b"how").frame(Request.HIRE, 10),
}


def test_the_index_names_every_golden_file_and_none_was_changed() -> None:
    index = json.loads((GOLDEN / "index.json").read_text())
    assert set(index) == {path.stem for path in GOLDEN.glob("*.bin")}
    for name, entry in index.items():
        assert (entry["bytes"], int(entry["crc32c"], 16)) == (len(golden(name)), crc32c.crc32c(golden(name))), name


@pytest.mark.parametrize("name", FRAMES)
def test_a_request_is_written_as_the_golden_file(name: str) -> None:
    assert FRAMES[name]() == golden(name)


@pytest.mark.parametrize(("name", "header"), [("block_small", SMALL), ("block_largest_numbers", LARGEST)])
def test_a_header_is_written_and_read_as_the_golden_block(name: str, header: Header) -> None:
    raw = golden(name)
    assert header.pack() == raw[:HEADER_BYTES]
    assert Header.unpack(raw) == header


def test_block_names_are_spelt_as_java_spells_them() -> None:
    assert SMALL.block.name(0xAB) == f"test_mizzle.{RUN}.3.11.4.2.7.5.6.00000000000000ab"
    assert LARGEST.block.name(2**64 - 1).endswith(".4294967295.18446744073709551615.65535.2.7.5.6.ffffffffffffffff")


def test_answers_are_read_as_the_golden_files_have_them() -> None:
    hello = body("hello_answer", Request.HELLO | ANSWER, 1)
    assert (hello.text(), hello.text(), hello.number("H"), *(hello.text() for _ in range(3))) == (
        "7", "host", 40404, "id", "/d", "0.1.0",
    )  # fmt: skip
    fetched = body("fetch_answer", Request.FETCH | ANSWER, 6)
    assert (Header.unpack(fetched.raw(HEADER_BYTES)), fetched.blob()) == (SMALL, b"meta")
    order = read_order(body("serve_answer", Request.SERVE | ANSWER, 9))
    assert order == Order(2**64 - 1, OrderKind.GROUP, "r", 3, b"do")
    ready = body("hire_answer", Request.HIRE | ANSWER, 10)
    assert (ready.number("B"), ready.blob()) == (1, b"ready")
    assert body("hire_answer_nobody", Request.HIRE | ANSWER, 10).number("B") == 0
    error = _error(body("error_peer_lost", ERROR, 6))
    assert isinstance(error, PeerLost)
    assert (error.rank, error.why) == (3, "gone: é")


@given(st.lists(st.binary(max_size=50)), st.integers(0, 2**32 - 1))
def test_what_was_written_is_read(blobs: list[bytes], number: int) -> None:
    writer = Writer().number("I", number)
    for blob in blobs:
        writer.blob(blob)
    reader = Reader(writer.frame(Request.PUT, 1)[PREFIX.size :])
    assert reader.number("I") == number
    assert [reader.blob() for _ in blobs] == blobs
    with pytest.raises(BridgeError, match="too short"):
        reader.raw(1)


@given(st.binary(max_size=40))
def test_a_blob_longer_than_its_frame_is_refused(rest: bytes) -> None:
    with pytest.raises(BridgeError, match="too short"):
        Reader((len(rest) + 1).to_bytes(4, "little") + rest).blob()


def test_a_frame_longer_than_the_bridge_accepts_is_not_sent() -> None:
    Writer().raw(bytes(MAX_FRAME_BYTES - 9)).frame(Request.LABEL, 1)
    with pytest.raises(BridgeError, match="longer than the bridge accepts"):
        Writer().raw(bytes(MAX_FRAME_BYTES - 8)).frame(Request.LABEL, 1)
