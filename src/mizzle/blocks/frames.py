"""The frames on the bridge's socket: u32 length, u8 type, u32 tag, u32 CRC32C of all the rest, body; little endian.

``protocol/frames.md`` is the specification, the golden files beside it are read by the Java and the Python tests.
"""

from __future__ import annotations

import struct
from enum import IntEnum

import crc32c

from mizzle.errors import BridgeError

PROTOCOL_VERSION = 2
MAX_FRAME_BYTES = 1 << 20
PREFIX = struct.Struct("<IBII")
_FRONT = struct.Struct("<IBI")
_LENGTH_BYTES = 4
LEAST_FRAME_BYTES = PREFIX.size - _LENGTH_BYTES
"""Of a frame without a body, the length word left out, as everywhere."""
ANSWER = 0x80
ERROR = 0xFF


class Request(IntEnum):
    """What a worker may ask of its bridge; the answer has the same type with the top bit set."""

    HELLO = 1
    CLAIM = 2
    REGION = 3
    JOIN = 4
    PUT = 5
    FETCH = 6
    DROP = 7
    FENCE = 8
    ABORT = 9
    LEAVE = 10
    LABEL = 11
    COUNTERS = 12
    COUNT_BLOCKS = 13
    CANCEL = 14
    SERVE = 15
    HIRE = 16


class Writer:
    """Builds a body."""

    def __init__(self) -> None:
        """Start empty."""
        self._parts: list[bytes] = []

    def number(self, layout: str, *values: int) -> Writer:
        """Numbers in `struct` notation, little endian."""
        self._parts.append(struct.pack("<" + layout, *values))
        return self

    def raw(self, data: bytes) -> Writer:
        """Bytes as they are."""
        self._parts.append(data)
        return self

    def blob(self, data: bytes) -> Writer:
        """u32 length, bytes."""
        return self.number("I", len(data)).raw(data)

    def append(self, other: Writer) -> Writer:
        """What another writer holds."""
        self._parts += other._parts
        return self

    def text(self, text: str) -> Writer:
        """A blob in UTF-8."""
        return self.blob(text.encode())

    def frame(self, kind: int, tag: int) -> bytes:
        """The whole frame.

        Raises:
            BridgeError: it would be longer than the bridge accepts.
        """
        body = b"".join(self._parts)
        length = LEAST_FRAME_BYTES + len(body)
        if length > MAX_FRAME_BYTES:
            raise BridgeError(f"a frame of {len(body)} bytes is longer than the bridge accepts ({MAX_FRAME_BYTES})")
        return PREFIX.pack(length, kind, tag, _crc(length, kind, tag, body)) + body


def _crc(length: int, kind: int, tag: int, body: bytes | memoryview) -> int:
    return int(crc32c.crc32c(body, crc32c.crc32c(_FRONT.pack(length, kind, tag))))


def is_intact(frame: bytes | bytearray | memoryview) -> bool:
    """Whether a whole frame is as it was sent."""
    length, kind, tag, crc = PREFIX.unpack_from(frame)
    return bool(crc == _crc(length, kind, tag, memoryview(frame)[PREFIX.size : _LENGTH_BYTES + length]))


class Reader:
    """Reads a body; a body that is too short raises `BridgeError`."""

    def __init__(self, body: bytes) -> None:
        """Start at the beginning of ``body``."""
        self._body = body
        self._at = 0

    def raw(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        if count > len(self._body) - self._at:
            raise BridgeError(f"frame too short: {count} bytes wanted, {len(self._body) - self._at} left")
        self._at += count
        return self._body[self._at - count : self._at]

    def number(self, layout: str) -> int:
        """One number in `struct` notation."""
        value = struct.unpack("<" + layout, self.raw(struct.calcsize("<" + layout)))[0]
        return int(value)

    def blob(self) -> bytes:
        """u32 length, bytes."""
        return self.raw(self.number("I"))

    def text(self) -> str:
        """A blob in UTF-8."""
        return self.blob().decode()
