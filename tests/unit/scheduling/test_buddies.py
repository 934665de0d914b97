from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from mizzle.scheduling.buddies import Place, buddies

PLACES = st.lists(st.builds(Place, st.sampled_from("abcd"), st.sampled_from("1234")), min_size=1, max_size=17).map(
    lambda places: [Place(place.host, place.host + place.executor) for place in places]
)


def even(hosts: int, executors: int, ranks: int) -> list[Place]:
    """So many ranks on each executor, and executors on each host."""
    return [
        Place(f"h{host}", f"h{host}e{executor}")
        for host in range(hosts) for executor in range(executors) for _ in range(ranks)
    ]  # fmt: skip


@given(PLACES)
def test_a_copy_is_as_far_away_as_any_rank_is(places: list[Place]) -> None:
    for rank, (mine, buddy) in enumerate(zip(places, buddies(places), strict=True)):
        if buddy is None:
            assert {place.executor for place in places} == {mine.executor}
        elif any(place.host != mine.host for place in places):
            assert places[buddy].host != mine.host
        else:
            assert places[buddy].executor != mine.executor, rank


@given(st.integers(1, 6), st.integers(1, 3), st.integers(1, 3))
def test_even_clusters_are_paired_so_that_few_losses_of_two_cost_both_copies(h: int, e: int, r: int) -> None:
    places = even(h, e, r)
    found = buddies(places)
    if h * e == 1:
        assert set(found) == {None}
        return
    kept = Counter(buddy for buddy in found if buddy is not None)
    assert sum(kept.values()) == len(places)
    if h % 2 == 0 or (h == 1 and e % 2 == 0):
        assert all(found[buddy] == rank for rank, buddy in enumerate(found) if buddy is not None), "pairs"
        assert set(kept.values()) == {1}


def test_odd_ones_out_are_kept_by_a_rank_that_keeps_two() -> None:
    assert buddies(even(3, 1, 1)) == (1, 0, 0)


def test_everybody_on_one_executor_has_nobody() -> None:
    assert buddies(even(1, 1, 4)) == (None,) * 4
