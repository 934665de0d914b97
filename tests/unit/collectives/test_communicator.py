"""Collectives on arrays: values, kinds, types and shapes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import cycle, islice
from typing import Any

import numpy as np
import pytest
import torch

from harness import memory_stores, outcomes, run_ranks
from mizzle.blocks.deadline import Deadline
from mizzle.blocks.ids import BlockId, DType, Kind
from mizzle.blocks.region import Region, Span
from mizzle.blocks.store import BlockStore, Fetched, Pending
from mizzle.collectives import Communicator
from mizzle.collectives.arrays import Array
from mizzle.collectives.communicator import OPS_PER_ITERATION
from mizzle.collectives.small import EAGER_BYTES
from mizzle.errors import ConfigError, PeerLost

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
INTS = [torch.int32, torch.int64]


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.reshape(-1).view(torch.uint8).numpy().tobytes()) if tensor.numel() else b""


def each(size: int, fn: Callable[[Communicator], Array]) -> list[torch.Tensor]:
    """What every rank got from ``fn``; all ranks must have the same bits."""
    found = [torch.as_tensor(array) for array in run_ranks(size, lambda store: fn(Communicator(store)))]
    for other in found[1:]:
        assert bits(found[0]) == bits(other)
    return found


def values(rank: int, dtype: torch.dtype, num_elements: int = 300) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rank)
    return (torch.randn(num_elements, generator=generator, dtype=torch.float64) * 100).to(dtype)


def wide_sum(size: int, dtype: torch.dtype) -> torch.Tensor:
    """The tree sum over ranks, by hand for up to four."""
    accumulator = torch.float32 if dtype.itemsize == 2 else dtype
    a = [values(rank, dtype).to(accumulator) for rank in range(size)]
    if size == 1:
        return a[0]
    return {2: lambda: a[0] + a[1], 3: lambda: (a[0] + a[1]) + a[2], 4: lambda: (a[0] + a[1]) + (a[2] + a[3])}[size]()


@pytest.mark.parametrize("dtype", FLOATS + INTS, ids=str)
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_sums_are_taken_in_the_wide_type_and_rounded_once(size: int, dtype: torch.dtype) -> None:
    found = each(size, lambda c: c.all_reduce(values(c.rank, dtype)))
    assert torch.equal(found[0], wide_sum(size, dtype).to(dtype))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_mean_is_divided_before_it_is_rounded(dtype: torch.dtype) -> None:
    found = each(3, lambda c: c.all_reduce(values(c.rank, dtype), "mean"))
    assert torch.equal(found[0], (wide_sum(3, dtype) / 3).to(dtype))


@pytest.mark.parametrize("dtype", FLOATS + INTS, ids=str)
def test_max_and_min_are_exact(dtype: torch.dtype) -> None:
    stacked = torch.stack([values(rank, dtype) for rank in range(3)])
    assert torch.equal(each(3, lambda c: c.all_reduce(values(c.rank, dtype), "max"))[0], stacked.amax(0))
    assert torch.equal(each(3, lambda c: c.all_reduce(values(c.rank, dtype), "min"))[0], stacked.amin(0))


def test_large_integers_stay_exact() -> None:
    found = each(3, lambda c: c.all_reduce(np.array([2**53 + 1, -(2**62)]) * (c.rank == 0) + c.rank))
    assert found[0].tolist() == [2**53 + 4, -(2**62) + 3]


@pytest.mark.parametrize("wire", ["bf16", "fp16"])
def test_a_narrow_wire_rounds_each_contribution_and_the_result(wire: str) -> None:
    narrow = torch.bfloat16 if wire == "bf16" else torch.float16
    a, b, c = (values(rank, torch.float32).to(narrow).float() for rank in range(3))
    found = each(3, lambda comm: comm.all_reduce(values(comm.rank, torch.float32), wire=wire))
    assert found[0].dtype == torch.float32
    assert torch.equal(found[0], ((a + b) + c).to(narrow).float())


@pytest.mark.parametrize("num_elements", [0, 1, 2, 1023, 1025, 10_000])
def test_eight_ranks_and_any_length(num_elements: int) -> None:
    found = each(8, lambda c: c.all_reduce(np.full(num_elements, c.rank + 1, np.int64)))
    assert found[0].tolist() == [36] * num_elements


def reduced(array: Array, store: BlockStore) -> Array:
    return Communicator(store).all_reduce(array)


def test_kind_shape_and_layout_come_back(subtests: pytest.Subtests) -> None:
    arrays: list[Array] = [
        np.asarray(np.float32(2)), np.ones((), np.float64), np.ones((2, 3, 4), np.float16)[:, ::-1],
        np.ones((0, 3), np.int32),
        torch.ones(3, 4, dtype=torch.bfloat16).T,
        torch.tensor(1.0, requires_grad=True),
        np.asfortranarray(np.ones((5, 2))),
    ]  # fmt: skip
    read_only = np.ones(3)
    read_only.flags.writeable = False
    for array in [*arrays, read_only]:
        with subtests.test(repr(array)):
            [found, _] = run_ranks(2, partial(reduced, array))
            assert isinstance(found, torch.Tensor) == isinstance(array, torch.Tensor)
            assert (tuple(found.shape), found.dtype) == (tuple(array.shape), array.dtype)
            plain = array if isinstance(array, torch.Tensor) else torch.from_numpy(array.copy())
            expected = plain.double() * 2
            assert torch.equal(torch.as_tensor(found).double(), expected)


def test_the_result_and_the_argument_belong_to_the_caller() -> None:
    def rank(store: BlockStore) -> tuple[np.ndarray, np.ndarray]:
        communicator = Communicator(store)
        mine = np.ones(5000)
        first = np.asarray(communicator.all_reduce(mine))
        mine[:] = 7
        for _ in range(4):
            communicator.all_reduce(np.zeros(5000))
        return mine, first

    for mine, first in run_ranks(2, rank):
        assert (mine == 7).all()
        assert (first == 2).all()


@pytest.mark.parametrize("size", [1, 2, 5])
def test_reduce_scatter_gives_each_rank_its_slice_of_the_flat_sum(size: int) -> None:
    def rank(store: BlockStore) -> list[tuple[list[Any], int, int]]:
        found = []
        for alignment in (1, 4, 1024):
            piece, where = Communicator(memory_ranks[alignment][store.rank]).reduce_scatter(
                np.arange(10.0).reshape(2, 5), alignment=alignment
            )
            assert piece.ndim == 1
            found.append((piece.tolist(), where.start, where.stop))
        return found

    memory_ranks = {alignment: memory_stores(size) for alignment in (1, 4, 1024)}
    found = run_ranks(size, rank)
    for i in range(3):
        joined = [value for one in found for value in one[i][0]]
        assert joined == [size * value for value in range(10)]
        assert all(len(one[i][0]) == one[i][2] - one[i][1] for one in found)


@pytest.mark.parametrize("rows", [1, EAGER_BYTES // 8, EAGER_BYTES // 8 + 1, 20_000])
def test_all_gather_takes_ragged_first_dimensions(rows: int) -> None:
    def rank(store: BlockStore) -> list[np.ndarray]:
        return [
            np.asarray(a) for a in Communicator(store).all_gather(np.full((rows * store.rank, 1), store.rank, float))
        ]

    for found in run_ranks(3, rank):
        assert [array.shape for array in found] == [(0, 1), (rows, 1), (2 * rows, 1)]
        assert [set(array.ravel()) for array in found] == [set(), {1.0}, {2.0}]


def test_all_gather_of_scalars() -> None:
    found = run_ranks(3, lambda store: Communicator(store).all_gather(torch.tensor(store.rank)))
    assert [[int(t) for t in tensors] for tensors in found] == [[0, 1, 2]] * 3


@pytest.mark.parametrize("num_elements", [0, 1, 8192, 8193, 50_000])
@pytest.mark.parametrize("root", [0, 2])
def test_broadcast_needs_nothing_at_the_receivers(num_elements: int, root: int) -> None:
    sent = torch.arange(num_elements, dtype=torch.float32).to(torch.bfloat16).reshape(-1, 1)
    found = each(3, lambda c: c.broadcast(sent if c.rank == root else None, root))
    assert torch.equal(found[1], sent)
    as_numpy = run_ranks(
        3, lambda store: Communicator(store).broadcast(np.arange(3) if store.rank == root else None, root)
    )
    assert all(isinstance(array, np.ndarray) and array.tolist() == [0, 1, 2] for array in as_numpy)


def test_a_barrier_lets_nobody_through_before_all_have_come() -> None:
    arrived: list[int] = []
    last_may_come = threading.Event()

    def rank(store: BlockStore) -> int:
        if store.rank == 2:
            assert last_may_come.wait(10)
        arrived.append(store.rank)
        if len(arrived) == 2:
            last_may_come.set()
        Communicator(store).barrier()
        return len(arrived)

    assert run_ranks(3, rank) == [3, 3, 3]


def shards_sum(size: int, deal: Sequence[int], op: str, dtype: torch.dtype) -> torch.Tensor:
    """The reduction over shards when ``deal[shard]`` is the rank that holds it; -1: nobody."""

    def rank(communicator: Communicator) -> Array:
        held = {s: values(s, dtype) for s, holder in enumerate(deal) if holder == communicator.rank}
        return communicator.all_reduce_shards(held, len(deal), op)

    return each(size, rank)[0]


@pytest.mark.parametrize("op", ["sum", "mean", "max"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bits_of_a_reduction_over_shards_do_not_depend_on_placement(op: str, dtype: torch.dtype) -> None:
    alone = shards_sum(1, [0] * 7, op, dtype)
    deals = ([0, 1] * 3 + [0], [1] * 7, [0, 0, 1, 1, 2, 2, 2], [4, 3, 2, 1, 0, 0, 4])
    for deal in deals:
        assert torch.equal(shards_sum(max(deal) + 1, deal, op, dtype), alone)


def test_shards_that_nobody_holds_are_skipped_and_not_counted() -> None:
    found = shards_sum(2, [0, -1, 1, -1], "mean", torch.float64)
    assert torch.equal(found, (values(0, torch.float64) + values(2, torch.float64)) / 2)


def test_shards_held_twice_by_nobody_or_unlike_are_refused() -> None:
    def refused(held_of: Callable[[int], dict[int, np.ndarray]]) -> list[str]:
        found = outcomes(memory_stores(2), lambda store: Communicator(store).all_reduce_shards(held_of(store.rank), 4))
        assert all(isinstance(error, ConfigError | PeerLost) for error in found)
        assert any(isinstance(error, ConfigError) for error in found)
        return [str(error) for error in found]

    assert all("shard 1 is held by rank 0 and by rank 1" in text for text in refused(lambda _: {1: np.ones(2)}))
    assert all("no rank holds a shard" in text for text in refused(lambda _: {}))
    unlike = {0: np.ones(2), 1: np.ones(3)}
    assert all("one shape and type" in text for text in refused(lambda rank: {} if rank else unlike))


@pytest.mark.parametrize(
    ("array", "arguments", "remedy"),
    [
        (np.ones(3, bool), {}, "bool do not travel: convert to one of float32"),
        (np.ones(3, complex), {}, "complex128"),
        (np.ones(3, ">f4"), {}, "byte order"),
        ([1, 2], {}, r"np.asarray\(value\)"),
        (np.ones(3, np.int64), {"op": "mean"}, "mean of int64"),
        (np.ones(3), {"op": "product"}, "'product'"),
        (np.ones(3), {"wire": "bf16"}, "for float32"),
        (np.ones(3, np.float32), {"wire": "int4"}, "'int4'"),
        (torch.ones(3).to_sparse(), {}, "to_dense"),
    ],
)
def test_an_argument_that_cannot_be_names_the_remedy(array: Any, arguments: dict[str, Any], remedy: str) -> None:
    [store] = memory_stores(1)
    with pytest.raises(ConfigError, match=remedy):
        Communicator(store).all_reduce(array, **arguments)


def test_calls_go_on_over_the_border_of_the_op_number() -> None:
    def rank(store: BlockStore) -> list[float]:
        communicator = Communicator(store, first_op=OPS_PER_ITERATION - 2)
        found = [float(communicator.all_reduce(np.array(i * 1.0))) for i in range(5)]
        assert communicator.next_op == OPS_PER_ITERATION + 3
        return found

    assert run_ranks(2, rank) == [[0, 2, 4, 6, 8]] * 2


class Trailing:
    """A store whose rank reads results only when rank 0 is in its next collective already, writing to its staging."""

    def __init__(self, inner: BlockStore, put_by_first: dict[int, threading.Event]) -> None:
        self.inner, self.run, self.generation = inner, inner.run, inner.generation
        self.rank, self.size, self.put_by_first = inner.rank, inner.size, put_by_first
        self.board, self.islands, self.island = inner.board, inner.islands, inner.island

    def region(self, name: str, num_bytes: int) -> Region:
        return self.inner.region(name, num_bytes)

    def put(self, block: BlockId, payload: Span | None, *, meta: bytes, dtype: DType, to: Sequence[int]) -> None:
        self.inner.put(block, payload, meta=meta, dtype=dtype, to=to)
        if self.rank == 0:
            self.put_by_first[block.op].set()

    def fetch(self, block: BlockId, into: Span | None) -> Pending:
        pending, events = self.inner.fetch(block, into), self.put_by_first

        class Late:
            def wait(self, deadline: Deadline) -> Fetched:
                assert events[block.op + 1].wait(20)
                return pending.wait(deadline)

        return Late() if self.rank == 2 and block.kind is Kind.RESULT else pending

    def together(self) -> AbstractContextManager[None]:
        return self.inner.together()

    def drop(self, iteration: int, op: int) -> None:
        self.inner.drop(iteration, op)

    def fence(self, generation: int) -> None:
        self.inner.fence(generation)

    def abort(self, why: str) -> None:
        self.inner.abort(why)

    def close(self) -> None:
        self.inner.close()


@pytest.mark.parametrize("in_place", [False, True])
def test_memory_is_not_used_again_before_a_slow_rank_has_read_it(*, in_place: bool) -> None:
    sizes = list(islice(cycle([5000, 1, 20_000, 0, 3000, 70_000, 2]), 50))
    events = {op: threading.Event() for op in range(len(sizes) + 2)}
    stores = [Trailing(store, events) for store in memory_stores(3, in_place=in_place)]

    def rank(store: BlockStore) -> None:
        with Communicator(store) as communicator:
            for op, num_elements in enumerate(sizes):
                found = np.asarray(communicator.all_reduce(np.full(num_elements, op + store.rank, np.int64)))
                assert found.tolist() == [3 * op + 3] * num_elements

    run_ranks(3, rank, stores=stores)
