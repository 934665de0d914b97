"""What an all-reduce costs in messages, bytes and memory: counted, and compared with docs/collectives.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import pytest
import torch

from harness import RUN, memory_stores, run_ranks
from mizzle.blocks.deadline import Deadline
from mizzle.blocks.ids import BlockId, DType, Kind
from mizzle.blocks.island import Board
from mizzle.blocks.memory import MemoryFabric, MemoryPending, MemoryRegion, MemoryStore
from mizzle.blocks.region import Span
from mizzle.blocks.store import BlockStore, Fetched
from mizzle.collectives import Communicator, Exchange, ExchangeLayout, Wire
from mizzle.collectives.routes import Routes
from mizzle.collectives.tree import cover
from mizzle.collectives.window import Window
from mizzle.scheduling.cost import CostModel

Islands = tuple[tuple[int, ...], ...]


@dataclass
class Counts:
    """Of one kind of block: how many were announced (once for each reader) and taken in, and their payload's bytes."""

    told: int = 0
    told_bytes: int = 0
    taken: int = 0
    taken_bytes: int = 0


@dataclass
class Counted:
    """What went through one rank's store: payloads by kind, messages without payload, and posts on a board."""

    messages: Counts = field(default_factory=Counts)
    contributions: Counts = field(default_factory=Counts)
    results: Counts = field(default_factory=Counts)
    posts: int = 0

    def of(self, kind: Kind, num_bytes: int) -> Counts:
        if not num_bytes:
            return self.messages
        return self.contributions if kind is Kind.CONTRIBUTION else self.results


class CountingBoard:
    """A board that counts what its rank posts."""

    def __init__(self, board: Board, counted: Counted) -> None:
        self._board, self._counted = board, counted

    def post(self, iteration: int, op: int, message: bytes) -> None:
        self._counted.posts += 1
        self._board.post(iteration, op, message)

    def read(self, deadline: Deadline) -> dict[int, memoryview]:
        return self._board.read(deadline)


class CountingPending(MemoryPending):
    """A fetch that is counted when it has come."""

    counted: Counted

    def wait(self, deadline: Deadline) -> Fetched:
        block = super().wait(deadline)
        counts = self.counted.of(block.header.block.kind, len(block.payload))
        counts.taken += 1
        counts.taken_bytes += len(block.payload)
        return block


class CountingStore(MemoryStore):
    """A memory store that counts what passes."""

    def __init__(self, fabric: MemoryFabric, rank: int) -> None:
        super().__init__(fabric, rank, run=RUN, generation=0)
        self.counted = Counted()
        if len(self.island.ranks) > 1:
            self.island.board = CountingBoard(self.island.board, self.counted)
        self.board = self.island.board if len(self.island.ranks) == self.size > 1 else None

    def put(self, block: BlockId, payload: Span | None, *, meta: bytes, dtype: DType, to: Sequence[int]) -> None:
        num_bytes = payload.length if payload else 0
        counts = self.counted.of(block.kind, num_bytes)
        counts.told += len(to)
        counts.told_bytes += num_bytes * len(to)
        super().put(block, payload, meta=meta, dtype=dtype, to=to)

    def fetch(self, block: BlockId, into: Span | None) -> MemoryPending:
        pending = CountingPending(self._fabric, block, into, self.rank)
        pending.counted = self.counted
        return pending


def counted(islands: Islands, body: Callable[[BlockStore], object]) -> list[Counted]:
    """Run ``body`` on every rank; what went through their stores, by rank."""
    size = sum(map(len, islands))
    fabric = MemoryFabric(size, in_place=True, islands=islands)
    stores = [CountingStore(fabric, rank) for rank in range(size)]
    run_ranks(size, body, stores=stores)
    return [store.counted for store in stores]


def placed(hosts: int, ranks: int) -> Islands:
    """So many islands of so many neighbouring ranks."""
    return tuple(tuple(range(host * ranks, (host + 1) * ranks)) for host in range(hosts))


def exchange_once(layout: ExchangeLayout, wire: Wire, *, ahead: bool = False) -> Callable[[BlockStore], None]:
    def body(store: BlockStore) -> None:
        exchange = Exchange(store, layout, wire=wire, weights_wire=wire, timeout_s=20)
        for node in exchange.nodes:
            exchange.contribution(node).fill_(1.0)
        if ahead:
            exchange.open(0, 0, active=exchange.nodes)
        exchange.publish(0, 0, active=exchange.nodes, meta=b"m")
        assert (exchange.reduce().total == layout.num_shards).all()
        exchange.gather()

    return body


@pytest.mark.parametrize("wire", [Wire.FP32, Wire.BF16])
@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize(("hosts", "ranks"), [(1, 1), (1, 4), (2, 2), (4, 1), (4, 2), (2, 3), (3, 4)])
def test_an_exchange_sends_what_the_page_says(hosts: int, ranks: int, wire: Wire, *, ahead: bool) -> None:
    islands, size, buckets = placed(hosts, ranks), hosts * ranks, 3
    stripe = size * 1024  # every rank owns 1024 elements of every bucket
    layout = ExchangeLayout(buckets * stripe, size, tuple((rank,) for rank in range(size)), stripe=stripe)
    found = counted(islands, exchange_once(layout, wire, ahead=ahead))
    nodes = [len(cover(island, size)) for island in islands]
    vector, share = layout.num_elements * wire.element_bytes, layout.num_elements // size * wire.element_bytes
    rounds = 2 if ahead else 1  # who had not its report at the beginning tells it at the end
    for island, own in zip(islands, nodes, strict=True):
        abroad, of_host = size - ranks, [found[rank] for rank in island]
        for one in of_host:
            assert one.posts == (0 if ranks == 1 else rounds + 1)
            assert one.messages.taken == rounds * abroad
            assert one.contributions.taken == buckets * (sum(nodes) - own)
            assert one.contributions.taken_bytes == (sum(nodes) - own) * share
            assert one.results.told_bytes == (hosts - 1) * share
        assert sum(one.messages.told for one in of_host) == rounds * ranks * abroad
        assert sum(one.contributions.told for one in of_host) == buckets * own * abroad
        assert sum(one.contributions.told_bytes for one in of_host) == own * abroad * share
        assert sum(one.results.taken for one in of_host) == buckets * abroad
        # a host's traffic in each direction: of contributions for every node that it holds, of results once
        assert sum(one.results.told_bytes for one in of_host) * hosts == (hosts - 1) * vector
        assert sum(one.results.taken_bytes for one in of_host) * hosts == (hosts - 1) * vector
        assert sum(one.contributions.told_bytes for one in of_host) * hosts == own * (hosts - 1) * vector


@pytest.mark.parametrize(("hosts", "ranks"), [(2, 2), (4, 2), (2, 4)])
def test_ranks_that_are_a_power_of_two_load_their_hosts_links_alike(hosts: int, ranks: int) -> None:
    size, buckets = hosts * ranks, 2
    layout = ExchangeLayout(
        buckets * size * 1024, size, tuple((rank,) for rank in range(size)), stripe=size * 1024
    )  # fmt: skip
    for one in counted(placed(hosts, ranks), exchange_once(layout, Wire.FP32)):
        assert one.messages.told == size - ranks
        assert one.contributions.told == buckets * (hosts - 1)
        assert one.results.taken == buckets * (hosts - 1)


LARGE = 4 * 16 * 1024  # elements of four ranks' slices: 256 KB are above what travels eagerly
CALLS: list[tuple[str, Callable[[Communicator], object], tuple[int, int, int]]] = [
    # of each rank: messages without payload, blocks for one reader with a slice, blocks with a whole array
    ("small", lambda ranks: ranks.all_reduce(torch.ones(4)), (1, 0, 0)),
    ("all_reduce", lambda ranks: ranks.all_reduce(torch.ones(LARGE)), (0, 2, 0)),
    ("reduce_scatter", lambda ranks: ranks.reduce_scatter(torch.ones(LARGE)), (0, 1, 0)),
    ("shards", lambda ranks: ranks.all_reduce_shards({ranks.rank: torch.ones(LARGE)}, ranks.size), (1, 2, 0)),
    ("all_gather", lambda ranks: ranks.all_gather(torch.ones(LARGE)), (1, 0, 1)),
    ("small all_gather", lambda ranks: ranks.all_gather(torch.ones(4)), (1, 0, 0)),
    ("barrier", lambda ranks: ranks.barrier(), (1, 0, 0)),
]


@pytest.mark.parametrize(("call", "expected"), [one[1:] for one in CALLS], ids=[one[0] for one in CALLS])
@pytest.mark.parametrize("has_board", [False, True])
def test_a_collective_on_arrays_sends_what_the_page_says(
    call: Callable[[Communicator], object], expected: tuple[int, int, int], *, has_board: bool
) -> None:
    size = 4
    messages, slices, wholes = expected
    for one in counted(placed(1, size) if has_board else placed(size, 1), lambda store: call(Communicator(store))):
        assert one.posts == (1 if has_board else 0), "a first round, whatever is called"
        assert one.messages.told == (0 if has_board else messages * (size - 1))
        assert one.messages.taken == one.messages.told
        payloads = [one.contributions, one.results]
        assert sum(counts.told for counts in payloads) == (slices + wholes) * (size - 1)
        for num_bytes in (sum(c.told_bytes for c in payloads), sum(c.taken_bytes for c in payloads)):
            assert num_bytes == (size - 1) * 4 * (slices * LARGE // size + wholes * LARGE)


@pytest.mark.parametrize(("num_elements", "num_bytes"), [(4, 0), (LARGE, 4 * LARGE)])
def test_a_broadcast_leaves_its_root_once_for_each_rank(num_elements: int, num_bytes: int) -> None:
    def body(store: BlockStore) -> None:
        Communicator(store).broadcast(torch.ones(num_elements) if store.rank == 1 else None, root=1)

    found = counted(placed(4, 1), body)
    assert [one.messages.told for one in found] == [3] * 4, "who sends nothing still says what it calls"
    assert [one.results.told_bytes for one in found] == [0, 3 * num_bytes, 0, 0]
    assert [one.results.taken_bytes for one in found] == [num_bytes, 0, num_bytes, num_bytes]


def test_a_tiny_all_gather_of_an_exchange_is_one_message_for_each_peer() -> None:
    layout = ExchangeLayout(1024, 4, ((0,), (1,), (2,), (3,)))

    def body(store: BlockStore) -> None:
        Exchange(store, layout, wire=Wire.FP32, timeout_s=20).share(0, 0, b"x")

    assert [(one.messages.told, one.posts) for one in counted(placed(2, 2), body)] == [(3, 0)] * 4
    assert [(one.messages.told, one.posts) for one in counted(placed(1, 4), body)] == [(0, 1)] * 4


class Regions:
    """Stands for a store where only the sizes of regions matter."""

    def __init__(self, size: int) -> None:
        self.size = size

    def region(self, name: str, num_bytes: int) -> MemoryRegion:  # noqa: ARG002 - none is needed
        return MemoryRegion(name, 0)


@pytest.mark.parametrize(("hosts", "ranks"), [(1, 4), (2, 1), (2, 2), (4, 1), (4, 4), (16, 1), (16, 2), (64, 1)])
@pytest.mark.parametrize("num_elements", [50_000, 7_000_000, 138_357_544])
@pytest.mark.parametrize("wire", [Wire.FP32, Wire.BF16])
@pytest.mark.parametrize("weights_wire", [Wire.FP32, Wire.BF16])
def test_a_window_is_no_larger_than_the_plan_says(
    hosts: int, ranks: int, num_elements: int, wire: Wire, weights_wire: Wire
) -> None:
    size = hosts * ranks
    layout = ExchangeLayout(num_elements, size, tuple((rank,) for rank in range(size)))
    routes = Routes(layout, placed(hosts, ranks), 0)
    window = Window.of(cast("BlockStore", Regions(size)), layout, routes, (wire, weights_wire))
    foretold = CostModel(num_parameters=num_elements, compute_s=1, bytes_per_s=1).memory(size, hosts=hosts).window
    ranges = window.depth * (hosts - 1)
    assert window.num_bytes <= foretold + ranges * 4 * 1024, "ranges are whole multiples of 1024 elements"
    assert (window.num_bytes > 0) == (hosts > 1)
    assert window.depth >= min(2, len(layout.buckets))


@pytest.mark.parametrize(("hosts", "ranks"), [(1, 4), (2, 2), (4, 1)])
@pytest.mark.parametrize("weights_wire", [Wire.FP32, Wire.BF16])
def test_an_exchange_holds_what_the_plan_says(hosts: int, ranks: int, weights_wire: Wire) -> None:
    num_elements, size = 4 * 100 * 1024, hosts * ranks
    layout = ExchangeLayout(num_elements, size, tuple((rank,) for rank in range(size)), stripe=size * 5 * 1024)

    def body(store: BlockStore) -> dict[str, int]:
        exchange = Exchange(store, layout, wire=Wire.FP32, weights_wire=weights_wire, timeout_s=20)
        assert sum(map(len, exchange.master)) == num_elements // size
        return exchange.memory_bytes()

    plan = CostModel(num_parameters=num_elements, compute_s=1, bytes_per_s=1).memory(
        size, hosts=hosts, optimizer_state=0, narrow_weights=weights_wire is not Wire.FP32
    )
    for held in run_ranks(size, body, stores=memory_stores(size, in_place=True, islands=placed(hosts, ranks))):
        assert held["weights"] == plan.weights
        assert (held["gradients"], held["reduced"], held["master"]) == (plan.gradients, plan.reduced, plan.master)
        assert 0 <= held["incoming"] <= plan.window
        assert sum(held.values()) <= plan.sum
