"""Exchanges of ranks of which some see each other's memory: the same bits, and one message a node between islands."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import eventually, memory_stores, outcomes, run_ranks
from mizzle.blocks.store import BlockStore
from mizzle.collectives import Exchange, ExchangeLayout, Node, Wire
from mizzle.collectives.routes import Routes
from mizzle.errors import CollectiveMismatch, ConfigError
from unit.collectives.strict import strict_stores
from unit.collectives.test_exchange import add_to_master, gradient, present, weights_after

Islands = tuple[tuple[int, ...], ...]
PLACEMENT = ((0,), (1, 2), (3,), (), (4, 5))
DIVISIONS: list[Islands] = [
    ((0, 1, 2, 3, 4),), ((0, 1), (2, 3), (4,)), ((0, 4), (1, 2, 3)), ((0, 2, 3), (1,), (4,)), ((0, 1, 2, 4), (3,)),
]  # fmt: skip


def dealt(numbers: Sequence[int], parts: int, stream: Random) -> list[tuple[int, ...]]:
    """Numbers in random groups, of which some may be empty."""
    groups: list[list[int]] = [[] for _ in range(parts)]
    for number in numbers:
        stream.choice(groups).append(number)
    return [tuple(group) for group in groups]


@pytest.mark.parametrize("islands", DIVISIONS, ids=str)
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("num_elements", [0, 5, 30_000])
def test_the_bits_do_not_depend_on_who_sees_whose_memory(
    islands: Islands, num_elements: int, *, in_place: bool
) -> None:
    layout = ExchangeLayout(num_elements, 6, PLACEMENT, stripe=7 * 1024)
    [expected] = weights_after(ExchangeLayout(num_elements, 6, ((0, 1, 2, 3, 4, 5),)))
    for found in weights_after(layout, in_place=in_place, islands=islands):
        assert torch.equal(found, expected)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 9000), st.integers(1, 9), st.integers(0, 2**30))
def test_any_placement_on_any_islands_gives_the_same_bits(
    ranks: int, shards: int, num_elements: int, chunks: int, seed: int
) -> None:
    stream = Random(seed)  # noqa: S311 - no secrets here
    placement = tuple(dealt(range(shards), ranks, stream))
    islands = tuple(sorted(island for island in dealt(range(ranks), stream.randint(1, ranks), stream) if island))
    [expected] = weights_after(ExchangeLayout(num_elements, shards, (tuple(range(shards)),)))
    layout = ExchangeLayout(num_elements, shards, placement, stripe=chunks * 1024)
    for found in weights_after(layout, in_place=True, islands=islands):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("islands", [((0, 1, 2, 3),), ((0, 1), (2, 3)), ((0,), (1,), (2,), (3,))], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_ranks_that_announce_buckets_early_meet_ranks_that_do_not(islands: Islands, seed: int) -> None:
    layout = ExchangeLayout(40_000, 4, ((0,), (1,), (2,), (3,)), stripe=8 * 1024)

    def rank(store: BlockStore) -> torch.Tensor:
        stream = Random(10 * seed + store.rank)  # noqa: S311 - no secrets here
        exchange = Exchange(store, layout, wire=Wire.FP32, timeout_s=20)
        for iteration in range(4):
            vector = exchange.contribution(exchange.nodes[0])
            active = exchange.nodes if present(store.rank, iteration) else ()
            values = gradient(store.rank, iteration, layout.num_elements)
            if stream.random() < 0.7:
                exchange.open(iteration, 0, active=active)
                order = list(range(len(exchange.buckets)))
                stream.shuffle(order)
                for bucket in order[: stream.randint(0, len(order))]:
                    own = exchange.buckets[bucket]
                    vector[own.start : own.stop] = values[own.start : own.stop]
                    exchange.announce(bucket)
                for bucket in order:  # not those announced: the exchange has them now
                    own = exchange.buckets[bucket]
                    if bucket not in exchange_announced(exchange):
                        vector[own.start : own.stop] = values[own.start : own.stop]
            else:
                vector.copy_(values)
            exchange.publish(iteration, 0, active=active, meta=b"%d" % store.rank)
            reduced = exchange.reduce()
            assert reduced.metas == [b"0", b"1", b"2", b"3"]
            assert exchange.share(iteration, 1, b"s" * store.rank) == [b"s" * r for r in range(4)]
            add_to_master(exchange, reduced.total)
            exchange.gather()
        return exchange.weights.clone()

    found = run_ranks(4, rank, stores=memory_stores(4, in_place=True, islands=islands))
    plain = plain_weights(layout.num_elements)
    assert all(torch.equal(one, plain) for one in found)


@pytest.mark.parametrize("islands", [((0, 1, 2),), ((0, 2), (1,)), ((0,), (1,), (2,))], ids=str)
def test_a_plain_sum_lies_where_all_ranks_of_an_island_read_it(islands: Islands) -> None:
    layout = ExchangeLayout(30_000, 3, ((0,), (1,), (2,)), stripe=6 * 1024)

    def rank(store: BlockStore) -> int:
        exchange = Exchange(store, layout, wire=Wire.FP32, timeout_s=20)
        for iteration in range(5):
            exchange.contribution(exchange.nodes[0]).fill_(10.0**store.rank + iteration)
            total = exchange.all_reduce(iteration, 0)
            assert (total == 111.0 + 3 * iteration).all()
        exchange.share(5, 0, b"")
        return total.data_ptr()

    found = run_ranks(3, rank, stores=memory_stores(3, in_place=True, islands=islands))
    assert len(set(found)) == len(islands)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 6), st.integers(0, 9000), st.integers(1, 9), st.sampled_from(list(Wire)),
    st.sampled_from(list(Wire)), st.integers(0, 2**30),
)  # fmt: skip
def test_a_plain_sum_is_exact_on_any_islands_with_any_buckets_and_wires(
    ranks: int, num_elements: int, chunks: int, wire: Wire, weights_wire: Wire, seed: int
) -> None:
    stream = Random(seed)  # noqa: S311 - no secrets here
    islands = tuple(sorted(island for island in dealt(range(ranks), stream.randint(1, ranks), stream) if island))
    layout = ExchangeLayout(num_elements, ranks, tuple((rank,) for rank in range(ranks)), stripe=chunks * 1024)
    pattern = torch.arange(num_elements, dtype=torch.float32) % 13

    def rank(store: BlockStore) -> None:
        exchange = Exchange(store, layout, wire=wire, weights_wire=weights_wire, timeout_s=20)
        for iteration in range(3):
            torch.add(pattern, 2 * store.rank + iteration, out=exchange.contribution(exchange.nodes[0]))
            total = exchange.all_reduce(iteration, 0)
            # whole numbers below 256, which 16 bits hold as well
            assert torch.equal(total, pattern * ranks + ranks * (ranks - 1) + ranks * iteration)
        exchange.share(3, 0, b"")

    stores, ledger = strict_stores(ranks, islands)
    run_ranks(ranks, rank, stores=stores)
    ledger.check()


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 6), st.integers(0, 9000), st.integers(1, 9), st.sampled_from(list(Wire)),
    st.integers(0, 2**30),
)  # fmt: skip
def test_phases_and_plain_sums_take_turns_and_fetch_in_the_order_of_puts(
    ranks: int, shards: int, num_elements: int, chunks: int, weights_wire: Wire, seed: int
) -> None:
    stream = Random(seed)  # noqa: S311 - no secrets here
    placement = tuple(dealt(range(shards), ranks, stream))
    islands = tuple(sorted(island for island in dealt(range(ranks), stream.randint(1, ranks), stream) if island))
    layout = ExchangeLayout(num_elements, shards, placement, stripe=chunks * 1024)

    def rank(store: BlockStore) -> None:
        exchange = Exchange(store, layout, wire=Wire.FP32, weights_wire=weights_wire, timeout_s=20)
        for iteration in range(4):
            for node in exchange.nodes:
                exchange.contribution(node).fill_(node.hi - node.lo)
            if iteration % 2:
                found = exchange.all_reduce(iteration, 0)
            else:
                exchange.publish(iteration, 0, active=exchange.nodes, meta=b"")
                at = 0
                total = exchange.reduce().total
                for own, master in zip(exchange.owned, exchange.master, strict=True):
                    master.copy_(total[at : at + len(own)])
                    at += len(own)
                exchange.gather()
                found = exchange.weights
            assert (found == shards).all()
        exchange.share(4, 0, b"")

    stores, ledger = strict_stores(ranks, islands)
    run_ranks(ranks, rank, stores=stores)
    ledger.check()


def test_a_bucket_of_a_plain_sum_is_handed_out_as_soon_as_it_is_reduced() -> None:
    layout = ExchangeLayout(40_000, 2, ((0,), (1,)), stripe=8 * 1024)

    def rank(store: BlockStore) -> None:
        exchange = Exchange(store, layout, wire=Wire.FP32, timeout_s=20)
        exchange.all_reduce(0, 0)
        exchange.share(1, 0, b"")

    stores, ledger = strict_stores(2, ((0,), (1,)))
    run_ranks(2, rank, stores=stores)
    kinds = "".join(block.kind.name[0] for block in ledger.puts[0, 1])
    assert kinds == "C" + "CC" + "RC" * 3 + "RR" + "C", "opening, buckets, share"


def test_a_plain_sum_waits_for_nothing_that_was_begun() -> None:
    def rank(store: BlockStore) -> None:
        exchange = Exchange(store, ExchangeLayout(3000, 1, ((0,),)), wire=Wire.FP32, timeout_s=20)
        exchange.publish(0, 0, active=exchange.nodes, meta=b"")
        with pytest.raises(ConfigError, match="call it after gather"):
            exchange.all_reduce(1, 0)
        exchange.reduce()
        exchange.gather()
        exchange.all_reduce(1, 0)

    run_ranks(1, rank)


@pytest.mark.parametrize("islands", [((0, 1),), ((0,), (1,))], ids=str)
def test_a_plain_sum_does_not_meet_an_exchange_in_phases(islands: Islands) -> None:
    layout = ExchangeLayout(30_000, 2, ((0,), (1,)), stripe=6 * 1024)

    def rank(store: BlockStore) -> None:
        exchange = Exchange(store, layout, wire=Wire.FP32, timeout_s=20)
        exchange.contribution(exchange.nodes[0]).fill_(1.0)
        if store.rank:
            exchange.all_reduce(0, 0)
        else:
            exchange.publish(0, 0, active=exchange.nodes, meta=b"")
            exchange.reduce()

    for found in outcomes(memory_stores(2, in_place=True, islands=islands), rank):
        assert isinstance(found, CollectiveMismatch)
        assert "all_reduce of an exchange" in str(found)


def test_a_plain_sum_is_rounded_as_weights_are() -> None:
    def rank(store: BlockStore) -> torch.Tensor:
        layout = ExchangeLayout(30_000, 2, ((0,), (1,)), stripe=6 * 1024)
        exchange = Exchange(store, layout, wire=Wire.BF16, weights_wire=Wire.BF16, timeout_s=20)
        exchange.contribution(exchange.nodes[0]).fill_(128.0 + store.rank)
        total = exchange.all_reduce(0, 0).clone()
        exchange.share(1, 0, b"")
        return total

    for found in run_ranks(2, rank, stores=memory_stores(2, in_place=True)):
        assert (found == 256.0).all(), "257 has nine bits"


@pytest.mark.parametrize("islands", [((0, 1),), ((0,), (1,))], ids=str)
def test_buckets_are_reduced_before_the_ranks_have_published(islands: Islands) -> None:
    layout = ExchangeLayout(40_000, 2, ((0,), (1,)), stripe=8 * 1024)

    def rank(store: BlockStore) -> float:
        exchange = Exchange(store, layout, wire=Wire.FP32, timeout_s=20)
        exchange.contribution(exchange.nodes[0]).fill_(1.0)
        exchange.open(0, 0, active=exchange.nodes)
        last = len(exchange.buckets) - 1
        for bucket in (last, last - 1):
            exchange.announce(bucket)
        at = sum(map(len, exchange.owned[:last]))
        assert eventually(lambda: bool((exchange._total[at:] == 2.0).all()), within_s=20)
        exchange.publish(0, 0, active=exchange.nodes, meta=b"")
        reduced = exchange.reduce()
        assert (reduced.total == 2.0).all()
        exchange.gather()
        return reduced.hidden_s

    assert all(hidden_s > 0 for hidden_s in run_ranks(2, rank, stores=memory_stores(2, islands=islands)))


def exchange_announced(exchange: Exchange) -> set[int]:
    assert exchange._ahead is not None
    return exchange._ahead._announced


def plain_weights(num_elements: int) -> torch.Tensor:
    def rank(store: BlockStore) -> torch.Tensor:
        exchange = Exchange(store, ExchangeLayout(num_elements, 4, ((0, 1, 2, 3),)), wire=Wire.FP32, timeout_s=20)
        for iteration in range(4):
            shards = [shard for shard in range(4) if present(shard, iteration)]
            values = {shard: gradient(shard, iteration, num_elements) for shard in shards}
            vector = exchange.contribution(exchange.nodes[0])
            exchange._reducing._combiner.combine({Node(s, s + 1): v for s, v in values.items()}, vector)
            exchange.publish(iteration, 0, active=exchange.nodes if shards else (), meta=b"")
            add_to_master(exchange, exchange.reduce().total)
            exchange.gather()
        return exchange.weights.clone()

    return run_ranks(1, rank)[0]


@pytest.mark.parametrize("islands", [((0, 1), (2,)), ((0,), (1,), (2,))], ids=str)
@pytest.mark.parametrize("wire", [Wire.BF16, Wire.FP16])
@pytest.mark.parametrize("error_feedback", [False, True])
def test_narrow_wires_give_all_ranks_the_same_bits_every_run(
    islands: Islands, wire: Wire, *, error_feedback: bool
) -> None:
    layout = ExchangeLayout(20_000, 6, ((0, 1), (2, 3), (4, 5)), stripe=6 * 1024)
    how = {"weights_wire": wire, "error_feedback": error_feedback}
    first = weights_after(layout, wire, in_place=True, islands=islands, how=how)
    again = weights_after(layout, wire, in_place=True, islands=islands, how=how)
    assert all(torch.equal(found, first[0]) for found in first + again)
    assert torch.equal(first[0], first[0].to(wire.dtype).float()), "ranks compute with weights that were not rounded"
    exact = weights_after(layout)[0]
    assert not torch.equal(first[0], exact)
    assert torch.allclose(first[0], exact, rtol=0.02, atol=3.0)


def test_nothing_is_rounded_where_nothing_travels() -> None:
    layout = ExchangeLayout(20_000, 6, ((0, 1), (2, 3), (4, 5)))
    found = weights_after(layout, Wire.BF16, islands=((0, 1, 2),))
    assert all(torch.equal(one, weights_after(layout)[0]) for one in found)


def test_rounded_weights_do_not_depend_on_who_sees_whose_memory() -> None:
    layout = ExchangeLayout(20_000, 6, ((0, 1), (2, 3), (4, 5)), stripe=6 * 1024)
    how = {"weights_wire": Wire.BF16}
    near, mixed, far = (
        weights_after(layout, in_place=True, islands=islands, how=how)[0]
        for islands in (((0, 1, 2),), ((0, 2), (1,)), ((0,), (1,), (2,)))
    )
    assert torch.equal(near, mixed)
    assert torch.equal(near, far)
    assert torch.equal(near, near.bfloat16().float())


def test_error_feedback_adds_what_rounding_took_away() -> None:
    value = 1.0 + 2.0**-9  # bfloat16 has 8 bits: rounded to 1.0 alone, and to 1.0078125 with the error of before

    def total(*, error_feedback: bool) -> float:
        def rank(store: BlockStore) -> float:
            layout = ExchangeLayout(2048, 2, ((0,), (1,)))
            exchange = Exchange(store, layout, wire=Wire.BF16, error_feedback=error_feedback, timeout_s=20)
            found = 0.0
            for iteration in range(64):
                exchange.contribution(exchange.nodes[0]).fill_(value if store.rank == 1 else 0.0)
                exchange.publish(iteration, 0, active=exchange.nodes, meta=b"")
                found += float(exchange.reduce().total[0])
                exchange.gather()
            return found

        return run_ranks(2, rank)[0]

    assert total(error_feedback=False) == 64.0
    assert total(error_feedback=True) == pytest.approx(64 * value, abs=0.01)


@pytest.mark.parametrize("islands", DIVISIONS, ids=str)
def test_every_node_reaches_every_owner_once_and_every_range_every_island_once(islands: Islands) -> None:
    layout = ExchangeLayout(10_000, 6, PLACEMENT)
    routes = [Routes(layout, islands, rank) for rank in range(5)]
    for rank, own in enumerate(routes):
        shards = Counter(shard for parcel in own.incoming for shard in range(*parcel.node))
        abroad = {shard for other in range(5) if other not in own.island for shard in PLACEMENT[other]}
        assert shards == Counter(abroad)
        assert [p for other in routes for p in other.outgoing if p.owner == rank and other is not own] == sorted(
            own.incoming, key=lambda parcel: (parcel.sender, parcel.number)
        )
        assert sorted(own.readers) == [other for other in range(5) if rank in routes[other].sources]
        assert len(own.readers) == len(islands) - 1
    for parcel in (parcel for own in routes for parcel in own.outgoing):
        assert parcel.sender in {piece.rank for piece in parcel.pieces}
        assert sorted(s for piece in parcel.pieces for s in range(*piece.node)) == list(range(*parcel.node))


def test_buckets_are_cut_among_all_ranks_and_cover_the_vector() -> None:
    for num_elements in (0, 1, 1024, 100_000, 7_000_000):
        for ranks in (1, 2, 3, 8):
            layout = ExchangeLayout(num_elements, ranks, tuple((rank,) for rank in range(ranks)))
            pieces = sorted((own.start, own.stop) for rank in range(ranks) for own in layout.owned(rank))
            assert sum(stop - start for start, stop in pieces) == num_elements
            assert [start for start, _ in pieces[1:]] == [stop for _, stop in pieces[:-1]]
            lengths = [sum(map(len, layout.owned(rank))) for rank in range(ranks)]
            assert max(lengths) - min(lengths) <= 1024 * len(layout.buckets)
    with pytest.raises(ConfigError, match="multiple of 1024"):
        ExchangeLayout(10_000, 1, ((0,),), stripe=1000)


@pytest.mark.parametrize(
    ("islands", "wire", "keeps", "sends_sums"),
    [
        (((0, 1, 2),), Wire.BF16, True, False), (((0,), (1,), (2,)), Wire.FP32, True, False),
        (((0,), (1,), (2,)), Wire.BF16, False, False), (((0, 1), (2,)), Wire.FP32, False, True),
    ],
)  # fmt: skip
def test_an_exchange_says_whether_sending_writes_to_contributions(
    islands: Islands, wire: Wire, *, keeps: bool, sends_sums: bool
) -> None:
    def rank(store: BlockStore) -> tuple[bool, bool, bool]:
        layout = ExchangeLayout(30_000, 3, ((0,), (1,), (2,)), stripe=6 * 1024)
        exchange = Exchange(store, layout, wire=wire, timeout_s=20)
        mine = exchange.contribution(exchange.nodes[0]).fill_(store.rank + 1.5)
        exchange.publish(0, 0, active=exchange.nodes, meta=b"")
        exchange.reduce()
        return exchange.keeps_contributions, exchange.sends_sums, bool((mine == store.rank + 1.5).all())

    found = run_ranks(3, rank, stores=memory_stores(3, in_place=True, islands=islands))
    assert all(one[:2] == (keeps, sends_sums) for one in found)
    assert all(one[2] for one in found) == keeps


def test_error_feedback_forgets_what_is_not_finite() -> None:
    def rank(store: BlockStore) -> list[bool]:
        layout = ExchangeLayout(2048, 2, ((0,), (1,)))
        exchange = Exchange(store, layout, wire=Wire.BF16, error_feedback=True, timeout_s=20)
        finite = []
        for iteration in range(3):
            value = float("inf") if iteration == 0 and store.rank == 1 else 1.0
            exchange.contribution(exchange.nodes[0]).fill_(value)
            exchange.publish(iteration, 0, active=exchange.nodes, meta=b"")
            finite.append(bool(exchange.reduce().total.isfinite().all()))
            exchange.gather()
        return finite

    assert run_ranks(2, rank) == [[False, True, True]] * 2


def test_an_abandoned_computation_ends_the_exchange_s_thread() -> None:
    def rank(store: BlockStore) -> bool:
        exchange = Exchange(store, ExchangeLayout(4096, 1, ((0,),)), wire=Wire.FP32, timeout_s=600)
        exchange.open(0, 0, active=exchange.nodes)
        before = {thread.ident for thread in threading.enumerate() if thread.name == "mizzle-exchange"}
        exchange.abandon()
        return bool(before) and eventually(
            lambda: not before & {thread.ident for thread in threading.enumerate()}, within_s=20
        )

    assert run_ranks(1, rank) == [True]


def test_a_rank_may_compute_longer_than_it_waits_for_peers() -> None:
    def rank(store: BlockStore) -> float:
        exchange = Exchange(store, ExchangeLayout(4096, 2, ((0,), (1,))), wire=Wire.FP32, timeout_s=0.3)
        exchange.contribution(exchange.nodes[0]).fill_(1.0)
        exchange.open(0, 0, active=exchange.nodes)
        threading.Event().wait(0.8)
        exchange.publish(0, 0, active=exchange.nodes, meta=b"")
        return float(exchange.reduce().total.sum())

    assert sum(run_ranks(2, rank, stores=memory_stores(2))) == 2 * 4096
