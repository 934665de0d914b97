"""How the flat vector is cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mizzle.collectives.slices import ALIGNMENT, Slice, slices
from mizzle.errors import ConfigError


@given(st.integers(0, 10**7), st.integers(1, 600), st.sampled_from([1, 2, 8, 1000, ALIGNMENT]))
def test_slices_cover_never_overlap_and_are_balanced_to_one_unit(
    num_elements: int, num_ranks: int, alignment: int
) -> None:
    cut = slices(num_elements, num_ranks, alignment)
    assert len(cut) == num_ranks
    assert cut[0].start == 0
    assert cut[-1].stop == num_elements
    assert all(a.stop == b.start and len(a) >= 0 for a, b in pairwise(cut))
    assert all(piece.start % alignment == 0 or piece.start == num_elements for piece in cut)
    units = [-(-len(piece) // alignment) for piece in cut]
    assert max(units) - min(units) <= 1


def test_fewer_units_than_ranks_leave_some_slices_empty() -> None:
    assert sorted(map(len, slices(1, 3))) == [0, 0, 1]


def test_bytes_of_a_slice() -> None:
    assert Slice(1024, 1030).of_bytes(4) == (4096, 24)


@pytest.mark.parametrize("arguments", [(-1, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_what_cannot_be_cut_is_refused(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match="cannot cut"):
        slices(*arguments)
