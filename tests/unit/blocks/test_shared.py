"""What only ranks of one host see: regions as memory, notes, and what a bridge writes beside them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness import RUN, outcomes
from mizzle.blocks import notes
from mizzle.blocks.arena import LocalArena, MappedRegion, open_region
from mizzle.blocks.deadline import Deadline
from mizzle.blocks.ids import BlockId, DType, Kind
from mizzle.blocks.memory import MemoryRegion
from mizzle.blocks.region import Span
from mizzle.blocks.shared import SharedStore
from mizzle.errors import ArenaError, BlockNotFound, CollectiveTimeout, ConfigError, Fenced, PeerLost


def name(op: int, source: int = 0) -> BlockId:
    return BlockId(RUN, 0, 0, op, Kind.RESULT, slice=0, source=source)


@contextmanager
def pair(timeout_s: float = 5.0) -> Iterator[tuple[list[LocalArena], list[SharedStore]]]:
    """Two ranks of one host."""
    arenas = [LocalArena(), LocalArena()]
    controls = [notes.prepare_control(arena, 2).path for arena in arenas]
    yield (
        arenas,
        [
            SharedStore(arena, run=RUN, generation=0, rank=rank, controls=controls, timeout_s=timeout_s)
            for rank, arena in enumerate(arenas)
        ],
    )
    for arena in arenas:
        arena.close()


def control(arena: LocalArena) -> MappedRegion:
    return arena.region(notes.CONTROL, 1)


def test_a_peers_memory_is_handed_out_itself_and_cannot_be_written() -> None:
    with pair() as (arenas, (a, b)):
        region = arenas[0].region("weights", 100)
        a.put(name(0), Span(region, 10, 5), meta=b"", dtype=DType.RAW, to=[1])
        payload = b.fetch(name(0), Span(arenas[1].region("into", 8), 0, 8)).wait(Deadline.after(1)).payload
        assert payload.readonly
        region.buffer[10] = 7
        assert payload[0] == 7


def test_a_region_that_was_replaced_is_not_taken_for_the_announced_one() -> None:
    with pair() as (arenas, (a, b)):
        region = arenas[0].region("weights", 100)
        a.put(name(0), Span(region, 0, 5), meta=b"", dtype=DType.RAW, to=[1])
        assert arenas[0].region("weights", 100_000).inode != region.inode
        with pytest.raises((BlockNotFound, ArenaError)):
            b.fetch(name(0), Span(arenas[1].region("into", 8), 0, 8)).wait(Deadline.after(1))


def test_a_put_waits_for_a_reader_that_lags_and_gives_up_at_its_deadline() -> None:
    with pair(timeout_s=0.1) as (_, (a, b)):
        for op in range(notes.SLOTS):
            a.put(name(op), None, meta=b"", dtype=DType.RAW, to=[1])
        with pytest.raises(CollectiveTimeout, match="rank 1 to read"):
            a.put(name(notes.SLOTS), None, meta=b"", dtype=DType.RAW, to=[1])
        assert b.fetch(name(0), None).wait(Deadline.after(1)).header.block == name(0)


@pytest.mark.parametrize("end", ["fence", "loss", "loss of another"])
def test_a_put_that_waits_for_room_ends_with_the_group(end: str) -> None:
    def rank(store: object) -> float:
        assert isinstance(store, SharedStore)
        if store.rank:
            assert full.wait(5)
            store.fence(1) if end == "fence" else store.abort("done for") if end == "loss" else lose_another()
            return 0.0
        for op in range(notes.SLOTS):
            store.put(name(op), None, meta=b"", dtype=DType.RAW, to=[1])
        start = time.monotonic()
        full.set()
        with pytest.raises(Fenced if end == "fence" else PeerLost):
            store.put(name(notes.SLOTS), None, meta=b"", dtype=DType.RAW, to=[1])
        return time.monotonic() - start

    def lose_another() -> None:
        control(arenas[0]).buffer[8:12] = (5).to_bytes(4, "little")

    full = threading.Event()
    with pair(timeout_s=20) as (arenas, stores):
        (took, _) = outcomes(stores, rank)
        assert isinstance(took, float), took
        assert took < 2


def test_many_notes_with_long_metas_pass_through_few_slots() -> None:
    count = 5 * notes.SLOTS

    def rank(store: object) -> list[bytes]:
        assert isinstance(store, SharedStore)
        found = []
        for op in range(count):
            if store.rank == 0:
                store.put(name(op), None, meta=bytes([op % 251]) * (op * 17), dtype=DType.RAW, to=[1])
                store.fetch(name(op, source=1), None).wait(Deadline.after(5))
            else:
                found.append(store.fetch(name(op), None).wait(Deadline.after(5)).meta)
                store.put(name(op, source=1), None, meta=b"", dtype=DType.RAW, to=[0])
        return found

    with pair() as (_, stores):
        assert outcomes(stores, rank)[1] == [bytes([op % 251]) * (op * 17) for op in range(count)]


def test_a_loss_that_the_bridge_noted_is_raised_with_its_reason() -> None:
    with pair() as (arenas, (_, b)):
        buffer = control(arenas[1]).buffer
        why = "its executor ended: \u00e9".encode()
        buffer[1088 : 1092 + len(why)] = len(why).to_bytes(4, "little") + why
        buffer[8:12] = (1).to_bytes(4, "little")
        with pytest.raises(PeerLost, match="rank 0 is lost: its executor ended: \u00e9"):
            b.fetch(name(0), None).wait(Deadline.after(5))


def test_a_fence_that_the_bridge_noted_is_raised() -> None:
    with pair() as (arenas, (a, b)):
        control(arenas[1]).buffer[4:8] = (3).to_bytes(4, "little")
        with pytest.raises(Fenced, match="superseded by generation 3"):
            b.fetch(name(0), None).wait(Deadline.after(5))
        with pytest.raises(Fenced, match="superseded by generation 3"):
            a.put(name(0), None, meta=b"", dtype=DType.RAW, to=[1])


def test_a_path_that_does_not_fit_a_note_is_refused_by_name() -> None:
    with pair() as (_, (a, b)):
        for length in (256, 257):
            region = MappedRegion("weights", "/d".ljust(length, "x"), -1, 1, memoryview(bytearray(8)))
            if length == 256:
                a.put(name(0), Span(region, 0, 8), meta=b"", dtype=DType.RAW, to=[1])
                with pytest.raises(ArenaError, match=f"at {region.path} cannot be opened"):
                    b.fetch(name(0), Span(b.region("into", 8), 0, 8)).wait(Deadline.after(1))
            else:
                with pytest.raises(ArenaError, match=f"257 bytes.*{region.path}"):
                    a.put(name(1), Span(region, 0, 8), meta=b"", dtype=DType.RAW, to=[1])


def test_misuse_is_refused_by_name() -> None:
    with pair() as (_, (a, _b)):
        with pytest.raises(ConfigError, match="not on the host"):
            a.fetch(name(0, source=5), None)
        with pytest.raises(ConfigError, match="is no shared memory"):
            a.put(name(0), Span(MemoryRegion("heap", 8), 0, 8), meta=b"", dtype=DType.RAW, to=[1])


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_region_grows_zeroed_and_gives_its_descriptor_back() -> None:
    before = open_descriptors()
    arena = LocalArena()
    first = arena.region("r", 10)
    first.buffer[0] = 1
    assert arena.region("r", 5) is first
    grown = arena.region("r", 20)
    assert (grown.size, any(grown.buffer)) == (20, False)
    assert first.buffer[0] == 1, "whoever still looks at the old one may"
    arena.close()
    del first, grown
    assert open_descriptors() == before


def test_a_region_that_cannot_be_had_says_how_much_was_needed() -> None:
    with pytest.raises(ArenaError, match=f"'huge': {1 << 50} bytes needed"):
        LocalArena().region("huge", 1 << 50)
    with pytest.raises(ArenaError, match="cannot be opened"):
        open_region("gone", "/proc/1/fd/999999", 10)
