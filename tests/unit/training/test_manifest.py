"""A manifest comes back as it was, floats to the bit; and one byte that is another makes it none."""

from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mizzle.errors import CheckpointError
from mizzle.training.manifest import Manifest, Parameter, Part, iteration_of, part_file

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
PART = Part(part_file(3), 4096, "0123456789abcdef" * 4, ((0, 8), (8, 16)))


def manifest_of(training: dict[str, object]) -> Manifest:
    return Manifest(
        "ck-000000000007-0123456789abcdef", 7, "a1b2", 1, 16, (PART,), (Parameter("ä.b", (2, 3), "weights", 10),),
        training,
    )  # fmt: skip


@settings(max_examples=50)
@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_what_is_written_is_read(training: dict[str, object]) -> None:
    manifest = manifest_of(training)
    assert Manifest.of_json(manifest.to_json()) == manifest


@given(st.floats(allow_nan=False))
def test_floats_keep_their_bits(value: float) -> None:
    (found,) = Manifest.of_json(manifest_of({"x": value}).to_json()).training.values()
    assert struct.pack("<d", found) == struct.pack("<d", value)


def test_a_loss_that_is_no_number_comes_back_as_one() -> None:
    assert math.isnan(Manifest.of_json(manifest_of({"x": math.nan}).to_json()).training["x"])


RAW = manifest_of({"losses": [0.25, 1e-300], "best": None, "on": True}).to_json()


@pytest.mark.parametrize("bit", range(8))
def test_every_bit_counts(bit: int) -> None:
    for at in range(len(RAW)):
        flipped = bytearray(RAW)
        flipped[at] ^= 1 << bit
        with pytest.raises(CheckpointError, match=r"^MANIFEST.json"):
            Manifest.of_json(bytes(flipped))


def test_every_byte_counts() -> None:
    for length in range(len(RAW)):
        with pytest.raises(CheckpointError, match=r"^MANIFEST.json is damaged"):
            Manifest.of_json(RAW[:length])
    for longer in (RAW + b"\n", b" " + RAW, RAW.replace(b": ", b":")):
        with pytest.raises(CheckpointError, match="its content is not what its SHA-256 was taken of"):
            Manifest.of_json(longer)


def test_the_names_of_checkpoints_sort_by_iterations() -> None:
    names = [f"ck-{iteration:012d}-{nonce:016x}" for iteration, nonce in ((9, 9), (10, 1), (999_999_999_999, 0))]
    assert [iteration_of(name) for name in names] == [9, 10, 999_999_999_999]
    assert sorted(names) == names
    for none in (
        "ck-000000000001",
        "ck-000000000001-0123456789abcdeF",
        "x/ck-000000000001-0123456789abcdef",
        "ck-" + "9" * 13,
    ):
        assert iteration_of(none) is None
