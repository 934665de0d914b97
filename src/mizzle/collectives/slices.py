"""How a flat vector is cut into slices, one a rank. The only place where that formula exists. Pure.

Aligned starts let vectorised kernels meet the same elements in the same way whoever owns them (BigDL's
``AllReduceParameter`` cut at arbitrary elements), so that the bits of an update do not depend on the number of ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from mizzle.errors import ConfigError

ALIGNMENT = 1024
"""Elements. Slices start at multiples of it; it is also the chunk over which norms are summed."""


@dataclass(frozen=True, slots=True)
class Slice:
    """The contiguous range [start, stop) of the flat vector, in elements; may be empty."""

    start: int
    stop: int

    def __len__(self) -> int:
        """Number of elements."""
        return self.stop - self.start

    def of_bytes(self, element_bytes: int) -> tuple[int, int]:
        """Offset and length in bytes, for elements of ``element_bytes``."""
        return self.start * element_bytes, len(self) * element_bytes


def slices(num_elements: int, num_ranks: int, alignment: int = ALIGNMENT) -> tuple[Slice, ...]:
    """Cut [0, num_elements) into one slice a rank: in order, covering, balanced to one alignment unit.

    Args:
        num_elements: length of the flat vector, >= 0; the last unit is cut there.
        num_ranks: number of slices, >= 1; some are empty when there are fewer units than ranks.
        alignment: elements; every slice starts at a multiple of it, or at ``num_elements`` when it is empty.

    Raises:
        ConfigError: an argument is out of its range.
    """
    if num_elements < 0 or num_ranks < 1 or alignment < 1:
        raise ConfigError(f"cannot cut {num_elements} elements into {num_ranks} slices aligned to {alignment}")
    units = -(-num_elements // alignment)
    cuts = [min(num_elements, alignment * (units * i // num_ranks)) for i in range(num_ranks + 1)]
    return tuple(Slice(start, stop) for start, stop in pairwise(cuts))
