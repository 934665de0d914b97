"""Named memory of a rank, and ranges of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Region(Protocol):
    """Named memory of a rank, in its executor's arena: it outlives the Python worker.

    Zeroed when created. The bytes may be read by peers while a block over them is announced.
    """

    name: str

    @property
    def buffer(self) -> memoryview:
        """The whole region, writable, format 'B'."""
        ...


@dataclass(frozen=True, slots=True)
class Span:
    """A range of bytes of a region: [offset, offset + length)."""

    region: Region
    offset: int
    length: int

    @property
    def view(self) -> memoryview:
        """The bytes, writable, not copied."""
        return self.region.buffer[self.offset : self.offset + self.length]
