"""Ranks as threads: run the same function on every rank and hand back what each returned (after gloo's base_test.h).

A rank that fails aborts its store, so that its peers need not wait for their deadline; what hangs nevertheless is named
with its stack. Nothing here sleeps.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import TypeVar

from mizzle.blocks.deadline import Deadline
from mizzle.blocks.memory import MemoryFabric
from mizzle.blocks.store import BlockStore
from mizzle.errors import PeerLost

RUN = "0123456789abcdef" * 2
DEADLINE_S = 60.0

T = TypeVar("T")


def eventually(condition: Callable[[], bool], *, within_s: float) -> bool:
    """Look again and again until the condition holds; whether it came to hold in time."""
    deadline = Deadline.after(within_s)
    pause = threading.Event()
    while not condition():
        if deadline.passed:
            return False
        pause.wait(0.005)
    return True


def memory_stores(
    size: int, *, generation: int = 0, in_place: bool = False, islands: tuple[tuple[int, ...], ...] | None = None
) -> list[BlockStore]:
    """One store a rank over a fabric of their own; ranks of an island see each other's memory."""
    fabric = MemoryFabric(size, in_place=in_place, islands=islands)
    return [fabric.store(rank, run=RUN, generation=generation) for rank in range(size)]


def outcomes(stores: Sequence[BlockStore], fn: Callable[[BlockStore], T]) -> list[T | BaseException]:
    """Run ``fn(store)`` on every rank at once; by rank, what it returned or raised."""
    found: dict[int, T | BaseException] = {}

    def rank_main(store: BlockStore) -> None:
        try:
            found[store.rank] = fn(store)
        except BaseException as error:  # noqa: BLE001 - handed to the test, which judges it
            found[store.rank] = error
            store.abort(f"{type(error).__name__}: {error}")

    threads = {
        s.rank: threading.Thread(target=rank_main, args=(s,), name=f"rank-{s.rank}", daemon=True) for s in stores
    }
    for thread in threads.values():
        thread.start()
    deadline = Deadline.after(DEADLINE_S)
    for thread in threads.values():
        thread.join(deadline.remaining_s())
    hanging = {rank: thread for rank, thread in threads.items() if thread.is_alive()}
    if hanging:
        frames = sys._current_frames()
        stacks = "".join(
            f"\nrank {rank}:\n" + "".join(traceback.format_stack(frames[thread.ident]))
            for rank, thread in hanging.items()
            if thread.ident in frames
        )
        raise AssertionError(f"ranks {sorted(hanging)} still run after {DEADLINE_S} s{stacks}")
    return [found[store.rank] for store in stores]


def run_ranks(size: int, fn: Callable[[BlockStore], T], *, stores: Sequence[BlockStore] | None = None) -> list[T]:
    """Run ``fn(store)`` on ``size`` ranks at once; what each returned, by rank.

    Args:
        size: number of ranks.
        fn: what a rank does.
        stores: one a rank; without them ranks meet over a memory fabric of their own.

    Raises:
        BaseException: what the first rank to fail raised; a rank that merely lost such a peer is not the first.
    """
    found = outcomes(stores if stores is not None else memory_stores(size), fn)
    errors = [outcome for outcome in found if isinstance(outcome, BaseException)]
    errors.sort(key=lambda error: isinstance(error, PeerLost))  # the cause before what it caused
    if errors:
        raise errors[0]
    return [outcome for outcome in found if not isinstance(outcome, BaseException)]
