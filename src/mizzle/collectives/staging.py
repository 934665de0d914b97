"""Memory for collectives on arrays that live elsewhere: two outgoing regions, used in turn, and an incoming one.

A collective's outgoing bytes must stay until all peers have finished it, which completing the next one proves: hence
two. Regions grow to the next power of two and are kept.
"""

from __future__ import annotations

from collections.abc import Sequence

from mizzle.blocks.region import Region, Span
from mizzle.blocks.store import BlockStore

_PAGE_BYTES = 4096
_LINE_BYTES = 64


class Staging:
    """Regions "staging0", "staging1" and "incoming" of one rank."""

    def __init__(self, store: BlockStore) -> None:
        """Creates nothing yet."""
        self._store = store
        self._regions: dict[str, Region] = {}

    def outgoing(self, parity: int, sizes: Sequence[int]) -> list[Span]:
        """Spans of these many bytes, which peers may read; whatever had this parity before is overwritten."""
        return self._spans(f"staging{parity}", sizes)

    def incoming(self, sizes: Sequence[int]) -> list[Span]:
        """Spans of these many bytes to fetch into; whatever was there is overwritten."""
        return self._spans("incoming", sizes)

    def _spans(self, name: str, sizes: Sequence[int]) -> list[Span]:
        offsets = [0]
        for size in sizes:
            offsets.append(offsets[-1] + -(-size // _LINE_BYTES) * _LINE_BYTES)
        region = self._regions.get(name)
        if region is None or len(region.buffer) < offsets[-1]:
            num_bytes = max(_PAGE_BYTES, 1 << (offsets[-1] - 1).bit_length()) if offsets[-1] else _PAGE_BYTES
            region = self._regions[name] = self._store.region(name, num_bytes)
        return [Span(region, offset, size) for offset, size in zip(offsets, sizes, strict=False)]
