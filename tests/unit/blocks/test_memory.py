"""What only the in-process store promises."""

from __future__ import annotations

import pytest

from harness import RUN
from mizzle.blocks.deadline import Deadline
from mizzle.blocks.ids import MAX_META_BYTES, BlockId, DType, Kind
from mizzle.blocks.memory import MemoryFabric
from mizzle.blocks.region import Span
from mizzle.errors import CollectiveTimeout, ConfigError, Fenced

BLOCK = BlockId(RUN, 0, 0, 0, Kind.RESULT, slice=0, source=0)


def test_a_view_is_handed_out_read_only_and_not_copied() -> None:
    fabric = MemoryFabric(2)
    a, b = (fabric.store(rank, run=RUN) for rank in range(2))
    span = Span(a.region("out", 8), 0, 8)
    a.put(BLOCK, span, meta=b"", dtype=DType.RAW, to=[1])
    block = b.fetch(BLOCK, Span(b.region("into", 8), 0, 8)).wait(Deadline.after(1))
    assert block.payload.readonly
    span.view[0] = 9
    assert block.payload[0] == 9


def test_only_those_it_is_for_can_read_a_block() -> None:
    fabric = MemoryFabric(3)
    stores = [fabric.store(rank, run=RUN) for rank in range(3)]
    stores[0].put(BLOCK, None, meta=b"", dtype=DType.RAW, to=[1])
    with pytest.raises(CollectiveTimeout):
        stores[2].fetch(BLOCK, None).wait(Deadline.after(0.05))


def test_the_end_of_a_run_forgets_its_blocks_and_regions_and_no_others() -> None:
    fabric = MemoryFabric(1)
    runs = (RUN, RUN[::-1])
    for run in runs:
        store = fabric.store(0, run=run)
        store.region("weights", 8).buffer[0] = 1
        store.put(BlockId(run, 0, 0, 0, Kind.RESULT, 0, 0), None, meta=b"", dtype=DType.RAW, to=[0])
        store.close()
    assert fabric.num_blocks() == 2
    fabric.end(RUN)
    assert fabric.num_blocks() == 1
    assert [fabric.region(run, 0, "weights", 8).buffer[0] for run in runs] == [0, 1]


def test_runs_in_one_fabric_do_not_meet() -> None:
    fabric = MemoryFabric(1)
    one, other = fabric.store(0, run=RUN), fabric.store(0, run=RUN[::-1])
    one.region("weights", 8).buffer[0] = 1
    assert other.region("weights", 8).buffer[0] == 0
    one.fence(5)
    other.put(BlockId(RUN[::-1], 0, 0, 0, Kind.RESULT, 0, 0), None, meta=b"", dtype=DType.RAW, to=[0])
    with pytest.raises(Fenced):
        fabric.store(0, run=RUN, generation=4)


def test_misuse_is_refused_by_name() -> None:
    fabric = MemoryFabric(1)
    store = fabric.store(0, run=RUN)
    with pytest.raises(ConfigError, match="puts only what is its own"):
        store.put(BlockId(RUN, 0, 0, 0, Kind.RESULT, 0, 1), None, meta=b"", dtype=DType.RAW, to=[])
    with pytest.raises(ConfigError, match="limit"):
        store.put(BLOCK, None, meta=bytes(MAX_META_BYTES + 1), dtype=DType.RAW, to=[])
    store.close()
    store.close()
    with pytest.raises(ConfigError, match="after close"):
        store.put(BLOCK, None, meta=b"", dtype=DType.RAW, to=[])
    with pytest.raises(ConfigError, match="not one of"):
        fabric.store(1, run=RUN)
    with pytest.raises(ConfigError, match="at least one"):
        MemoryFabric(0)
