"""A rank's state at a boundary as bytes: safetensors, with scalars as JSON in its metadata. No pickle.

Written straight into the memory it shall lie in and read from there in place, because a state is as large as a slice of
the model with its optimizer, and a boundary comes after every group.
Format: https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mizzle.errors import ConfigError, ModelError
from mizzle.training.json_limits import MAX_BYTES, beyond_limits

_KEY = "mizzle"
_LENGTH = struct.Struct("<Q")
# Spaces behind the header, as the format allows: a counter that gains a digit does not make a state longer, so that
# the region of one boundary serves the next. It also puts the tensors at the beginning of a page.
_HEADER_UNIT = 4096
# Each is looked at in a list of pairs before there is an object. A tensor has 4: enough for 14 000 tensors.
_MAX_NAMES = 60_000
_MAX_DIMS = 64  # torch's own limit
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class PackedState:
    """A state laid out but not copied yet: its tensors are read when it is written.

    Args:
        tensors: any shapes, also views; several in one entry, at least one, are kept as one (n,), end to end.
        scalars: what JSON can hold; floats come back with the same bits.

    Attributes:
        num_bytes: length of what `write` writes.

    Raises:
        ModelError: a tensor's dtype cannot be saved; the message names it. Or there are too many tensors.
    """

    def __init__(
        self, tensors: Mapping[str, torch.Tensor | Sequence[torch.Tensor]], scalars: Mapping[str, Any]
    ) -> None:
        """See the class."""
        header: dict[str, Any] = {"__metadata__": {_KEY: json.dumps(dict(scalars))}}
        at = 0
        self._tensors: list[tuple[torch.Tensor, int]] = []
        entries = {name: [value] if isinstance(value, torch.Tensor) else value for name, value in tensors.items()}
        # large elements first: then every tensor is aligned to its own
        for name in sorted(entries, key=lambda name: (-entries[name][0].element_size(), name)):
            parts = [part.detach() for part in entries[name]]
            dtype = parts[0].dtype
            if dtype not in _NAMES:
                raise ModelError(f"{name!r} is {dtype}, which a state cannot hold: keep it in another dtype")
            shape = [sum(map(len, parts))] if len(parts) > 1 else list(parts[0].shape)
            begin = at
            for part in parts:
                self._tensors.append((part, at))
                at += part.nbytes
            header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [begin, at]}
        text = json.dumps(header)
        padded = -(-(_LENGTH.size + len(text)) // _HEADER_UNIT) * _HEADER_UNIT - _LENGTH.size
        if complaint := beyond_limits(text.ljust(padded), max_names=_MAX_NAMES):
            raise ModelError(
                f"the state of a rank has {len(header) - 1} tensors; their description {complaint}: train a model of "
                "fewer parameters, or with an optimizer that runs sharded"
            )
        self._head = _LENGTH.pack(padded) + text.ljust(padded).encode()
        self.num_bytes = len(self._head) + at

    def write(self, buffer: bytearray | memoryview) -> int:
        """Copy header and tensors to the beginning of ``buffer``, bit for bit.

        Args:
            buffer: at least `num_bytes` long, contiguous.

        Returns:
            How many bytes were written: the others are left as they are.

        Raises:
            ConfigError: the buffer is too short.
        """
        view = memoryview(buffer).cast("B")
        if len(view) < self.num_bytes:
            raise ConfigError(f"a state of {self.num_bytes} bytes does not fit into {len(view)}: ask for a new region")
        view[: len(self._head)] = self._head
        for tensor, at in self._tensors:
            if tensor.numel():
                _over(view, tensor.dtype, tensor.shape, len(self._head) + at).copy_(tensor)
        return self.num_bytes

    def to_bytes(self) -> bytes:
        """The same as bytes of its own: two copies."""
        buffer = bytearray(self.num_bytes)
        self.write(buffer)
        return bytes(buffer)


def pack_state(tensors: Mapping[str, torch.Tensor | Sequence[torch.Tensor]], scalars: Mapping[str, Any]) -> bytes:
    """`PackedState` as bytes of its own."""
    return PackedState(tensors, scalars).to_bytes()


def unpack_state(raw: bytes | bytearray | memoryview) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What `PackedState` was given.

    Args:
        raw: exactly the bytes that were written.

    Returns:
        Tensors and scalars. The tensors are views of ``raw`` where it is writable: copy what shall outlive it.

    Raises:
        ConfigError: these are not the bytes of a state.
    """
    view = memoryview(raw).cast("B")
    if view.readonly:
        view = memoryview(bytearray(view))  # torch has no read-only tensors
    header = read_header(view, len(view))
    data = view[header.num_bytes :]
    tensors = {
        name: _over(data, _DTYPES[dtype], torch.Size(shape), start)
        for name, (dtype, shape, start) in header.tensors.items()
    }
    return tensors, header.scalars


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before the tensors of a state.

    Attributes:
        num_bytes: of the header, its length included: there the tensors begin.
        tensors: by name the dtype as the format names it, the shape, and the first byte behind the header.
        scalars: those of the state.
    """

    num_bytes: int
    tensors: Mapping[str, tuple[str, tuple[int, ...], int]]
    scalars: dict[str, Any]


def header_bytes(raw: bytes | bytearray | memoryview, num_bytes: int) -> int:
    """How long the header of a state is, looking at its first 8 bytes only.

    Args:
        raw: the beginning of a state.
        num_bytes: length of the whole.

    Raises:
        ConfigError: no header of that length can stand there.
    """
    length = _LENGTH.unpack_from(raw)[0] if len(raw) >= _LENGTH.size else num_bytes
    if not len(b"{}") <= length <= min(MAX_BYTES, num_bytes - _LENGTH.size):
        raise ConfigError(f"{num_bytes} bytes given as a state are not one: its header cannot be {length} bytes long")
    return int(_LENGTH.size + length)


def read_header(raw: bytes | bytearray | memoryview, num_bytes: int) -> Header:
    """Read and check the header of a state; its tensors need not be at hand.

    Args:
        raw: the beginning of a state, at least `header_bytes` long.
        num_bytes: length of the whole.

    Raises:
        ConfigError: these are not the bytes of a state.
    """
    length = header_bytes(raw, num_bytes)
    try:
        header = _parsed(str(memoryview(raw)[_LENGTH.size : length], "ascii"))
        scalars: dict[str, Any] = _parsed(header.pop("__metadata__")[_KEY])
        if not isinstance(scalars, dict):
            raise TypeError("its scalars have no names")  # noqa: TRY301 - caught with all other ways to be wrong
        spans = sorted(tuple(entry["data_offsets"]) for entry in header.values())
        tensors = {name: _entry(**entry) for name, entry in header.items()}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{num_bytes} bytes given as a state are not one: {error}") from error
    # one behind the other, as the format wants it: no byte belongs to two tensors or to none
    if [0, *(stop for _, stop in spans)] != [*(start for start, _ in spans), num_bytes - length]:
        raise ConfigError(f"{num_bytes} bytes given as a state are not one: its tensors leave gaps or overlap")
    return Header(length, tensors, scalars)


def _parsed(text: str) -> dict[str, Any]:
    if complaint := beyond_limits(text, max_names=_MAX_NAMES):
        raise ValueError(f"its header {complaint}")
    found: dict[str, Any] = json.loads(text, object_pairs_hook=_once)  # or anything else, which the caller will see
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name comes twice")
    return found


def _entry(*, dtype: str, shape: list[int], data_offsets: list[int]) -> tuple[str, tuple[int, ...], int]:
    start, stop = data_offsets
    if {type(number) for number in (*shape, start, stop)} != {int} or len(shape) > _MAX_DIMS:
        raise ValueError(f"no tensor has shape {shape[:_MAX_DIMS]}")
    if min(shape, default=0) < 0 or math.prod(max(1, size) for size in shape) >= 2**60:
        raise ValueError(f"no tensor has shape {shape}")
    if stop - start != math.prod(shape) * _DTYPES[dtype].itemsize:
        raise ValueError(f"{stop - start} bytes hold no {dtype} of shape {shape}")
    return dtype, tuple(shape), start


def _over(view: memoryview, dtype: torch.dtype, shape: torch.Size, offset: int) -> torch.Tensor:
    """A tensor over the bytes of ``view`` from ``offset`` on."""
    count = math.prod(shape)
    if count == 0:
        return torch.empty(shape, dtype=dtype)  # torch makes none over no bytes
    return torch.frombuffer(view, dtype=dtype, count=count, offset=offset).view(shape)
