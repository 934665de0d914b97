"""Control regions: where a rank notes, for each peer, what it has put and where the bytes lie, and posts for all.

A region has one writer, its rank; its bridge writes only `FENCED_AT`, `LOST_AT` and why that peer was lost. It holds:
a few words, two reasons, where regions lie that all share, for each reader a counter of notes and a counter of how many
of the reader's own notes were read, `SLOTS` notes for each reader, used in turn, a ring of the metas that are too long
for a note, and the two pages of its board.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from mizzle.blocks.arena import Arena, MappedRegion
from mizzle.blocks.futex import Words
from mizzle.blocks.ids import HEADER_BYTES, MAX_META_BYTES, Header
from mizzle.errors import ArenaError, ConfigError, PeerLost

CONTROL = "control"
FENCE_AT, FENCED_AT, LOST_AT, GAVE_UP_AT, POSTED_AT, LAID_AT, TOLD_AT = 0, 4, 8, 12, 16, 20, 24
"""Words: the lowest generation that this rank serves; the same as its bridge has it; rank + 1 of a peer that the bridge
saw die; 1 when this rank gave up; how many times it posted; how many shared regions it laid out; the number that it
told last."""
SLOTS = 64
_REASON_AT, _REASON_BYTES = 64, 1024
_LOST_REASON_AT = _REASON_AT + _REASON_BYTES
_LAID_PLACES_AT = _LOST_REASON_AT + _REASON_BYTES
_NAME_BYTES = 32
_PLACES = 4
_LINE = 64
_SLOT_BYTES = 1024
_PATH_BYTES = 256
"""Enough for a file in a bridge's directory; paths of a memfd are short."""
_FENCES = struct.Struct("<II")
_PLACE = struct.Struct(f"<H{_PATH_BYTES}sQQQQ")
_COUNTERS_AT = -(-(_LAID_PLACES_AT + _PLACES * (_NAME_BYTES + _PLACE.size)) // _LINE) * _LINE
_META_AT = HEADER_BYTES + _PLACE.size
_INLINE_META_BYTES = _SLOT_BYTES - _META_AT
_RING_BYTES = 4 * MAX_META_BYTES
"""For each reader two rounds of the longest metas, twice over: by the rule of the collectives (no rank is more than
one collective ahead of another) a meta was read before the ring comes round to it."""
PAGE_BODY_AT = _LINE
"""Where the message begins in a page of the board; before it is its name."""
_PAGE_BYTES = PAGE_BODY_AT + MAX_META_BYTES


def control_bytes(size: int) -> int:
    """Length in bytes of a control region for a group of ``size`` ranks."""
    return _pages_at(size) + 2 * _PAGE_BYTES


def _ring_at(size: int) -> int:
    return _COUNTERS_AT + (2 * _LINE + _SLOT_BYTES * SLOTS) * size


def _pages_at(size: int) -> int:
    return _ring_at(size) + _RING_BYTES * size


def prepare_control(arena: Arena, size: int) -> MappedRegion:
    """This rank's control region, emptied: before it joins a group, when nobody can be reading it."""
    region = arena.region(CONTROL, control_bytes(size))
    np.frombuffer(region.buffer, dtype=np.uint8)[: _ring_at(size)] = 0
    return region


@dataclass(frozen=True, slots=True)
class Place:
    """Where a payload lies: a region of the source, and an offset into it. No path: there is no payload."""

    path: str = ""
    inode: int = 0
    region_bytes: int = 0
    offset: int = 0

    def pack(self, ring_at: int = 0) -> bytes:
        """As it lies in memory; ``ring_at`` tells where a long meta is, beside it.

        Raises:
            ArenaError: the path is too long; give Spark a shorter local directory.
        """
        path = self.path.encode()
        if len(path) > _PATH_BYTES:
            raise ArenaError(
                f"the path of a region has {len(path)} bytes, at most {_PATH_BYTES} fit: set spark.local.dir to a "
                f"shorter one than that of {self.path}"
            )
        return _PLACE.pack(len(path), path, self.inode, self.region_bytes, self.offset, ring_at)

    @classmethod
    def unpack(cls, buffer: bytes | memoryview, at: int = 0) -> tuple[Place, int]:
        """What `pack` wrote: the place, and ``ring_at``."""
        length, path, inode, size, offset, ring_at = _PLACE.unpack_from(buffer, at)
        return cls(path[:length].decode(), inode, size, offset), ring_at


@dataclass(frozen=True, slots=True)
class Note:
    """One announcement: header, place of the payload, meta."""

    header: Header
    place: Place
    meta: bytes


class Control:
    """A control region, one's own or a peer's, for a group of ``size`` ranks.

    Attributes:
        words: its words.
        pages: the two pages of its rank's board.
    """

    def __init__(self, buffer: memoryview, size: int) -> None:
        """Look at the region's bytes."""
        self.words = Words(buffer)
        self._buffer = buffer
        self._size = size
        self._ring_at = _ring_at(size)
        self._ring_used = 0
        first, second = _pages_at(size), _pages_at(size) + _PAGE_BYTES
        self.pages = buffer[first:second], buffer[second : second + _PAGE_BYTES]

    @staticmethod
    def told_at(reader: int) -> int:
        """Offset of the word that counts the notes for ``reader``."""
        return _COUNTERS_AT + _LINE * reader

    def read_at(self, source: int) -> int:
        """Offset of the word that counts how many notes of ``source`` this rank has read."""
        return _COUNTERS_AT + _LINE * (self._size + source)

    def _slot(self, reader: int, count: int) -> int:
        return _COUNTERS_AT + 2 * _LINE * self._size + _SLOT_BYTES * (SLOTS * reader + count % SLOTS)

    def pack(self, note: Note) -> bytes:
        """The note as it lies in a slot; a long meta is put into the ring, once for all readers.

        Raises:
            ArenaError: the path of the payload's region is too long; give Spark a shorter local directory.
        """
        ring_at = self._lay(note.meta) if len(note.meta) > _INLINE_META_BYTES else 0
        return note.header.pack() + note.place.pack(ring_at) + (b"" if ring_at else note.meta)

    def _lay(self, meta: bytes) -> int:
        if self._ring_used + len(meta) > _RING_BYTES * self._size:
            self._ring_used = 0
        at = self._ring_at + self._ring_used
        self._buffer[at : at + len(meta)] = meta
        self._ring_used += len(meta)
        return at

    def write(self, reader: int, count: int, packed: bytes) -> None:
        """Put down the ``count``-th note for ``reader`` and raise its counter."""
        slot = self._slot(reader, count)
        self._buffer[slot : slot + len(packed)] = packed
        self.words.set(self.told_at(reader), count + 1)

    def note(self, reader: int, count: int) -> Note:
        """The ``count``-th note for ``reader``."""
        slot = self._slot(reader, count)
        header = Header.unpack(self._buffer[slot : slot + HEADER_BYTES])
        place, ring_at = Place.unpack(self._buffer, slot + HEADER_BYTES)
        start = ring_at or slot + _META_AT
        meta = bytes(self._buffer[start : start + header.meta_bytes])
        return Note(header, place, meta)

    def lay_out(self, name: str, place: Place) -> None:
        """Let the peers know where a region lies that all share.

        Raises:
            ConfigError: the name is too long, or there are too many.
        """
        count = self.words.get(LAID_AT)
        raw = name.encode()
        if len(raw) > _NAME_BYTES or count == _PLACES:
            raise ConfigError(f"shared region {name!r}: at most {_PLACES}, with names of at most {_NAME_BYTES} bytes")
        at = _LAID_PLACES_AT + count * (_NAME_BYTES + _PLACE.size)
        packed = raw.ljust(_NAME_BYTES, b"\0") + place.pack()
        self._buffer[at : at + len(packed)] = packed
        self.words.set(LAID_AT, count + 1)

    def laid_out(self, name: str) -> Place | None:
        """Where the region of that name lies, if it was laid out."""
        for number in reversed(range(self.words.get(LAID_AT))):  # the newest of a name counts
            at = _LAID_PLACES_AT + number * (_NAME_BYTES + _PLACE.size)
            if bytes(self._buffer[at : at + _NAME_BYTES]).rstrip(b"\0") == name.encode():
                return Place.unpack(self._buffer, at + _NAME_BYTES)[0]
        return None

    def fence(self) -> int:
        """The lowest generation served, as this rank or its bridge knows."""
        return int(max(_FENCES.unpack_from(self._buffer, FENCE_AT)))

    def give_up(self, why: str) -> None:
        """Leave the reason where the peers look for it."""
        reason = why.encode()[: _REASON_BYTES - 4]
        self._buffer[_REASON_AT : _REASON_AT + 4 + len(reason)] = len(reason).to_bytes(4, "little") + reason
        self.words.set(GAVE_UP_AT, 1)

    def reason(self) -> str | None:
        """Why this rank gave up, or None."""
        return self._text(_REASON_AT) if self.words.get(GAVE_UP_AT) else None

    def lost(self) -> PeerLost | None:
        """The peer that the bridge saw lost, or None."""
        lost = self.words.get(LOST_AT)
        return PeerLost(lost - 1, self._text(_LOST_REASON_AT)) if lost else None

    def _text(self, at: int) -> str:
        length = min(_REASON_BYTES - 4, int.from_bytes(self._buffer[at : at + 4], "little"))
        return bytes(self._buffer[at + 4 : at + 4 + length]).decode(errors="replace")
