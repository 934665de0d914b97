"""Bytes handed from rank to rank arrive whole on every store."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from contract.stores import Ranks
from harness import outcomes, run_ranks
from mizzle.blocks.region import Span
from mizzle.blocks.store import BlockStore
from mizzle.collectives import Communicator, handover
from mizzle.errors import PeerLost

Open = Callable[[int], Ranks]


def bytes_for(source: int, taker: int, number: int) -> bytes:
    length = [0, 1, 4096, 70_001, 0][(source + taker + number) % 5]
    return np.random.default_rng((source, taker, number)).bytes(length)


def spans(store: BlockStore, name: str, lengths: Sequence[int]) -> list[Span]:
    region, found, at = store.region(name, max(1, sum(lengths))), [], 0
    for length in lengths:
        found.append(Span(region, at, length))
        at += length
    return found


def given(store: BlockStore, iteration: int) -> dict[int, list[Span]]:
    """Some ranks give nothing, some to nobody in particular, some several things."""
    gifts = {}
    for taker in range(store.size):
        if taker != store.rank and (taker + store.rank + iteration) % 3:
            bodies = [bytes_for(store.rank, taker, number) for number in range(1 + store.rank % 3)]
            gifts[taker] = spans(store, f"give{iteration % 2}.{taker}", [len(body) for body in bodies])
            for span, body in zip(gifts[taker], bodies, strict=True):
                span.view[:] = body
    return gifts


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_everybody_gets_what_was_given_to_him_and_no_more(
    open_ranks: Open, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "_PIECE_BYTES", 10_000)

    def rank(store: BlockStore) -> None:
        between = Communicator(store).handover
        for iteration in range(3):
            taken = between.hand_over(
                given(store, iteration), lambda source, lengths: spans(store, f"take.{source}", lengths)
            )
            sources = [s for s in range(store.size) if s != store.rank and (store.rank + s + iteration) % 3]
            assert sorted(taken) == sources
            for source, found in taken.items():
                expected = [bytes_for(source, store.rank, number) for number in range(1 + source % 3)]
                assert [bytes(span.view) for span in found] == expected

    run_ranks(size, rank, stores=open_ranks(size).stores)


def test_who_waits_for_one_that_is_gone_is_told(open_ranks: Open) -> None:
    def rank(store: BlockStore) -> None:
        if store.rank == 1:
            store.abort("its memory was lost")
            return
        Communicator(store).handover.hand_over({}, lambda _source, lengths: spans(store, "take", lengths))

    found = outcomes(open_ranks(2).stores, rank)
    assert isinstance(found[0], PeerLost)
