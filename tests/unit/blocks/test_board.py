"""The board of ranks of one host: everybody hears everybody, in turns, or learns why not."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from harness import RUN, memory_stores, outcomes, run_ranks
from mizzle.blocks.arena import LocalArena
from mizzle.blocks.board import SharedBoard
from mizzle.blocks.deadline import Deadline
from mizzle.blocks.ids import MAX_META_BYTES
from mizzle.blocks.island import Board
from mizzle.blocks.notes import CONTROL, prepare_control
from mizzle.blocks.routed import RoutedStore
from mizzle.blocks.shared import SharedStore
from mizzle.blocks.store import BlockStore
from mizzle.errors import BlockExists, ConfigError, CorruptBlock, Fenced, PeerLost

SOON_S = 10.0


@contextmanager
def ranks(size: int) -> Iterator[tuple[list[LocalArena], list[SharedStore]]]:
    """Stores of ranks of one host, and their arenas."""
    arenas = [LocalArena() for _ in range(size)]
    controls = [prepare_control(arena, size).path for arena in arenas]
    yield (
        arenas,
        [
            SharedStore(arena, run=RUN, generation=0, rank=rank, controls=controls, timeout_s=SOON_S)
            for rank, arena in enumerate(arenas)
        ],
    )
    for arena in arenas:
        arena.close()


def board_of(store: BlockStore) -> Board:
    assert store.board is not None
    return store.board


def read(store: BlockStore, within_s: float = SOON_S) -> dict[int, bytes]:
    return {rank: bytes(view) for rank, view in board_of(store).read(Deadline.after(within_s)).items()}


def note(arena: LocalArena, at: int, value: int) -> None:
    """What a bridge writes into a control region."""
    arena.region(CONTROL, 1).buffer[at : at + 4] = value.to_bytes(4, "little")


@pytest.mark.parametrize("size", [2, 3, 5])
def test_every_rank_hears_every_other_turn_after_turn(size: int) -> None:
    turns = 200

    def message(rank: int, turn: int) -> bytes:
        length = [0, 1, 700, 5000, MAX_META_BYTES][(3 * turn + turn // 7 + rank) % 5]
        return bytes([(rank + turn) % 256]) * length

    def rank_main(store: BlockStore) -> list[dict[int, bytes]]:
        found = []
        for turn in range(turns):
            board_of(store).post(turn, 0, message(store.rank, turn))
            found.append(read(store))
            store.drop(turn, 0)
        return found

    with ranks(size) as (_, stores):
        for rank, found in enumerate(run_ranks(size, rank_main, stores=stores)):
            for turn in range(turns):
                assert found[turn] == {peer: message(peer, turn) for peer in range(size) if peer != rank}


def test_what_was_heard_stays_while_the_others_go_on_to_the_next_turn() -> None:
    with ranks(2) as (_, (a, b)):
        for store in (a, b):
            board_of(store).post(0, 0, b"first")
        heard = board_of(b).read(Deadline.after(SOON_S))[0]
        assert read(a) == {1: b"first"}
        board_of(a).post(0, 1, b"other")
        assert bytes(heard) == b"first"
        assert heard.readonly


def test_who_has_not_posted_by_the_deadline_is_left_out_and_may_still_come() -> None:
    with ranks(3) as (_, (a, b, c)):
        board_of(a).post(0, 0, b"a")
        board_of(c).post(0, 0, b"c")
        assert read(a, within_s=0.05) == {2: b"c"}
        board_of(b).post(0, 0, b"b")
        assert read(a) == {1: b"b", 2: b"c"}


def test_who_came_last_is_awaited_first_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with ranks(4) as (_, stores):
        board = board_of(stores[0])
        assert isinstance(board, SharedBoard)
        for store in stores[:3]:
            board_of(store).post(0, 0, b"")
        words = stores[0]._peers[3].control.words
        monkeypatch.setattr(words, "wait_while", lambda *_: board_of(stores[3]).post(0, 0, b""))
        assert sorted(read(stores[0])) == [1, 2, 3]
        assert board._order == [3, 1, 2]


@pytest.mark.parametrize("lost", [1, 2])
def test_a_reader_learns_that_a_peer_gave_up(lost: int) -> None:
    def rank_main(store: BlockStore) -> None:
        if store.rank == 2:
            board_of(store).post(0, 0, b"")
        if store.rank == lost:
            store.abort("coffee")
        elif store.rank == 0:
            board_of(store).post(0, 0, b"")
            board_of(store).read(Deadline.after(30))

    with ranks(3) as (_, stores):
        error = outcomes(stores, rank_main)[0]
        assert isinstance(error, PeerLost), error
        assert (error.rank, error.why) == (lost, "coffee")


def test_a_reader_learns_from_its_bridge_of_a_loss_and_of_a_fence() -> None:
    with ranks(2) as (arenas, (a, b)):
        board_of(a).post(0, 0, b"")
        note(arenas[0], 8, 2)
        with pytest.raises(PeerLost, match="rank 1 is lost"):
            read(a)
        board_of(b).post(0, 0, b"")
        assert read(a) == {1: b""}, "what was posted before a loss counts"
        note(arenas[1], 4, 3)
        with pytest.raises(Fenced, match="superseded by generation 3"):
            board_of(a).post(0, 1, b"")


def test_a_fence_ends_a_wait() -> None:
    def rank_main(store: BlockStore) -> None:
        if store.rank == 0:
            board_of(store).post(0, 0, b"")
            waits.set()
            board_of(store).read(Deadline.after(30))
        else:
            assert waits.wait(SOON_S)
            store.fence(1)

    waits = threading.Event()
    with ranks(2) as (_, stores):
        assert isinstance(outcomes(stores, rank_main)[0], Fenced)


def test_posts_under_different_names_are_refused() -> None:
    with ranks(2) as (_, (a, b)):
        board_of(a).post(0, 7, b"x")
        board_of(b).post(0, 8, b"x")
        with pytest.raises(CorruptBlock, match=r"rank 1 posted under another name than \(0, 7\)"):
            read(a)


def test_misuse_is_refused_by_name() -> None:
    with ranks(2) as (_, (a, b)):
        board = board_of(a)
        with pytest.raises(ConfigError, match=f"over the limit of {MAX_META_BYTES}"):
            board.post(0, 0, bytes(MAX_META_BYTES + 1))
        board.post(0, 0, b"")
        with pytest.raises(ConfigError, match=r"before what all posted for \(0, 0\) was read"):
            board.post(0, 1, b"")
        board_of(b).post(0, 0, b"")
        assert read(a) == {1: b""}
        with pytest.raises(BlockExists, match="never used twice"):
            board.post(0, 0, b"")
        a.drop(5, 0)
        with pytest.raises(BlockExists, match="never used twice"):
            board.post(4, 9, b"")
        a.close()
        with pytest.raises(ConfigError, match="after close"):
            board.post(6, 0, b"")
        assert a.board is None


def routed(first: BlockStore, routes: Sequence[BlockStore | None]) -> RoutedStore:
    return RoutedStore(first, {rank: store for rank, store in enumerate(routes) if store is not None}, first.islands)


def test_a_board_is_had_by_ranks_of_one_host_only() -> None:
    with ranks(3) as (arenas, stores):
        far = memory_stores(3)[0]
        assert routed(far, [None, stores[0], stores[0]]).board is stores[0].board
        assert routed(far, [None, stores[0], far]).board is None
        assert routed(far, [None, far, far]).board is None
        controls = [prepare_control(arena, 3).path for arena in arenas[:2]]
        apart = SharedStore(
            arenas[0], run=RUN, generation=0, rank=0, controls=[*controls, ""], timeout_s=SOON_S
        )  # fmt: skip
        assert apart.board is None
