"""Collectives give the same bits on every store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from contract.stores import Ranks
from harness import outcomes, run_ranks
from mizzle.blocks.store import BlockStore
from mizzle.collectives import Communicator, Exchange, ExchangeLayout, Wire
from mizzle.errors import CollectiveMismatch, CollectiveTimeout, PeerLost

Open = Callable[[int], Ranks]


def values(seed: int, num_elements: int) -> np.ndarray:
    """Numbers of very different size, so that another order of additions gives other bits."""
    random = np.random.default_rng(seed)
    wide = random.standard_normal(num_elements) * 10.0 ** random.integers(-4, 5, num_elements)
    return wide.astype(np.float32)


def tree_sum(leaves: list[np.ndarray]) -> np.ndarray:
    """The canonical order, written down a second time."""
    if len(leaves) == 1:
        return leaves[0]
    half = 1
    while half * 2 < len(leaves):
        half *= 2
    return np.asarray(tree_sum(leaves[:half]) + tree_sum(leaves[half:]))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("num_elements", [0, 1, 3, 1024, 5000, 100_003])
def test_all_reduce_is_the_tree_sum_bit_for_bit(open_ranks: Open, size: int, num_elements: int) -> None:
    def rank(store: BlockStore) -> list[bytes]:
        communicator = Communicator(store)
        return [communicator.all_reduce(values(store.rank, num_elements)).tobytes() for _ in range(3)]

    expected = tree_sum([values(r, num_elements) for r in range(size)]).tobytes()
    for found in run_ranks(size, rank, stores=open_ranks(size).stores):
        assert found == [expected] * 3


@pytest.mark.parametrize("wires", [(Wire.FP32, Wire.FP32), (Wire.BF16, Wire.FP16), (Wire.FP32, Wire.BF16)], ids=str)
@pytest.mark.parametrize("size", [2, 3, 5])
def test_an_exchange_adds_up_bucket_by_bucket(open_ranks: Open, wires: tuple[Wire, Wire], size: int) -> None:
    layout = ExchangeLayout(50_003, size, tuple((rank,) for rank in range(size)), stripe=7 * 1024)
    pattern = torch.arange(50_003, dtype=torch.float32) % 13

    def rank(store: BlockStore) -> None:
        exchange = Exchange(store, layout, wire=wires[0], weights_wire=wires[1], timeout_s=20)
        for iteration in range(4):
            torch.add(pattern, 2 * store.rank + iteration, out=exchange.contribution(exchange.nodes[0]))
            total = exchange.all_reduce(iteration, 0)
            # whole numbers below 256, which 16 bits hold as well
            assert torch.equal(total, pattern * size + size * (size - 1) + size * iteration)
        exchange.share(4, 0, b"")

    run_ranks(size, rank, stores=open_ranks(size).stores)


@pytest.mark.parametrize("wire", [None, "bf16", "fp16"])
def test_every_collective_agrees_on_all_ranks(open_ranks: Open, wire: str | None) -> None:
    size, num_elements = 3, 40_001

    def rank(store: BlockStore) -> list[bytes]:
        mine = values(store.rank, num_elements)
        with Communicator(store) as communicator:
            found = [communicator.all_reduce(mine / 1e6, wire=wire), communicator.broadcast(mine, root=1)]
            found += communicator.all_gather(mine[: 10_000 * store.rank])
            piece, where = communicator.reduce_scatter(mine)
            whole = communicator.all_reduce(mine)
            assert piece.tobytes() == whole[where.start : where.stop].tobytes()
            return [np.asarray(array).tobytes() for array in found]

    found = run_ranks(size, rank, stores=open_ranks(size).stores)
    assert found[0] == found[1] == found[2]
    assert found[0][1:] == [values(1, num_elements).tobytes()] + [
        values(r, num_elements)[: 10_000 * r].tobytes() for r in range(size)
    ]


def test_small_and_large_calls_follow_each_other_in_any_order(open_ranks: Open) -> None:
    size = 3
    lengths = [3, 70_000, 1, 9000, 0, 5, 70_000, 70_000, 2, 2]

    def rank(store: BlockStore) -> list[bytes]:
        found: list[Any] = []
        with Communicator(store) as communicator:
            for turn, num_elements in enumerate(lengths):
                mine = values(10 * turn + store.rank, num_elements)
                found.append(communicator.all_reduce(mine))
                if turn % 2:
                    communicator.barrier()
                found += communicator.all_gather(mine[: num_elements // (1 + store.rank)])
                found.append(communicator.broadcast(mine if store.rank == turn % size else None, turn % size))
                found.append(communicator.all_reduce_shards({store.rank: mine}, size))
        return [np.asarray(array).tobytes() for array in found]

    expected: list[np.ndarray] = []
    for turn, num_elements in enumerate(lengths):
        arrays = [values(10 * turn + r, num_elements) for r in range(size)]
        parts = [array[: num_elements // (1 + r)] for r, array in enumerate(arrays)]
        expected += [tree_sum(arrays), *parts, arrays[turn % size], tree_sum(arrays)]
    for found in run_ranks(size, rank, stores=open_ranks(size).stores):
        assert found == [array.tobytes() for array in expected]


@pytest.mark.parametrize("wire", list(Wire))
def test_an_exchange_gives_every_rank_the_same_weights(open_ranks: Open, wire: Wire) -> None:
    size, num_elements, iterations = 3, 9000, 5
    layout = ExchangeLayout(num_elements, 4, ((0, 1), (2,), (3,)))

    def rank(store: BlockStore) -> bytes:
        exchange = Exchange(store, layout, wire=wire, timeout_s=20)
        for iteration in range(iterations):
            for node in exchange.nodes:
                leaves = [values(100 * iteration + shard, num_elements) / 1e4 for shard in range(node.lo, node.hi)]
                exchange.contribution(node).copy_(torch.from_numpy(tree_sum(leaves)))
            exchange.publish(iteration, 0, active=exchange.nodes, meta=bytes([store.rank]))
            reduced = exchange.reduce()
            assert reduced.metas == [b"\0", b"\1", b"\2"]
            assert exchange.share(iteration, 1, b"n" * store.rank) == [b"", b"n", b"nn"]
            for master, part in zip(
                exchange.master, torch.split(reduced.total, [len(own) for own in exchange.owned]), strict=True
            ):
                master.add_(part)
            exchange.gather()
        exchange.share(iterations, 0, b"")
        return bytes(exchange.weights.numpy().tobytes())

    found = run_ranks(size, rank, stores=open_ranks(size).stores)
    assert found[0] == found[1] == found[2]
    if wire is Wire.FP32:
        expected = np.zeros(num_elements, np.float32)
        for iteration in range(iterations):
            expected += tree_sum([values(100 * iteration + s, num_elements) / 1e4 for s in range(4)])
        assert found[0] == expected.tobytes()


@pytest.mark.parametrize(("usual", "odd"), [(10, 100_000), (100_000, 10), (10, 11), (100_000, 100_001)])
def test_a_mismatch_is_refused_on_all_ranks(open_ranks: Open, usual: int, odd: int) -> None:
    def rank(store: BlockStore) -> np.ndarray:
        return np.asarray(Communicator(store).all_reduce(np.zeros(odd if store.rank == 1 else usual)))

    for found in outcomes(open_ranks(3).stores, rank):
        assert isinstance(found, CollectiveMismatch)
        assert "ranks 0, 2: all_reduce" in str(found)
        assert "rank 1: all_reduce" in str(found)


@pytest.mark.parametrize("num_elements", [10, 100_000])
def test_a_missing_rank_is_named_at_the_deadline(open_ranks: Open, num_elements: int) -> None:
    def rank(store: BlockStore) -> object:
        return Communicator(store, timeout_s=0.3).all_reduce(np.zeros(num_elements))

    found = outcomes(open_ranks(3).stores[:2], rank)
    assert any(isinstance(error, CollectiveTimeout) for error in found)
    for error in found:
        assert isinstance(error, CollectiveTimeout | PeerLost)
        assert "all_reduce (iteration 0, op 0)" in str(error)
        assert "still missing: rank 2" in str(error)
