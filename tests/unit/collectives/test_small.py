"""Reductions of small arrays in one round: the same bits as in two, whatever the store."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from contract.stores import shared
from harness import memory_stores, outcomes, run_ranks
from mizzle.blocks.memory import MemoryStore
from mizzle.blocks.store import BlockStore
from mizzle.collectives import Communicator, Node
from mizzle.collectives.arrays import Array, Formats
from mizzle.collectives.collective import Said
from mizzle.collectives.combine import TreeCombiner
from mizzle.collectives.signature import Signature
from mizzle.collectives.small import EAGER_BYTES, SmallReduction, SmallReductions
from mizzle.errors import CollectiveMismatch

FORMATS = {
    "float32": Formats.of(torch.float32), "float64": Formats.of(torch.float64), "bfloat16": Formats.of(torch.bfloat16),
    "float16": Formats.of(torch.float16), "int64": Formats.of(torch.int64), "bf16": Formats.of(torch.float32, "bf16"),
    "fp16": Formats.of(torch.float32, "fp16"),
}  # fmt: skip


def arrays(size: int, num_elements: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Numbers of very different size, so that another order of additions gives other bits."""
    generator = torch.Generator().manual_seed(num_elements)
    wide = torch.randn((size, num_elements), generator=generator, dtype=torch.float64)
    scale = 10.0 ** torch.randint(-3, 4, wide.shape, generator=generator).double()
    return list((wide * scale * 10).to(dtype))


def in_order(values: list[torch.Tensor], formats: Formats, op: str) -> torch.Tensor:
    """What the owner of a slice makes of the contributions."""
    sources = {Node(rank, rank + 1): value.to(formats.contribution) for rank, value in enumerate(values)}
    total = torch.empty(len(values[0]), dtype=formats.accumulator)
    TreeCombiner(len(values), formats.accumulator, op).combine(sources, total)
    if op == "mean":
        total.div_(len(values))
    return total.to(formats.result).to(formats.native)


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.view(torch.uint8).numpy().tobytes())


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("size", [*range(1, 10), 16, 17, 31])
def test_neighbour_by_neighbour_is_the_canonical_order_bit_for_bit(size: int, kind: str) -> None:
    formats = FORMATS[kind]
    for op in ("sum", "max", "min", *(("mean",) if formats.native.is_floating_point else ())):
        values = arrays(size, 33, formats.native)
        reductions = [SmallReduction(size, rank, 33, formats, op) for rank in range(size)]
        said = [Said(Signature(""), one.pack(value)) for one, value in zip(reductions, values, strict=True)]
        for _ in range(2):
            found = reductions[size // 2].reduce(said)
            assert found.dtype == formats.native
            assert bits(found) == bits(in_order(values, formats, op)), (op, size)


def test_results_are_the_callers_own() -> None:
    for formats in FORMATS.values():
        reduction = SmallReduction(1, 0, 3, formats, "sum")
        first = reduction.reduce([Said(Signature(""), reduction.pack(torch.ones(3)))])
        again = reduction.reduce([Said(Signature(""), reduction.pack(torch.zeros(3)))])
        assert (first.tolist(), again.tolist()) == ([1.0] * 3, [0.0] * 3)


def test_a_contribution_of_another_length_is_refused() -> None:
    reduction = SmallReduction(2, 0, 3, Formats.of(torch.float32), "sum")
    mine = Said(Signature(""), reduction.pack(torch.ones(3)))
    with pytest.raises(CollectiveMismatch, match="rank 1 sent 8 bytes where 12 were agreed"):
        reduction.reduce([mine, Said(Signature(""), bytes(8))])


@pytest.mark.parametrize("size", [1, 2, 8, 9, 64])
def test_what_fits_is_small_on_a_rank_and_on_all_together(size: int) -> None:
    reductions = SmallReductions(size, 0)
    formats = Formats.of(torch.float32)
    largest = max(n for n in range(EAGER_BYTES) if reductions.fits(n, formats))
    assert largest * 4 <= EAGER_BYTES
    assert largest * 4 * size <= 8 * EAGER_BYTES
    assert (largest + 1) * 4 * max(8, size) > 8 * EAGER_BYTES
    assert reductions.fits(2 * largest, Formats.of(torch.float32, "bf16"))


class Counting(MemoryStore):
    """Counts what it is asked to put."""

    puts = 0

    def put(self, *args: object, **named: object) -> None:
        self.puts += 1
        super().put(*args, **named)  # type: ignore[arg-type]


@pytest.mark.parametrize(("num_elements", "rounds"), [(1024, 1), (EAGER_BYTES // 4, 1), (EAGER_BYTES // 4 + 1, 2)])
def test_a_small_array_takes_one_round_a_larger_one_two(num_elements: int, rounds: int) -> None:
    def rank(store: BlockStore) -> int:
        Communicator(store).all_reduce(torch.ones(num_elements))
        assert isinstance(store, Counting)
        return store.puts

    stores = memory_stores(2)
    for store in stores:
        store.__class__ = Counting
    assert run_ranks(2, rank, stores=stores) == [rounds] * 2


def test_calls_of_many_kinds_in_turn_keep_apart() -> None:
    def rank(store: BlockStore) -> list[Array]:
        with Communicator(store) as communicator:
            return [
                communicator.all_reduce(np.full(num_elements, float(store.rank + turn)), op)
                for turn in range(3)
                for num_elements in (1, 5, 5000, 7, 0, *range(20, 50))
                for op in ("sum", "max")
            ]

    with shared(3) as opened:
        found = run_ranks(3, rank, stores=opened.stores)
    expected = [
        np.full(num_elements, 3.0 + 3 * turn if op == "sum" else 2.0 + turn)
        for turn in range(3)
        for num_elements in (1, 5, 5000, 7, 0, *range(20, 50))
        for op in ("sum", "max")
    ]
    for one in found:
        assert all(np.array_equal(a, b) for a, b in zip(one, expected, strict=True))


def test_a_rank_that_differs_in_size_class_is_refused_on_shared_memory_too() -> None:
    def rank(store: BlockStore) -> None:
        communicator = Communicator(store, timeout_s=20)
        communicator.all_reduce(np.ones(4))
        if store.rank == 2:
            communicator.barrier()
        else:
            communicator.all_reduce(np.ones(4 if store.rank else 99_999))

    with shared(3) as opened:
        for error in outcomes(opened.stores, rank):
            assert isinstance(error, CollectiveMismatch), error
            assert "rank 0: all_reduce" in str(error)
            assert "shape=99999" in str(error)
            assert "rank 1: all_reduce" in str(error)
            assert "rank 2: barrier" in str(error)
