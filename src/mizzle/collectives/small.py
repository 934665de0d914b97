"""Reductions of small arrays in one round: every rank tells all its whole array, and each adds up all for itself.

For a few kilobytes the price is that of waiting, not of bytes or sums: one round instead of two. Each element is added
in the order of the canonical tree, as the owner of its slice would: neighbours first, then neighbouring pairs, and so
on, whoever is left over going up as he is, which is what splitting at the largest power of two comes to (`tree`).
"""

from __future__ import annotations

import torch

from mizzle.collectives.arrays import Formats
from mizzle.collectives.collective import Collective, Said
from mizzle.collectives.combine import OPERATIONS
from mizzle.errors import CollectiveMismatch

EAGER_BYTES = 32 * 1024
"""What travels inside a first round at most, from one rank: it fits a block's meta."""
_INCOMING_BYTES = 8 * EAGER_BYTES
"""The same from all ranks together: beyond, slices move fewer bytes than whole arrays, and add up sooner."""
_MAX_KEPT = 16
"""Kinds of calls whose memory is kept: a program makes few, and one that makes many starts over."""


class SmallReductions:
    """The small reductions of one rank: what is needed for each kind of call is made once."""

    def __init__(self, size: int, rank: int) -> None:
        """For rank ``rank`` of ``size``."""
        self._size, self._rank = size, rank
        self._kept: dict[tuple[int, Formats, str], SmallReduction] = {}

    def fits(self, num_elements: int, formats: Formats) -> bool:
        """Whether arrays of so many elements are reduced here; all ranks say the same."""
        num_bytes = num_elements * formats.contribution.itemsize
        return num_bytes <= EAGER_BYTES and num_bytes * self._size <= _INCOMING_BYTES

    def all_reduce(self, collective: Collective, flat: torch.Tensor, formats: Formats, op: str) -> torch.Tensor:
        """The reduction (n,) of every rank's ``flat`` (n,), in the native type. One step, (N-1) n elements in."""
        key = len(flat), formats, op
        reduction = self._kept.get(key)
        if reduction is None:
            if len(self._kept) >= _MAX_KEPT:
                self._kept.clear()
            reduction = self._kept[key] = SmallReduction(self._size, self._rank, len(flat), formats, op)
        collective.tell(reduction.pack(flat))
        return reduction.reduce(collective.listen())


class SmallReduction:
    """Memory for one reduction, and views of it, kept from call to call: making them costs more than the sums.

    Args:
        size: number of ranks.
        rank: this one.
        num_elements: n, of each array.
        formats: element types.
        op: "sum", "mean", "max" or "min".
    """

    def __init__(self, size: int, rank: int, num_elements: int, formats: Formats, op: str) -> None:
        """Allocate ``size`` rows of contributions, and as many in all for the sums of each level of the tree."""
        self._formats, self._operation, self._op = formats, OPERATIONS[op], op
        self._arrived = torch.empty((size, num_elements), dtype=formats.contribution)
        self._own = self._arrived[rank]
        self._rows = [memoryview(row) for row in self._arrived.view(torch.uint8).numpy()]
        self._own_row = self._rows[rank]
        is_wide = formats.contribution == formats.accumulator
        self._widened = self._arrived if is_wide else torch.empty_like(self._arrived, dtype=formats.accumulator)
        self._levels, self._total = _levels(self._widened)

    def pack(self, flat: torch.Tensor) -> bytes:
        """What this rank tells the others: ``flat`` (n,), rounded to the type in which it travels."""
        self._own.copy_(flat)
        return self._own_row.tobytes()

    def reduce(self, said: list[Said]) -> torch.Tensor:
        """The reduction (n,) of what all ranks said, in the native type and memory of its own.

        Raises:
            CollectiveMismatch: somebody sent another number of bytes than was agreed.
        """
        for rank, (row, (_, body)) in enumerate(zip(self._rows, said, strict=True)):
            if len(body) != row.nbytes:
                raise CollectiveMismatch(f"rank {rank} sent {len(body)} bytes where {row.nbytes} were agreed")
            row[:] = body
        if self._widened is not self._arrived:
            self._widened.copy_(self._arrived)
        for left, right, out, left_over, carried in self._levels:
            self._operation(left, right, out=out)
            if left_over is not None and carried is not None:
                carried.copy_(left_over)
        total = self._total
        if self._op == "mean":
            total = total.div(len(self._rows))
        return total.to(self._formats.result).to(self._formats.native, copy=True)


_Level = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]
"""(left, right) -> out, and a row without neighbour -> where it is carried to."""


def _levels(rows: torch.Tensor) -> tuple[list[_Level], torch.Tensor]:
    """The steps of the tree over ``rows`` (N, n), level by level, and where the result (n,) will be."""
    levels: list[_Level] = []
    while len(rows) > 1:
        pairs = len(rows) // 2
        upper = torch.empty((len(rows) - pairs, rows.shape[1]), dtype=rows.dtype)
        left, right = rows[0 : 2 * pairs : 2], rows[1 : 2 * pairs : 2]
        left_over, carried = (rows[-1], upper[-1]) if len(rows) % 2 else (None, None)
        levels.append((left, right, upper[:pairs], left_over, carried))
        rows = upper
    return levels, rows[0]
