"""Names and headers of blocks: what makes a block's identity, and the 64 bytes that travel with it.

A name is never used twice: it carries run, generation, iteration, op, kind, part, slice, source and a nonce
(BigDL's names carried no iteration and collided; Spark keeps the *old* bytes when a name is put twice).
The header repeats the identity, so that a reader checks all of what it asked for; see ``protocol/frames.md``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

import crc32c

from mizzle.errors import CorruptBlock

HEADER_BYTES = 64
IDENTITY_BYTES = 40
MAX_META_BYTES = 64 * 1024
_MAGIC = b"MZ"
_VERSION = 1
_IDENTITY = struct.Struct("<2sBB16sIQHHHBB")
_REST = struct.Struct("<IQI")
_CRC = struct.Struct("<I")


class Kind(IntEnum):
    """What a block holds."""

    CONTRIBUTION = 1
    """One rank's part of a sum, for the owner of a slice (or one rank's part of a gather)."""
    RESULT = 2
    """A finished slice, for everybody."""


class DType(IntEnum):
    """Element types that travel. RAW is opaque bytes."""

    RAW = 0
    FLOAT32 = 1
    BFLOAT16 = 2
    FLOAT16 = 3
    FLOAT64 = 4
    INT32 = 5
    INT64 = 6


@dataclass(frozen=True, slots=True)
class BlockId:
    """Identity of a block.

    Attributes:
        run: 32 hex digits, the run's 128-bit random id.
        generation: membership epoch, >= 0; a store refuses one below its fence.
        iteration: iteration of the run (or of the communicator) that it belongs to.
        op: number of the collective within the iteration, 0..65535.
        kind: what it holds.
        part: number of the part, where a source contributes several, 0..255.
        slice: the slice it belongs to: the rank that owns it.
        source: the rank that put it.
    """

    run: str
    generation: int
    iteration: int
    op: int
    kind: Kind
    slice: int
    source: int
    part: int = 0

    def name(self, nonce: int) -> str:
        """The block's name in a BlockManager; ``nonce`` is the source's admission (64 bits)."""
        return (
            f"test_mizzle.{self.run}.{self.generation}.{self.iteration}.{self.op}.{self.kind.value}"
            f".{self.part}.{self.slice}.{self.source}.{nonce:016x}"
        )

    def __str__(self) -> str:
        """Short form for messages."""
        return (
            f"{self.kind.name.lower()} of slice {self.slice} from rank {self.source} "
            f"(run {self.run[:4]}, generation {self.generation}, iteration {self.iteration}, op {self.op})"
        )


@dataclass(frozen=True, slots=True)
class Header:
    """The first 64 bytes of every block, little endian; ``body`` is meta followed by payload.

    Attributes:
        block: identity, repeated.
        dtype: element type of the payload.
        meta_bytes: length of the small part that precedes the payload.
        payload_bytes: length of the payload.
        body_crc: CRC32C of meta and payload.
    """

    block: BlockId
    dtype: DType
    meta_bytes: int
    payload_bytes: int
    body_crc: int = 0

    def identity(self) -> bytes:
        """The 40 bytes a reader can foretell, except dtype (byte 38), which it learns."""
        b = self.block
        return _IDENTITY.pack(
            _MAGIC, _VERSION, b.kind, bytes.fromhex(b.run), b.generation, b.iteration,
            b.op, b.slice, b.source, self.dtype, b.part,
        )  # fmt: skip

    def pack(self) -> bytes:
        """64 bytes: identity (40), meta_bytes, payload_bytes, body CRC (16), header CRC (4), zeros (4)."""
        front = self.identity() + _REST.pack(self.meta_bytes, self.payload_bytes, self.body_crc)
        return front + _CRC.pack(crc32c.crc32c(front)) + bytes(4)

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> Header:
        """Read 64 bytes.

        Raises:
            CorruptBlock: magic, version, kind, dtype or header CRC is wrong; fetch it again or run the group again.
        """
        raw = bytes(raw[:HEADER_BYTES])
        front = raw[: IDENTITY_BYTES + _REST.size]
        if raw[len(front) :] != _CRC.pack(crc32c.crc32c(front)) + bytes(4):
            raise CorruptBlock("block header fails its CRC32C")
        magic, version, kind, run, generation, iteration, op, slice_, source, dtype, part = _IDENTITY.unpack_from(raw)
        if magic != _MAGIC or version != _VERSION:
            raise CorruptBlock(f"block header has magic {magic!r} version {version}, expected {_MAGIC!r} {_VERSION}")
        meta_bytes, payload_bytes, body_crc = _REST.unpack_from(raw, IDENTITY_BYTES)
        try:
            block = BlockId(run.hex(), generation, iteration, op, Kind(kind), slice_, source, part)
            return cls(block, DType(dtype), meta_bytes, payload_bytes, body_crc)
        except ValueError as error:
            raise CorruptBlock(f"block header is not understood: {error}") from error

    def check_is(self, wanted: BlockId) -> None:
        """Refuse a header that is not the one asked for, whatever the reason.

        Raises:
            CorruptBlock: run, generation, iteration, op, kind, part, slice or source differ.
        """
        if self.block != wanted:
            raise CorruptBlock(f"asked for {wanted}, but the block says it is {self.block}")
