from __future__ import annotations

import json
import struct
from typing import Any

import pytest
import safetensors.torch
import torch

from mizzle.errors import ConfigError, ModelError
from mizzle.training.state import _DTYPES, PackedState, pack_state, unpack_state

SCALARS: dict[str, Any] = {"a": 0.1 + 0.2, "b": None, "c": True, "d": 2**60, "e": [1, {"f": -0.0}]}
TENSORS = {
    "bool": torch.tensor([True, False, True]),
    "float": torch.arange(6.0).view(2, 3).t(),  # a view across its memory
    "none": torch.empty(0, 4),
    "number": torch.tensor(3, dtype=torch.int64),
    "every second": torch.arange(10, dtype=torch.int16)[::2],
}


def test_tensors_and_scalars_come_back_as_they_were() -> None:
    found, back = unpack_state(pack_state(TENSORS, SCALARS))
    assert back == SCALARS
    assert found.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


def test_safetensors_reads_what_is_written_and_the_other_way_round() -> None:
    raw = pack_state(TENSORS, SCALARS)
    theirs = safetensors.torch.load(raw)
    assert all(torch.equal(theirs[name], value) for name, value in TENSORS.items())
    whole = {name: value.contiguous() for name, value in TENSORS.items()}
    found, back = unpack_state(safetensors.torch.save(whole, metadata={"mizzle": json.dumps(SCALARS)}))
    assert back == SCALARS
    assert all(torch.equal(found[name], value) for name, value in TENSORS.items())


@pytest.mark.parametrize("dtype", _DTYPES.values(), ids=str)
def test_every_dtype_keeps_its_bits(dtype: torch.dtype) -> None:
    value = torch.tensor([0, 1, 1, 0]).to(dtype)
    raw = pack_state({"x": value}, {})
    for found in (unpack_state(raw)[0]["x"], safetensors.torch.load(raw)["x"]):
        assert found.dtype == dtype
        assert found.view(torch.uint8).tolist() == value.view(torch.uint8).tolist()


def test_a_dtype_that_the_format_lacks_is_named() -> None:
    with pytest.raises(ModelError, match=r"'x' is torch.complex128, which a state cannot hold"):
        pack_state({"x": torch.zeros(1, dtype=torch.complex128)}, {})


def test_a_state_is_written_in_place_and_nothing_behind_it() -> None:
    state = PackedState(TENSORS, SCALARS)
    buffer = bytearray(b"\xaa" * (state.num_bytes + 100))
    assert state.write(memoryview(buffer)) == state.num_bytes
    assert bytes(buffer[: state.num_bytes]) == pack_state(TENSORS, SCALARS)
    assert set(buffer[state.num_bytes :]) == {0xAA}
    with pytest.raises(ConfigError, match=rf"state of {state.num_bytes} bytes does not fit into {state.num_bytes - 1}"):
        state.write(memoryview(buffer)[: state.num_bytes - 1])


def test_what_is_read_from_writable_memory_lies_in_it() -> None:
    buffer = bytearray(pack_state({"x": torch.ones(3)}, {}))
    (found,) = unpack_state(memoryview(buffer))[0].values()
    found.fill_(7.0)
    assert torch.equal(unpack_state(buffer)[0]["x"], torch.full((3,), 7.0))
    raw = bytes(buffer)
    unpack_state(raw)[0]["x"].zero_()
    assert raw == buffer, "bytes were written to"


def test_a_counter_that_gains_digits_does_not_make_a_state_longer() -> None:
    assert PackedState(TENSORS, {"n": 9}).num_bytes == PackedState(TENSORS, {"n": 10**9}).num_bytes


def test_more_tensors_than_would_be_read_again_are_not_written() -> None:
    nothing = torch.empty(0)
    with pytest.raises(ModelError, match=r"has 30000 tensors; their description has .* are not read"):
        PackedState({str(at): nothing for at in range(30_000)}, {})
    assert len(unpack_state(pack_state({str(at): nothing for at in range(14_000)}, {}))[0]) == 14_000


def forged(entries: object, data: bytes = bytes(8)) -> bytes:
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + data


def twice() -> bytes:
    """One tensor under one name, but said two times."""
    header = one()[8:-8]
    header = header[:-1] + b", " + header[header.index(b'"x"') :]
    return struct.pack("<Q", len(header)) + header + bytes(8)


def one(**entry: object) -> bytes:
    good = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    return forged({"__metadata__": {"mizzle": "{}"}, "x": good | entry})


HALF = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"12345678abc", pack_state({"a": torch.ones(3)}, {})[:-2], pack_state({"a": torch.ones(3)}, {}) + b"0",
        struct.pack("<Q", 2**63) + b"{}", forged(None), forged([]), forged({}), forged({"__metadata__": {"other": ""}}),
        one(dtype="F31"), one(shape=[3]), one(shape=[-1, -2]), one(shape=["2"]), one(shape=2),
        one(data_offsets=[-8, 0]), one(data_offsets=[8, 16]), one(more=1), one(shape=[1], data_offsets=[4, 8]),
        forged({"__metadata__": {"mizzle": "{}"}, "x": HALF, "y": HALF}), twice(), one(shape=[2.0]),
        one(shape=[2, True]),
    ],
)  # fmt: skip
def test_bytes_that_are_no_state_are_refused(raw: bytes) -> None:
    assert unpack_state(one())[0]["x"].tolist() == [0.0, 0.0], "the good one, of which the others are spoilt"
    with pytest.raises(ConfigError, match=rf"^{len(raw)} bytes given as a state are not one"):
        unpack_state(raw)
