from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mizzle.errors import StateLost
from mizzle.spark.ranks.boundary import givers

RANKS = st.integers(1, 6)


@given(st.data(), RANKS, RANKS)
def test_everybody_gets_what_he_needs_and_has_not_once_and_from_one_who_has_it(
    data: st.DataObject, then: int, now: int
) -> None:
    states = st.sets(st.integers(0, then - 1))
    told = [data.draw(states) for _ in range(now)]
    needs = [sorted(data.draw(states)) for _ in range(now)]
    wanted = {of for one in needs for of in one}
    if wanted - set().union(*told):
        with pytest.raises(StateLost):
            givers(told, needs)
        return
    given_to: dict[tuple[int, int], int] = {}
    for (giver, of), takers in givers(told, needs).items():
        assert of in told[giver]
        for taker in takers:
            assert (taker, of) not in given_to, "once"
            given_to[taker, of] = giver
    missing = {(rank, of) for rank, one in enumerate(needs) for of in one if of not in told[rank]}
    assert set(given_to) == missing


def test_a_state_that_nobody_has_is_named() -> None:
    with pytest.raises(StateLost, match="state of rank 2"):
        givers([[0], [1]], [[0, 1, 2], []])
