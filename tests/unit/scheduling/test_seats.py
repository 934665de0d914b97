from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from mizzle.scheduling.plan import spread
from mizzle.scheduling.seats import Seat, moves, reseat

EXECUTORS = st.sampled_from("abcdefg")
SLOTS = st.dictionaries(EXECUTORS, st.integers(1, 3), max_size=7)


def seats(ranks: int, shards: int, executors: list[str]) -> list[Seat]:
    return [Seat(executors[rank % len(executors)], held) for rank, held in enumerate(spread(shards, ranks))]


@given(st.integers(1, 9), st.integers(0, 30), st.lists(EXECUTORS, min_size=1), SLOTS, SLOTS, st.integers(1, 9))
def test_every_shard_is_held_once_and_evenly_where_there_is_room(
    ranks: int, more: int, executors: list[str], first: dict[str, int], then: dict[str, int], most: int
) -> None:
    found = seats(ranks, ranks + more, executors)
    for slots in (first, then, {"z": 2}):
        found = reseat(found, slots, most)
        assert len(found) == min(most, ranks + more, sum(slots.values()))
        if not found:
            return
        assert sorted(shard for seat in found for shard in seat.shards) == list(range(ranks + more))
        sizes = [len(seat.shards) for seat in found]
        assert max(sizes) - min(sizes) <= 1
        assert all(list(seat.shards) == sorted(seat.shards) for seat in found)
        used = Counter(seat.executor for seat in found)
        assert all(count <= slots[executor] for executor, count in used.items())


def test_nobody_moves_when_nobody_is_gone() -> None:
    before = seats(4, 10, ["a", "b", "c", "d"])
    assert reseat(before, dict.fromkeys("abcde", 1), 4) == before


def test_a_new_executor_takes_the_place_of_the_lost_one_and_nothing_else_changes() -> None:
    before = seats(4, 10, ["a", "b", "c", "d"])
    after = reseat(before, dict.fromkeys("abde", 1), 4)
    assert after == [*before[:2], Seat("e", before[2].shards), before[3]]


def test_without_a_new_one_the_others_share_and_keep_what_they_had() -> None:
    before = seats(4, 4, ["a", "b", "c", "d"])
    after = reseat(before, dict.fromkeys("acd", 1), 4)
    assert [seat.executor for seat in after] == ["a", "d", "c"], "whose number is still in use keeps it"
    assert [seat.shards for seat in after] == [(0, 1), (3,), (2,)]
    again = reseat(after, dict.fromkeys("acde", 1), 4)
    assert [seat.executor for seat in again] == ["a", "d", "c", "e"]
    assert [seat.shards for seat in again] == [(0,), (3,), (2,), (1,)]


def test_ranks_share_an_executor_only_where_they_must() -> None:
    after = reseat(seats(4, 4, ["a", "b", "c", "d"]), {"a": 4, "x": 4, "y": 4}, 4)
    assert Counter(seat.executor for seat in after) == {"a": 2, "x": 1, "y": 1}


@given(st.integers(2, 6), st.integers(0, 200))
def test_shards_move_only_for_the_balance(ranks: int, more: int) -> None:
    names = [f"e{rank}" for rank in range(ranks)]
    before = seats(ranks, ranks + more, names)
    after = reseat(before, dict.fromkeys(names[1:], 1), ranks)
    held = {seat.executor: set(seat.shards) for seat in after}
    for seat in before[1:]:
        assert set(seat.shards) <= held[seat.executor]


def test_a_rank_that_had_to_share_leaves_for_an_executor_that_has_come() -> None:
    before = seats(3, 6, ["a", "b", "c"])
    crowded = reseat(before, {"a": 2, "b": 2}, 3, 1)
    assert Counter(seat.executor for seat in crowded) == {"a": 2, "b": 1}
    assert not moves(crowded, {"a": 2, "b": 2}, 1), "there is no better place"
    assert moves(crowded, {"a": 2, "b": 2, "d": 2}, 1)
    after = reseat(crowded, {"a": 2, "b": 2, "d": 2}, 3, 1)
    assert Counter(seat.executor for seat in after) == {"a": 1, "b": 1, "d": 1}
    assert [seat.shards for seat in after] == [seat.shards for seat in crowded], "shards move with their rank"
    assert not moves(after, {"a": 2, "b": 2, "d": 2}, 1)


def test_ranks_that_shared_from_the_start_stay() -> None:
    before = seats(4, 4, ["a", "a", "b", "b"])
    assert not moves(before, {"a": 4, "b": 4, "c": 4}, 2)
    assert reseat(before, {"a": 4, "b": 4, "c": 4}, 4, 2) == before


@given(st.integers(1, 6), st.integers(0, 12), st.lists(EXECUTORS, min_size=1), SLOTS, SLOTS, st.integers(1, 3))
def test_nobody_shares_while_an_executor_is_empty_and_moves_once(
    ranks: int, more: int, executors: list[str], first: dict[str, int], then: dict[str, int], share: int
) -> None:
    found = seats(ranks, ranks + more, executors)
    for slots in (first, then):
        found = reseat(found, slots, ranks, share)
        if not found:
            return
        used = Counter(seat.executor for seat in found)
        assert all(count <= slots[executor] for executor, count in used.items())
        assert max(used.values()) <= share or not set(slots) - set(used)
        assert sorted(shard for seat in found for shard in seat.shards) == list(range(ranks + more))
        assert not moves(found, slots, share)
