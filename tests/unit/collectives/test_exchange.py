"""The exchange of a training iteration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from harness import memory_stores, run_ranks
from mizzle.blocks.store import BlockStore
from mizzle.collectives import Exchange, ExchangeLayout, Node, Wire
from mizzle.collectives.combine import TreeCombiner

ITERATIONS = 3


def gradient(shard: int, iteration: int, num_elements: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * iteration + shard)
    return torch.randn(num_elements, generator=generator) * 10.0 ** (shard % 5 - 2)


def present(shard: int, iteration: int) -> bool:
    """Some shards have no row in some iterations; in the last one nobody has."""
    return (shard + iteration) % 3 != 0 and iteration != ITERATIONS - 1


def add_to_master(exchange: Exchange, total: torch.Tensor) -> None:
    """What stands for an optimizer."""
    for master, part in zip(exchange.master, torch.split(total, [len(own) for own in exchange.owned]), strict=True):
        master.add_(part)


def weights_after(
    layout: ExchangeLayout, wire: Wire = Wire.FP32, *, in_place: bool = False,
    islands: tuple[tuple[int, ...], ...] | None = None, how: Mapping[str, Any] | None = None,
) -> list[torch.Tensor]:  # fmt: skip
    """Every rank's weights after some iterations of adding the sum of gradients."""

    def rank(store: BlockStore) -> torch.Tensor:
        exchange = Exchange(store, layout, wire=wire, timeout_s=20, **(how or {}))
        for iteration in range(ITERATIONS):
            active: list[Node] = []
            for node in exchange.nodes:
                shards = [shard for shard in range(*node) if present(shard, iteration)]
                held = {Node(s, s + 1): gradient(s, iteration, layout.num_elements) for s in shards}
                exchange.contribution(node).fill_(float("nan"))
                if held:
                    TreeCombiner(layout.num_shards).combine(held, exchange.contribution(node))
                    active.append(node)
            exchange.publish(iteration, 0, active=active, meta=b"m%d" % store.rank)
            reduced = exchange.reduce()
            assert reduced.metas == [b"m%d" % r for r in range(store.size)]
            add_to_master(exchange, reduced.total)
            exchange.gather()
        return exchange.weights.clone()

    size = len(layout.shards_of_rank)
    return run_ranks(size, rank, stores=memory_stores(size, in_place=in_place, islands=islands))


PLACEMENTS = [
    ((0, 1, 2, 3, 4, 5),), ((0, 1, 2), (3, 4, 5)), ((5, 0, 3), (1, 2, 4)), ((), (0, 1, 2, 3, 4, 5)),
    ((0,), (1,), (2,), (3,), (4,), (5,)), ((0, 1), (2, 3, 5), (4,), ()),
]  # fmt: skip


@pytest.mark.parametrize("num_elements", [0, 1, 100, 3001])
@pytest.mark.parametrize("placement", PLACEMENTS, ids=str)
def test_weights_have_the_bits_of_one_process_whatever_the_placement(
    num_elements: int, placement: tuple[tuple[int, ...], ...]
) -> None:
    expected = torch.zeros(num_elements)
    for iteration in range(ITERATIONS):
        total = torch.empty(num_elements)
        shards = [s for s in range(6) if present(s, iteration)]
        TreeCombiner(6).combine({Node(s, s + 1): gradient(s, iteration, num_elements) for s in shards}, total)
        expected += total
    for found in weights_after(ExchangeLayout(num_elements, 6, placement)):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("wire", [Wire.BF16, Wire.FP16])
@pytest.mark.parametrize("in_place", [False, True])
def test_a_narrow_wire_gives_all_ranks_the_same_bits_every_run(wire: Wire, *, in_place: bool) -> None:
    layout = ExchangeLayout(2500, 4, ((0, 1), (2,), (3,)))
    first = weights_after(layout, wire, in_place=in_place)
    assert all(torch.equal(found, first[0]) for found in first + weights_after(layout, wire))
    exact = weights_after(layout)[0]
    assert not torch.equal(first[0], exact)
    assert torch.allclose(first[0], exact, rtol=0.02, atol=0.5)


def test_contributions_and_weights_lie_in_named_regions() -> None:
    [store] = memory_stores(1)
    exchange = Exchange(store, ExchangeLayout(10, 3, ((0, 1, 2),)), wire=Wire.FP32, timeout_s=1)
    exchange.weights[0] = 1.5
    exchange.contribution(exchange.nodes[0])[1] = 2.5
    assert torch.frombuffer(store.region("shared.weights.0", 40).buffer, dtype=torch.float32)[0] == 1.5
    assert torch.frombuffer(store.region("gradients.0", 40).buffer, dtype=torch.float32)[1] == 2.5


def test_another_vector_can_be_gathered_in_place_of_the_weights() -> None:
    def rank(store: BlockStore) -> torch.Tensor:
        exchange = Exchange(store, ExchangeLayout(5000, 2, ((0,), (1,))), wire=Wire.FP32, timeout_s=10)
        exchange.contribution(exchange.nodes[0]).fill_(store.rank + 1.0)
        exchange.publish(0, 0, active=exchange.nodes, meta=b"")
        reduced = exchange.shared_vector("reduced")
        total, at = exchange.reduce().total, 0
        for own in exchange.owned:
            reduced[own.start : own.stop] = total[at : at + len(own)]
            at += len(own)
        exchange.gather("reduced")
        assert not exchange.weights.any()
        return reduced.clone()

    for found in run_ranks(2, rank):
        assert torch.equal(found, torch.full((5000,), 3.0))


def test_blocks_of_past_iterations_do_not_pile_up() -> None:
    held: list[int] = []

    def rank(store: BlockStore) -> None:
        exchange = Exchange(store, ExchangeLayout(100, 2, ((0,), (1,))), wire=Wire.FP32, timeout_s=10)
        for iteration in range(20):
            exchange.publish(iteration, 0, active=exchange.nodes, meta=b"")
            exchange.reduce()
            exchange.share(iteration, 1, b"")
            exchange.gather()
            if store.rank == 0:
                held.append(store._fabric.num_blocks())  # type: ignore[attr-defined]

    run_ranks(2, rank)
    assert max(held) <= 2 * 2 * 4
