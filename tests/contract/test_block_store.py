"""What every store promises."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from contract.stores import Ranks
from harness import RUN, outcomes, run_ranks
from mizzle.blocks.deadline import Deadline
from mizzle.blocks.ids import MAX_META_BYTES, BlockId, DType, Kind
from mizzle.blocks.region import Region, Span
from mizzle.blocks.store import BlockStore, Fetched
from mizzle.errors import (
    BlockExists,
    CollectiveMismatch,
    CollectiveTimeout,
    ConfigError,
    CorruptBlock,
    Fenced,
    PeerLost,
    Recoverable,
)

Open = Callable[[int], Ranks]
SOON_S = 2.0


def name(source: int, *, op: int = 0, generation: int = 0, part: int = 0) -> BlockId:
    return BlockId(RUN, generation, 7, op, Kind.CONTRIBUTION, slice=0, source=source, part=part)


def filled(store: BlockStore, region: str, body: bytes, offset: int = 0) -> Span:
    span = Span(store.region(region, 64 * 1024), offset, len(body))
    span.view[:] = body
    return span


def fetch(store: BlockStore, block: BlockId, room: int = 64, *, within_s: float = 10.0) -> Fetched:
    into = Span(store.region("into", max(64, room)), 0, room) if room else None
    return store.fetch(block, into).wait(Deadline.after(within_s))


def test_a_block_arrives_with_meta_type_and_bytes(open_ranks: Open) -> None:
    a, b = open_ranks(2).stores
    a.put(name(0), filled(a, "out", b"payload", offset=128), meta=b"small", dtype=DType.BFLOAT16, to=[1])
    block = fetch(b, name(0))
    assert bytes(block.payload) == b"payload"
    assert block.meta == b"small"
    assert (block.header.block, block.header.dtype, block.header.payload_bytes) == (name(0), DType.BFLOAT16, 7)


def test_in_place_says_where_the_payload_lies(open_ranks: Open) -> None:
    a, b = open_ranks(2).stores
    a.put(name(0), filled(a, "out", b"payload"), meta=b"", dtype=DType.RAW, to=[1])
    into = Span(b.region("into", 64), 8, 32)
    block = b.fetch(name(0), into).wait(Deadline.after(10))
    assert (bytes(into.view[:7]) == b"payload") == block.in_place


def test_what_leaves_together_arrives_in_order_and_a_wait_within_does_not_hang(open_ranks: Open) -> None:
    a, b = open_ranks(2).stores
    with a.together(), a.together():
        for part in range(5):
            a.put(name(0, part=part), filled(a, "out", b"%d" % part, part * 64), meta=b"", dtype=DType.RAW, to=[1])
    with b.together():
        b.put(name(1), None, meta=b"back", dtype=DType.RAW, to=[0])
        spans = [Span(b.region("into", 64 * 5), part * 64, 64) for part in range(5)]
        pending = [b.fetch(name(0, part=part), span) for part, span in enumerate(spans)]
        assert [bytes(one.wait(Deadline.after(10)).payload) for one in pending] == [b"0", b"1", b"2", b"3", b"4"]
        assert fetch(a, name(1), room=0).meta == b"back"


def test_a_failure_within_together_holds_nothing_back_afterwards(open_ranks: Open) -> None:
    a, b = open_ranks(2).stores
    with pytest.raises(ZeroDivisionError), a.together():
        raise ZeroDivisionError
    a.put(name(0), None, meta=b"after", dtype=DType.RAW, to=[1])
    assert fetch(b, name(0), room=0).meta == b"after"


@pytest.mark.parametrize("num_bytes", [1, 63, 4096, 3_000_001])
def test_payloads_of_any_length_arrive_whole(open_ranks: Open, num_bytes: int) -> None:
    a, b = open_ranks(2).stores
    body = bytes(range(251)) * (num_bytes // 251 + 1)
    span = Span(a.region("out", num_bytes), 0, num_bytes)
    span.view[:] = body[:num_bytes]
    a.put(name(0), span, meta=b"", dtype=DType.RAW, to=[1])
    assert bytes(fetch(b, name(0), num_bytes).payload) == body[:num_bytes]


def test_a_block_may_have_no_payload_and_a_large_meta(open_ranks: Open) -> None:
    a, b = open_ranks(2).stores
    meta = bytes(range(256)) * (MAX_META_BYTES // 256)
    a.put(name(0), None, meta=meta, dtype=DType.RAW, to=[1])
    block = fetch(b, name(0), 0)
    assert (block.meta, len(block.payload)) == (meta, 0)


def test_a_fetch_may_come_before_the_put(open_ranks: Open) -> None:
    asked = threading.Event()

    def rank(store: BlockStore) -> bytes:
        if store.rank == 0:
            assert asked.wait(10)
            store.put(name(0), filled(store, "out", b"late"), meta=b"", dtype=DType.RAW, to=[1])
            return b""
        pending = store.fetch(name(0), Span(store.region("into", 64), 0, 64))
        asked.set()
        return bytes(pending.wait(Deadline.after(10)).payload)

    assert run_ranks(2, rank, stores=open_ranks(2).stores)[1] == b"late"


def test_puts_of_one_source_arrive_in_their_order(open_ranks: Open) -> None:
    a, b = open_ranks(2).stores
    for part in range(5):
        a.put(name(0, part=part), filled(a, f"out{part}", bytes([part])), meta=b"", dtype=DType.RAW, to=[1])
    pending = [b.fetch(name(0, part=part), Span(b.region("into", 64), part, 1)) for part in range(5)]
    assert [bytes(p.wait(Deadline.after(10)).payload) for p in pending] == [bytes([part]) for part in range(5)]


def test_one_put_reaches_several_readers(open_ranks: Open) -> None:
    stores = open_ranks(3).stores
    stores[0].put(name(0), filled(stores[0], "out", b"all"), meta=b"", dtype=DType.RAW, to=[1, 2])
    assert [bytes(fetch(store, name(0)).payload) for store in stores[1:]] == [b"all", b"all"]


def test_a_name_is_never_used_twice(open_ranks: Open) -> None:
    a, _ = open_ranks(2).stores
    a.put(name(0), None, meta=b"first", dtype=DType.RAW, to=[1])
    with pytest.raises(BlockExists, match="put before"):
        a.put(name(0), None, meta=b"second", dtype=DType.RAW, to=[1])


def test_a_name_is_not_used_again_after_its_block_was_dropped(open_ranks: Open) -> None:
    a, _ = open_ranks(2).stores
    a.put(name(0), None, meta=b"first", dtype=DType.RAW, to=[1])
    a.drop(7, 1)
    with pytest.raises(BlockExists, match="put before"):
        a.put(name(0), None, meta=b"second", dtype=DType.RAW, to=[1])


@pytest.mark.parametrize("room", [0, 3])
def test_a_payload_longer_than_its_place_is_refused(open_ranks: Open, room: int) -> None:
    a, b = open_ranks(2).stores
    a.put(name(0), filled(a, "out", b"four"), meta=b"who", dtype=DType.RAW, to=[1])
    with pytest.raises(CollectiveMismatch, match="4 bytes") as caught:
        fetch(b, name(0), room)
    assert caught.value.meta == b"who"


def test_a_changed_block_fails_its_check(open_ranks: Open) -> None:
    ranks = open_ranks(2)
    if ranks.corrupt is None:
        pytest.skip("blocks of this store cannot be got at")
    a, b = ranks.stores
    span = filled(a, "out", b"payload" * 1000)
    a.put(name(0), span, meta=b"", dtype=DType.RAW, to=[1])
    ranks.corrupt(a, name(0), span)
    with pytest.raises(CorruptBlock):
        fetch(b, name(0), 8000)


def test_a_wait_ends_at_its_deadline(open_ranks: Open) -> None:
    _, b = open_ranks(2).stores
    start = time.monotonic()
    with pytest.raises(CollectiveTimeout, match="rank 0"):
        fetch(b, name(0), within_s=0.2)
    assert 0.2 <= time.monotonic() - start < SOON_S


def test_what_is_there_is_handed_out_even_when_the_deadline_has_passed(open_ranks: Open) -> None:
    a, b = open_ranks(2).stores
    a.put(name(0), None, meta=b"here", dtype=DType.RAW, to=[1])
    fetch(b, name(0), 0)
    a.put(name(0, op=1), None, meta=b"here", dtype=DType.RAW, to=[1])
    a.put(name(0, op=2), None, meta=b"last", dtype=DType.RAW, to=[1])
    pending = b.fetch(name(0, op=1), None)
    assert b.fetch(name(0, op=2), None).wait(Deadline.after(10)).meta == b"last"
    assert pending.wait(Deadline.after(0)).meta == b"here"


def test_an_abort_reaches_all_who_wait_within_two_seconds(open_ranks: Open) -> None:
    waiting = threading.Barrier(3)

    def rank(store: BlockStore) -> float:
        pending = None if store.rank == 0 else store.fetch(name(3), None)
        waiting.wait(10)
        start = time.monotonic()
        if pending is None:
            store.abort("it is out of coffee")
        else:
            with pytest.raises(PeerLost, match=r"rank 0 is lost.*out of coffee"):
                pending.wait(Deadline.after(20))
        return time.monotonic() - start

    assert max(run_ranks(3, rank, stores=open_ranks(4).stores[:3])) < SOON_S


def test_what_came_before_an_abort_is_still_handed_out(open_ranks: Open) -> None:
    a, b = open_ranks(2).stores
    a.put(name(0), None, meta=b"before", dtype=DType.RAW, to=[1])
    a.abort("done for")
    assert fetch(b, name(0), 0).meta == b"before"
    with pytest.raises(PeerLost):
        fetch(b, name(0, op=1), 0)


def test_a_superseded_generation_is_refused_at_put_and_fetch(open_ranks: Open) -> None:
    ranks = open_ranks(2)
    old_a, old_b = ranks.stores
    for new in ranks.reopen(1):
        new.fence(1)
    with pytest.raises(Fenced, match="generation"):
        old_a.put(name(0), None, meta=b"", dtype=DType.RAW, to=[1])
    with pytest.raises(Fenced, match="generation"):
        fetch(old_b, name(0), 0)


def test_a_fence_wakes_those_who_wait(open_ranks: Open) -> None:
    ranks = open_ranks(2)
    asked = threading.Event()
    start: list[float] = []

    def rank(store: BlockStore) -> float:
        if store.rank == 0:
            assert asked.wait(10)
            start.append(time.monotonic())
            for new in ranks.reopen(1):
                new.fence(1)
            return 0.0
        pending = store.fetch(name(0), None)
        asked.set()
        with pytest.raises(Fenced):
            pending.wait(Deadline.after(20))
        return time.monotonic() - start[0]

    assert run_ranks(2, rank, stores=ranks.stores)[1] < SOON_S


def test_the_new_generation_works_after_a_fence_and_an_abort_of_the_old(open_ranks: Open) -> None:
    ranks = open_ranks(2)
    ranks.stores[0].abort("fault")
    a, b = ranks.reopen(1)
    a.fence(1)
    b.fence(1)
    a.put(name(0, generation=1), None, meta=b"new", dtype=DType.RAW, to=[1])
    assert fetch(b, name(0, generation=1), 0).meta == b"new"


def test_regions_outlive_their_store_and_are_zeroed_when_created_or_grown(open_ranks: Open) -> None:
    ranks = open_ranks(2)
    first = ranks.stores[0].region("weights", 100)
    assert len(first.buffer) >= 100
    assert not any(first.buffer)
    first.buffer[:3] = b"abc"
    ranks.stores[0].close()
    again = ranks.reopen(1)[0]
    assert bytes(again.region("weights", 50).buffer[:3]) == b"abc"
    grown = again.region("weights", 1_000_000)
    assert len(grown.buffer) >= 1_000_000
    assert not any(grown.buffer)
    assert not any(ranks.reopen(2)[1].region("weights", 100).buffer)


def test_nothing_is_left_after_drop(open_ranks: Open) -> None:
    ranks = open_ranks(2)
    a, b = ranks.stores
    for op in range(3):
        a.put(name(0, op=op), filled(a, f"out{op}", b"payload"), meta=b"", dtype=DType.RAW, to=[1])
    for op in range(2):
        fetch(b, name(0, op=op))
    a.drop(7, 2)
    assert bytes(fetch(b, name(0, op=2)).payload) == b"payload"
    with pytest.raises(Recoverable):
        fetch(b, name(0, op=0), within_s=0.2)
    a.drop(8, 0)
    if ranks.num_blocks is not None:
        assert ranks.num_blocks() == 0


def test_what_a_rank_put_stays_readable_after_it_closed(open_ranks: Open) -> None:
    a, b = open_ranks(2).stores
    a.put(name(0), None, meta=b"farewell", dtype=DType.RAW, to=[1])
    a.put(name(0, op=1), filled(a, "out", b"payload"), meta=b"", dtype=DType.RAW, to=[1])
    a.close()
    assert fetch(b, name(0), 0).meta == b"farewell"
    assert bytes(fetch(b, name(0, op=1)).payload) == b"payload"


def test_nothing_can_be_put_after_close(open_ranks: Open) -> None:
    a, _ = open_ranks(2).stores
    a.close()
    with pytest.raises(ConfigError, match="after close"):
        a.put(name(0), None, meta=b"", dtype=DType.RAW, to=[1])


@pytest.mark.parametrize("change", [{"source": 1}, {"run": RUN[::-1]}])
def test_a_rank_puts_only_what_is_its_own(open_ranks: Open, change: dict[str, Any]) -> None:
    a, _ = open_ranks(2).stores
    with pytest.raises(ConfigError, match="what is its own"):
        a.put(replace(name(0), **change), None, meta=b"", dtype=DType.RAW, to=[1])


def test_a_meta_over_the_limit_is_refused(open_ranks: Open) -> None:
    a, _ = open_ranks(2).stores
    with pytest.raises(ConfigError, match="over the limit"):
        a.put(name(0), None, meta=bytes(MAX_META_BYTES + 1), dtype=DType.RAW, to=[1])


def test_many_ranks_trade_blocks_at_once(open_ranks: Open) -> None:
    size = 4

    def rank(store: BlockStore) -> list[bytes]:
        body = bytes([store.rank]) * 5000
        others = [r for r in range(size) if r != store.rank]
        store.put(name(store.rank), filled(store, "out", body), meta=b"", dtype=DType.RAW, to=others)
        into = store.region("into", size * 5000)
        pending = [store.fetch(name(r), Span(into, r * 5000, 5000)) for r in others]
        return [bytes(p.wait(Deadline.after(20)).payload) for p in pending]

    for r, found in enumerate(outcomes(open_ranks(size).stores, rank)):
        assert found == [bytes([q]) * 5000 for q in range(size) if q != r]


def test_shared_memory_is_one_for_an_island_and_another_one_for_each_generation(open_ranks: Open) -> None:
    ranks = open_ranks(3)
    deadline = Deadline.after(10)

    def shared(stores: Sequence[BlockStore]) -> list[Region]:
        return run_ranks(3, lambda store: store.island.shared("weights", 4096, deadline), stores=stores)

    old = shared(ranks.stores)
    for rank, region in enumerate(old):
        region.buffer[rank] = rank + 1
    for island in ranks.stores[0].islands:
        for rank in island:
            assert [old[rank].buffer[other] for other in island] == [other + 1 for other in island]
    new = shared(ranks.reopen(1))
    old[0].buffer[0] = 77
    assert not any(any(region.buffer) for region in new), "what an old rank writes is seen by new ones"
