"""States at a boundary, between ranks as threads. What executors and schedules do to them is in `tests/chaos`."""

from __future__ import annotations

import json

import pytest

from harness import memory_stores, run_ranks
from mizzle.blocks.store import BlockStore
from mizzle.collectives.handover import Handover
from mizzle.errors import CorruptBlock, StateLost
from mizzle.spark.ranks.orders import Committed
from unit.spark.ranks.keepers import KeptArena, keeper, state_of

SIZE = 2
STATES = [bytes([65 + rank]) * (3000 + rank) for rank in range(SIZE)]


@pytest.fixture
def arenas() -> list[KeptArena]:
    """Of ranks that have kept a boundary at iteration 4."""
    kept = [KeptArena() for _ in range(SIZE)]

    def keep(store: BlockStore) -> None:
        mine, between = keeper(store, kept[store.rank], Committed())
        mine.keep(4, state_of(STATES[store.rank]), between)

    run_ranks(SIZE, keep, stores=memory_stores(SIZE))
    return kept


def taken_up(arenas: list[KeptArena], kept_by: int = 0) -> list[bytes]:
    """What each rank of the next generation finds of its own, where that generation's boundary counts."""

    def collect(store: BlockStore) -> bytes:
        mine, between = keeper(store, arenas[store.rank], Committed(4, kept_by, SIZE))
        (found,) = mine.collect([[rank] for rank in range(SIZE)], lambda _of, _raw, _taker: None, between)
        return bytes(found)

    return run_ranks(SIZE, collect, stores=memory_stores(SIZE, generation=kept_by + 1))


def flip(arena: KeptArena, name: str, bit: int) -> None:
    arena.regions[name].buffer[bit // 8] ^= 1 << bit % 8


def test_what_was_kept_is_found(arenas: list[KeptArena]) -> None:
    assert taken_up(arenas) == STATES
    assert taken_up([arenas[0], KeptArena()]) == STATES, "from the buddy's copy"


def test_a_state_of_the_same_iteration_but_another_generation_is_not_used(arenas: list[KeptArena]) -> None:
    with pytest.raises(StateLost, match="state of rank"):
        taken_up(arenas, kept_by=1)


@pytest.mark.parametrize("bit", [0, 8 * 1500 + 3, 8 * len(STATES[1]) + 31])
def test_a_state_that_has_changed_in_memory_is_not_used_and_its_copy_is(arenas: list[KeptArena], bit: int) -> None:
    flip(arenas[1], "state0", bit)
    assert taken_up(arenas) == STATES


def test_a_state_and_a_copy_that_have_both_changed_are_lost(arenas: list[KeptArena]) -> None:
    flip(arenas[1], "state0", 77)
    flip(arenas[0], "copy0.0", 78)
    with pytest.raises(StateLost, match=r"state of rank 1 .* memory is damaged"):
        taken_up(arenas)


def test_a_copy_that_is_not_what_its_rank_has_written_ends_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    arenas = [KeptArena() for _ in range(SIZE)]
    hand_over = Handover.hand_over

    def damaged(between: Handover, give: object, place: object) -> object:
        taken = hand_over(between, give, place)  # type: ignore[arg-type]
        for spans in taken.values():
            spans[0].view[9] ^= 4
        return taken

    def keep(store: BlockStore) -> None:
        mine, between = keeper(store, arenas[store.rank], Committed())
        mine.keep(4, state_of(STATES[store.rank]), between)

    monkeypatch.setattr(Handover, "hand_over", damaged)
    with pytest.raises(CorruptBlock, match="fails its CRC32C"):
        run_ranks(SIZE, keep, stores=memory_stores(SIZE))
    assert all(json.loads(arena.label or b"{}") == {} for arena in arenas), "nothing counts"


def test_a_boundary_is_not_overwritten_before_the_next_one_counts(arenas: list[KeptArena]) -> None:
    def keep_again(store: BlockStore) -> None:
        mine, between = keeper(store, arenas[store.rank], Committed(4, 0, SIZE))
        mine.keep(6, state_of(b"newer"), between)

    run_ranks(SIZE, keep_again, stores=memory_stores(SIZE))
    assert taken_up(arenas) == STATES


def held(arena: KeptArena) -> set[str]:
    """The regions that take memory."""
    return {name for name, region in arena.regions.items() if len(region.buffer) > 1}


def boundaries(arenas: list[KeptArena], size: int, generation: int, since: Committed, *, first: int, last: int) -> None:
    """Ranks keep boundaries one after the other, each committed before the next."""

    def keep(store: BlockStore) -> None:
        mine, between = keeper(store, arenas[store.rank], since)
        for iteration in range(first, last + 1):
            mine.keep(iteration, state_of(bytes([store.rank, iteration]) * 2000), between)
            if iteration < last:
                mine.commit(iteration)

    run_ranks(size, keep, stores=memory_stores(size, generation=generation))


def test_copies_for_former_sources_are_freed_once_the_next_generation_has_its_own() -> None:
    arenas = [KeptArena() for _ in range(3)]
    boundaries(arenas, 3, 0, Committed(), first=1, last=2)
    doubled = next(arena for arena in arenas if "copy1.0" in arena.regions)  # of three ranks one is buddy of two
    at = arenas.index(doubled)
    assert held(doubled) == {f"{name}{turn}" for name in ("state", "copy0.", "copy1.") for turn in range(2)}
    left = [doubled, arenas[at - 1]]
    boundaries(left, 2, 1, Committed(2, 0, 3), first=2, last=2)
    assert "copy1.1" in held(doubled), "the boundary still is that of the first generation"
    boundaries(left, 2, 1, Committed(2, 1, 2), first=3, last=4)
    assert held(doubled) == {"state0", "state1", "copy0.0", "copy0.1"}
    assert set(json.loads(doubled.label)) == held(doubled)


def test_a_pinned_state_stays_while_newer_ones_are_kept_and_then_goes() -> None:
    arenas = [KeptArena() for _ in range(SIZE)]
    boundaries(arenas, SIZE, 0, Committed(), first=1, last=1)

    def keep(store: BlockStore) -> bytes:
        mine, between = keeper(store, arenas[store.rank], Committed())
        mine.commit(1)
        pinned, unpin = mine.pin()
        for iteration in range(2, 6):
            mine.keep(iteration, state_of(bytes([store.rank, iteration]) * 2000), between)
            mine.commit(iteration)
        found = bytes(pinned)
        assert "state2" in held(arenas[store.rank])
        unpin()
        for iteration in range(6, 9):
            mine.keep(iteration, state_of(bytes([store.rank, iteration]) * 2000), between)
            mine.commit(iteration)
        return found

    assert run_ranks(SIZE, keep, stores=memory_stores(SIZE)) == [bytes([rank, 1]) * 2000 for rank in range(SIZE)]
    assert held(arenas[0]) == {"state0", "state1", "copy0.0", "copy0.1"}


def test_a_state_that_has_changed_in_memory_is_not_saved(arenas: list[KeptArena]) -> None:
    flip(arenas[1], "state0", 99)

    def pin(store: BlockStore) -> None:
        mine, _ = keeper(store, arenas[store.rank], Committed(4, 0, SIZE))
        mine.pin()

    with pytest.raises(CorruptBlock, match="rank 1"):
        run_ranks(SIZE, pin, stores=memory_stores(SIZE))
