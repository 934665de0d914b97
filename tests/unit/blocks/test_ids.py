"""Names and headers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mizzle.blocks.ids import HEADER_BYTES, IDENTITY_BYTES, BlockId, DType, Header, Kind
from mizzle.errors import CorruptBlock

blocks = st.builds(
    BlockId,
    run=st.binary(min_size=16, max_size=16).map(bytes.hex),
    generation=st.integers(0, 2**32 - 1),
    iteration=st.integers(0, 2**64 - 1),
    op=st.integers(0, 2**16 - 1),
    kind=st.sampled_from(Kind),
    slice=st.integers(0, 2**16 - 1),
    source=st.integers(0, 2**16 - 1),
    part=st.integers(0, 255),
)
headers = st.builds(
    Header,
    block=blocks,
    dtype=st.sampled_from(DType),
    meta_bytes=st.integers(0, 2**16),
    payload_bytes=st.integers(0, 2**63),
    body_crc=st.integers(0, 2**32 - 1),
)


@given(headers)
def test_a_header_survives_packing(header: Header) -> None:
    raw = header.pack()
    assert len(raw) == HEADER_BYTES
    assert raw[:IDENTITY_BYTES] == header.identity()
    assert Header.unpack(raw) == header
    assert Header.unpack(memoryview(raw + b"body")) == header


@given(headers, st.integers(0, (HEADER_BYTES - 4) * 8 - 1))
def test_any_changed_bit_is_found(header: Header, bit: int) -> None:
    raw = bytearray(header.pack())
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CorruptBlock):
        Header.unpack(bytes(raw))


@given(headers, st.integers(0, HEADER_BYTES - 1))
def test_a_short_header_is_refused(header: Header, num_bytes: int) -> None:
    with pytest.raises(CorruptBlock):
        Header.unpack(header.pack()[:num_bytes])


@given(blocks, blocks)
def test_a_header_is_checked_against_all_that_was_asked_for(block: BlockId, wanted: BlockId) -> None:
    header = Header(block, DType.RAW, 0, 0)
    header.check_is(block)
    if block != wanted:
        with pytest.raises(CorruptBlock, match="asked for"):
            header.check_is(wanted)


@given(blocks, blocks, st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_names_differ_wherever_identity_or_admission_differ(a: BlockId, b: BlockId, x: int, y: int) -> None:
    assert (a.name(x) == b.name(y)) == ((a, x) == (b, y))
