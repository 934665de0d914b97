"""What happens when ranks disagree, stop or are late."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from contract.stores import memory, shared
from harness import memory_stores, outcomes
from mizzle.blocks.deadline import Deadline
from mizzle.blocks.ids import BlockId, DType, Header, Kind
from mizzle.blocks.memory import MemoryStore
from mizzle.blocks.store import BlockStore, Fetched
from mizzle.collectives import Communicator, Exchange, ExchangeLayout, Node, Wire
from mizzle.collectives.collective import Collective
from mizzle.collectives.handover import MAX_SHARE_BYTES
from mizzle.collectives.signature import Signature, check_agree, shape_of, shape_text, unpack
from mizzle.errors import CollectiveMismatch, CollectiveTimeout, ConfigError, PeerLost

Call = Callable[[Communicator], object]
ONES = np.ones(6, np.float32)


def in_turn(*calls: Callable[[], object]) -> None:
    for call in calls:
        call()


MISMATCHES: dict[str, tuple[Call, Call, str, str]] = {
    "shape": (lambda c: c.all_reduce(ONES), lambda c: c.all_reduce(ONES.reshape(2, 3)), "shape=6", "shape=2x3"),
    "longer": (lambda c: c.all_reduce(ONES), lambda c: c.all_reduce(np.tile(ONES, 999)), "shape=6", "shape=5994"),
    "rounds": (lambda c: c.all_reduce(ONES), lambda c: c.all_reduce(np.tile(ONES, 9999)), "shape=6", "shape=59994"),
    "dtype": (
        lambda c: c.all_reduce(ONES), lambda c: c.all_reduce(ONES.astype(np.int32)), "dtype=float32", "dtype=int32",
    ),
    "op": (lambda c: c.all_reduce(ONES, "sum"), lambda c: c.all_reduce(ONES, "max"), "op=sum", "op=max"),
    "call": (lambda c: c.all_reduce(ONES), lambda c: c.barrier(), "all_reduce op=sum", "barrier"),
    "wire": (lambda c: c.all_reduce(ONES), lambda c: c.all_reduce(ONES, wire="bf16"), "wire=float32", "wire=bfloat16"),
    "root": (lambda c: c.broadcast(ONES, 0), lambda c: c.broadcast(ONES, 2), "root=0", "root=2"),
    "receiver": (lambda c: c.broadcast(ONES, 0), lambda c: c.broadcast(np.ones(7), 0), "shape=6", "shape=7"),
    "rows": (lambda c: c.all_gather(np.ones((2, 3))), lambda c: c.all_gather(np.ones((2, 4))), "row=3", "row=4"),
    "dims": (lambda c: c.all_gather(np.ones(2)), lambda c: c.all_gather(np.array(2.0)), "dims=1", "dims=0"),
    "alignment": (
        lambda c: c.reduce_scatter(ONES, alignment=2), lambda c: c.reduce_scatter(ONES, alignment=3), "alignment=2",
        "alignment=3",
    ),
    "num_shards": (
        lambda c: c.all_reduce_shards({c.rank: ONES}, 3), lambda c: c.all_reduce_shards({c.rank: ONES}, 4), "shards=3",
        "shards=4",
    ),
    "order": (
        lambda c: in_turn(c.barrier, lambda: c.all_reduce(ONES)), lambda c: in_turn(c.barrier, c.barrier),
        "all_reduce op=sum", "barrier",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISMATCHES)
@pytest.mark.parametrize("odd", [0, 1, 2])
@pytest.mark.parametrize("near", [False, True])
def test_ranks_that_call_different_things_are_all_refused_by_name(case: str, odd: int, *, near: bool) -> None:
    usual, other, usual_text, other_text = MISMATCHES[case]
    with shared(3) if near else memory(3, in_place=False) as opened:
        found = outcomes(opened.stores, lambda store: (other if store.rank == odd else usual)(Communicator(store)))
    agreeing = ", ".join(str(rank) for rank in range(3) if rank != odd)
    for error in found:
        assert isinstance(error, CollectiveMismatch), error
        said = dict(part.split(": ", 1) for part in str(error).split("; ")[1:])
        assert usual_text in said[f"ranks {agreeing}"]
        assert other_text in said[f"rank {odd}"]


def test_exchanges_of_another_layout_are_refused() -> None:
    placements = {0: ((0, 1), (2,)), 1: ((0,), (1, 2))}

    def rank(store: BlockStore) -> None:
        exchange = Exchange(store, ExchangeLayout(50, 3, placements[store.rank]), wire=Wire.FP32, timeout_s=10)
        exchange.publish(0, 0, active=exchange.nodes, meta=b"")
        exchange.reduce()

    for error in outcomes(memory_stores(2), rank):
        assert isinstance(error, CollectiveMismatch)
        assert "rank 0: exchange" in str(error)
        assert "rank 1: exchange" in str(error)


def test_a_timeout_names_call_ranks_and_seconds() -> None:
    stores = memory_stores(4)
    communicator = Communicator(stores[1], timeout_s=30)
    with pytest.raises(CollectiveTimeout, match=r"all_reduce \(iteration 0, op 0\).*waited 0.1 s.*ranks 0, 2, 3$"):
        communicator.all_reduce(ONES, timeout_s=0.1)
    with pytest.raises(PeerLost, match="rank 1 is lost: CollectiveTimeout"):
        Communicator(stores[0]).barrier()


class Coming:
    """A fetch of a block that is there, or is not."""

    def __init__(self, *, there: bool) -> None:
        self.there = there

    def wait(self, _deadline: Deadline) -> Fetched:
        if not self.there:
            raise CollectiveTimeout("not there")
        return Fetched(
            Header(BlockId("r", 0, 0, 0, Kind.RESULT, 0, 0), DType.RAW, 0, 0), b"", memoryview(b""), in_place=True
        )


def test_who_is_waited_for_one_after_the_other_is_named_with_all_others_that_are_late() -> None:
    signature = Signature("exchange")
    collective = Collective(memory_stores(5)[0], 0, 0, signature=signature, timeout_s=1)
    coming = [(1, Coming(there=True)), *((rank, Coming(there=rank == 3)) for rank in (2, 3, 4))]
    blocks = collective.await_each(coming)
    next(blocks)
    with pytest.raises(CollectiveTimeout, match="still missing: ranks 2, 4") as found:
        next(blocks)
    assert (found.value.missing, found.value.heard) == ((2, 4), (1, 3))


def test_a_failing_rank_frees_its_peers_within_two_seconds() -> None:
    failed_at: list[float] = []

    def rank(store: BlockStore) -> None:
        with Communicator(store, timeout_s=50) as communicator:
            communicator.barrier()
            if store.rank == 1:
                failed_at.append(time.monotonic())
                raise ZeroDivisionError("user code")
            communicator.all_reduce(ONES)

    start_to_end = outcomes(memory_stores(3), rank)
    assert time.monotonic() - failed_at[0] < 2.0
    assert isinstance(start_to_end[1], ZeroDivisionError)
    for error in (start_to_end[0], start_to_end[2]):
        assert isinstance(error, PeerLost)
        assert error.rank == 1
        assert "ZeroDivisionError: user code" in str(error)


def test_a_bad_argument_on_one_rank_frees_the_others() -> None:
    found = outcomes(memory_stores(2), lambda s: Communicator(s).all_reduce(ONES if s.rank else np.ones(2, bool)))
    assert isinstance(found[0], ConfigError)
    assert isinstance(found[1], PeerLost)


def test_a_context_ends_only_when_all_have_ended_so_stores_may_close() -> None:
    others_done = threading.Event()
    done: list[int] = []

    def rank(store: BlockStore) -> list[float]:
        with Communicator(store) as communicator:
            found = np.asarray(communicator.all_reduce(np.ones(5000)))
            if store.rank == 2:
                assert not others_done.is_set()
        done.append(store.rank)
        others_done.set()
        assert isinstance(store, MemoryStore)
        store.close()
        return [float(found[0])]

    assert outcomes(memory_stores(3), rank) == [[3.0]] * 3
    assert sorted(done) == [0, 1, 2]


def test_phases_out_of_order_are_refused() -> None:
    [store] = memory_stores(1)
    exchange = Exchange(store, ExchangeLayout(5, 1, ((0,),)), wire=Wire.FP32, timeout_s=1)
    with pytest.raises(ConfigError, match="after publish"):
        exchange.reduce()
    exchange.publish(0, 0, active=exchange.nodes, meta=b"")
    exchange.reduce()
    exchange.gather()
    with pytest.raises(ConfigError, match="after publish"):
        exchange.gather()
    with pytest.raises(ConfigError, match="over the limit"):
        exchange.share(0, 1, bytes(MAX_SHARE_BYTES + 1))
    with pytest.raises(ConfigError, match="contributes"):
        exchange.contribution(Node(3, 4))


@pytest.mark.parametrize("shards", [((0,),), ((0, 1), (1,)), ((0, 2), ())])
def test_a_layout_in_which_a_shard_is_missing_or_held_twice_is_refused(shards: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ConfigError, match="held by one rank"):
        ExchangeLayout(10, 2, shards)


def test_an_exchange_wants_the_number_of_ranks_of_its_store() -> None:
    with pytest.raises(ConfigError, match="2 ranks"):
        Exchange(memory_stores(1)[0], ExchangeLayout(1, 2, ((0,), (1,))), wire=Wire.FP32, timeout_s=1)


def test_signatures_survive_packing_and_unknown_fields_agree_with_all() -> None:
    signature = Signature.of("broadcast", root=1, shape=shape_text((3, 4)), dtype=None)
    assert unpack(signature.pack(b"rest")) == (signature, b"rest")
    assert signature.text == "broadcast root=1 shape=3x4"
    assert [shape_of(shape_text(shape)) for shape in ((), (0,), (3, 4))] == [(), (0,), (3, 4)]
    check_agree({0: signature, 1: Signature.of("broadcast", root=1)}, "here")
    with pytest.raises(CollectiveMismatch, match="rank 0: broadcast root=1 shape=3x4; rank 1: broadcast root=2"):
        check_agree({0: signature, 1: Signature.of("broadcast", root=2)}, "here")
