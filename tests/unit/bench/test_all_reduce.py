"""The benchmark without Spark: plan, numbers, records, the gloo group."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness import run_ranks
from mizzle.bench.all_reduce import AllReducePlan, AllReduceRecord, Contender, contenders, slowest
from mizzle.bench.all_reduce_systems import (
    NARROW,
    WIDE,
    GlooSeries,
    MizzleSeries,
    Numbers,
    Samples,
    Series,
    is_exact,
    time_rank,
)
from mizzle.blocks.store import BlockStore
from mizzle.collectives.communicator import Communicator
from mizzle.errors import ConfigError
from mizzle.spark.ranks.worker import RankContext

MIZZLE = Contender("mizzle", "shm")


def plan(**changes: Any) -> AllReducePlan:
    given_: dict[str, Any] = {
        "workers": 2,
        "sizes": (1024,),
        "contenders": (MIZZLE,),
        "repeats": 10,
        "warmup": 1,
        "rounds": 3,
    } | changes
    return AllReducePlan(**given_)


def test_mizzle_takes_part_once_for_each_transport_and_the_others_once() -> None:
    found = contenders(["gloo", "mizzle", "reduce", "tree_reduce"], ["shm", "blocks"])
    assert [(one.system, one.transport) for one in found] == [
        ("gloo", "tcp"), ("mizzle", "shm"), ("mizzle", "blocks"), ("reduce", "driver"), ("tree_reduce", "driver"),
    ]  # fmt: skip


@given(repeats=st.integers(1, 1000), rounds=st.integers(1, 10))
def test_rounds_share_all_repeats_evenly_and_none_is_empty(repeats: int, rounds: int) -> None:
    shares = plan(repeats=repeats, rounds=rounds).shares
    assert sum(shares) == repeats
    assert min(shares) >= 1
    assert max(shares) - min(shares) <= 1
    assert len(shares) == min(rounds, repeats)


@pytest.mark.parametrize("changes", [{"sizes": (2,)}, {"sizes": (1024, 1022)}, {"sizes": ()}, {"contenders": ()}])
def test_a_plan_that_cannot_be_measured_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        plan(**changes)


def test_the_exact_sum_is_exact_in_fp32_in_any_order_up_to_500_ranks() -> None:
    ranks, iteration = 500, 63
    rows = [WIDE.pattern(3000) + np.float32(WIDE.offset(rank, iteration)) for rank in range(ranks)]
    forwards, backwards = np.zeros(3000, np.float32), np.zeros(3000, np.float32)
    for row, other in zip(rows, reversed(rows), strict=True):
        forwards += row
        backwards += other
    assert np.array_equal(forwards, backwards)
    assert is_exact(forwards, ranks, iteration)
    assert np.array_equal(forwards.astype(np.float64), np.sum(rows, axis=0, dtype=np.float64))


def test_the_narrow_sums_and_all_that_travels_for_them_are_exact_in_16_bits_up_to_8_ranks() -> None:
    for iteration in range(NARROW.iterations):
        rows = [NARROW.pattern(100) + np.float32(NARROW.offset(rank, iteration)) for rank in range(8)]
        for values in (*rows, np.sum(rows, axis=0)):
            for dtype in (torch.bfloat16, torch.float16):
                exact = torch.from_numpy(values)
                assert torch.equal(exact.to(dtype).float(), exact)


def test_stale_missing_or_shifted_data_is_not_exact() -> None:
    def total(*ranks: int, iteration: int = 5) -> np.ndarray:
        rows = [WIDE.pattern(2048) + np.float32(WIDE.offset(rank, iteration)) for rank in ranks]
        added: np.ndarray = np.stack(rows).sum(axis=0)
        return added

    assert is_exact(total(0, 1, 2), 3, 5)
    assert not is_exact(total(0, 1, 2, iteration=4), 3, 5)
    assert not is_exact(total(0, 1), 3, 5)
    assert not is_exact(total(0, 1, 1), 3, 5)
    assert not is_exact(np.roll(total(0, 1, 2), 1024), 3, 5)


def test_an_iteration_takes_as_long_as_its_slowest_rank() -> None:
    found = slowest([Samples([0.1, 0.4], verified=True), Samples([0.3, 0.2], verified=True)])
    assert found == Samples([0.3, 0.4], verified=True)


def test_cpu_time_of_an_iteration_is_that_of_all_ranks_together() -> None:
    ranks = [Samples([0.1, 0.4], verified=True, cpu_seconds=[1.0, 2.0]) for _ in range(3)]
    assert slowest(ranks).cpu_seconds == [3.0, 6.0]


def test_a_series_is_verified_only_if_every_rank_is() -> None:
    assert not slowest([Samples([0.1], verified=True), Samples([0.1], verified=False)]).verified


def test_a_record_has_exactly_the_promised_fields_over_all_rounds() -> None:
    rounds = [Samples([float(n) for n in range(1, 51)], verified=True), Samples([51.0, 52.0], verified=True)]
    record = AllReduceRecord.of(MIZZLE, 4, 1024, rounds).as_dict()
    assert record == {
        "system": "mizzle", "transport": "shm", "workers": 4, "bytes": 1024, "median_s": 26.5,
        "p95_s": pytest.approx(49.45), "min_s": 1.0, "repeats": 52, "verified": True, "host_cpu_s": None,
    }  # fmt: skip
    assert not AllReduceRecord.of(MIZZLE, 4, 1024, [*rounds, Samples([1.0], verified=False)]).verified


@dataclass(frozen=True, slots=True)
class Job:
    """What a series asks of a rank's job."""

    timeout_s: float = 30.0


@dataclass
class Rank(Communicator):
    """A rank's context without Spark."""

    store: BlockStore
    host: str = "127.0.0.1"
    terms: Job = field(default_factory=Job)

    def __post_init__(self) -> None:
        super().__init__(self.store, timeout_s=30.0)


def context(store: BlockStore) -> RankContext:
    return cast("RankContext", Rank(store))


@pytest.mark.parametrize(
    "body",
    [
        MizzleSeries,
        lambda series: MizzleSeries(series, wire="bf16"),
        lambda series: MizzleSeries(series, wire="fp16"),
        lambda series: GlooSeries(series, one_host=True),
    ],
)
def test_mizzle_and_gloo_give_the_exact_sum_and_one_time_for_each_repeat(body: Any) -> None:
    threads = torch.get_num_threads()
    try:
        found = run_ranks(3, lambda store: body(Series(5000, warmup=2, repeats=4))(context(store)))
    finally:
        torch.set_num_threads(threads)
    assert [(len(samples.seconds), samples.verified) for samples in found] == [(4, True)] * 3
    assert all(second > 0 for samples in found for second in samples.seconds)
    assert all(len(samples.cpu_seconds) == 4 and min(samples.cpu_seconds) > 0 for samples in found)


def test_a_system_that_hands_back_stale_data_is_not_verified() -> None:
    def stale(store: BlockStore) -> Samples:
        rank = context(store)
        kept: list[torch.Tensor] = []

        def reduce(array: torch.Tensor) -> torch.Tensor:
            kept.append(rank.all_reduce(array))
            return kept[0]

        return time_rank(rank, Series(100, warmup=0, repeats=2), reduce)

    threads = torch.get_num_threads()
    try:
        assert not any(samples.verified for samples in run_ranks(2, stale))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("numbers", [WIDE, NARROW])
def test_offsets_differ_between_ranks_and_from_iteration_to_iteration(numbers: Numbers) -> None:
    for iteration in range(8):
        assert len({numbers.offset(rank, iteration) for rank in range(8)}) == 8
        assert numbers.total_offset(8, iteration) != numbers.total_offset(8, iteration + 1)
    assert numbers.total_offset(3, 1) == sum(numbers.offset(rank, 1) for rank in range(3))
