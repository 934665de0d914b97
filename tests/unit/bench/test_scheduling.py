"""The scheduling benchmark without Spark: plan, turns, records, the chain of states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mizzle.bench.application import Settings
from mizzle.bench.scheduling import Contender, SchedulingPlan, SchedulingRecord, bench_scheduling
from mizzle.bench.scheduling_plain import GroupSamples, GroupSeries, contribution, first_state, state_after
from mizzle.errors import ConfigError

MIZZLE = Contender("mizzle", 10)


def plan(**changes: Any) -> SchedulingPlan:
    given_: dict[str, Any] = {
        "workers": (2, 4),
        "group_sizes": (1, 10),
        "systems": ("spark", "spark2", "mizzle"),
        "body_s": 0.5,
        "repeats": 5,
        "warmup": 25,
        "rounds": 2,
    } | changes
    return SchedulingPlan(**given_)


class Applications:
    """Instead of Spark: notes who ran what; a group takes as many seconds as it has iterations, and its body."""

    def __init__(self, *, segments: int | None = 30, broken: Sequence[int] = ()) -> None:
        self.open: list[Settings] = []
        self.seen: list[Settings] = []
        self.ran: list[tuple[bool, GroupSeries]] = []
        self._segments, self._broken = segments, broken

    @contextmanager
    def start(self, settings: Settings) -> Iterator[_Running]:
        self.open.append(settings)
        self.seen.append(settings)
        yield _Running(self, settings)
        self.open.remove(settings)

    def run(self, settings: Settings, series: GroupSeries) -> GroupSamples:
        assert {one.workers for one in self.open} == {settings.workers} == {series.ranks}
        self.ran.append((settings.with_mizzle, series))
        seconds = [series.group_size * (1 + series.body_s)] * series.repeats
        return GroupSamples(seconds, self._segments, len(self.ran) not in self._broken)


class _Running:
    def __init__(self, applications: Applications, settings: Settings) -> None:
        self._applications, self._settings = applications, settings

    def run(self, series: GroupSeries) -> GroupSamples:
        return self._applications.run(self._settings, series)


def test_every_application_first_runs_jobs_that_do_not_count() -> None:
    applications = Applications()
    result = bench_scheduling(plan(workers=(3,), settle=40), applications.start)
    settling = [(with_mizzle, series) for with_mizzle, series in applications.ran if series.warmup == 40]
    assert [(with_mizzle, one.system, one.group_size, one.body_s) for with_mizzle, one in settling] == [
        (False, "spark", 1, 0.0), (True, "mizzle", 1, 0.0),
    ]  # fmt: skip
    assert applications.ran[:2] == settling
    assert {record.repeats for record in result.records} == {5}


def test_mizzle_takes_part_once_for_each_group_size_and_plain_spark_once() -> None:
    assert plan().contenders == (
        Contender("spark", 1), Contender("spark2", 1), Contender("mizzle", 1), Contender("mizzle", 10),
    )  # fmt: skip


def test_plain_spark_and_mizzle_run_in_applications_of_their_own_and_take_turns_in_reversed_order() -> None:
    applications = Applications()
    bench_scheduling(plan(workers=(3,)), applications.start)
    assert applications.seen == [Settings(3, with_mizzle=False), Settings(3, with_mizzle=True)]
    assert applications.open == []
    turns = [(with_mizzle, series.system, series.group_size) for with_mizzle, series in applications.ran]
    first = [(False, "spark", 1), (False, "spark2", 1), (True, "mizzle", 1), (True, "mizzle", 10)]
    assert turns == first + first[::-1]
    assert [series.repeats for _, series in applications.ran] == [2] * 4 + [3] * 4


def test_only_the_applications_that_are_needed_are_started() -> None:
    applications = Applications()
    bench_scheduling(plan(workers=(2,), systems=("spark",), group_sizes=()), applications.start)
    assert applications.seen == [Settings(2, with_mizzle=False)]


def test_every_series_is_warmed_up_by_whole_groups_at_least_two() -> None:
    assert plan(warmup=25).series(MIZZLE, 2, 3).warmup == 3
    assert plan(warmup=5).series(MIZZLE, 2, 3).warmup == 2
    assert plan(warmup=25).series(Contender("spark", 1), 2, 3).warmup == 25


@given(repeats=st.integers(1, 1000), rounds=st.integers(1, 10))
def test_rounds_share_all_repeats_evenly_and_none_is_empty(repeats: int, rounds: int) -> None:
    shares = plan(repeats=repeats, rounds=rounds).shares
    assert sum(shares) == repeats
    assert min(shares) >= 1
    assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize(
    "changes",
    [{"workers": ()}, {"systems": ()}, {"systems": ("mizzle",), "group_sizes": ()}, {"workers": (0,)},
     {"group_sizes": (0, 1)}],
)  # fmt: skip
def test_a_plan_that_cannot_be_measured_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        plan(**changes)


def test_a_record_has_exactly_the_promised_fields_per_iteration_over_all_rounds() -> None:
    rounds = [GroupSamples([1.0, 2.0], 30, verified=True), GroupSamples([9.0], 15, verified=True)]
    assert SchedulingRecord.of(MIZZLE, 4, 0.05, rounds).as_dict() == {
        "system": "mizzle", "workers": 4, "group_size": 10, "body_s": 0.05, "iteration_s": 0.2,
        "overhead_s": pytest.approx(0.15), "driver_messages_per_iteration": 1.5, "repeats": 3,
    }  # fmt: skip


def test_messages_that_were_not_counted_in_some_round_are_not_guessed() -> None:
    rounds = [GroupSamples([1.0], 30, verified=True), GroupSamples([1.0], None, verified=True)]
    assert SchedulingRecord.of(MIZZLE, 4, 0.0, rounds).driver_messages_per_iteration is None


def test_records_come_for_each_number_of_workers_in_the_order_of_the_contenders() -> None:
    result = bench_scheduling(plan(), Applications().start)
    found = [(record.workers, record.system, record.group_size, record.repeats) for record in result.records]
    assert found == [(workers, who.system, who.group_size, 5) for workers in (2, 4) for who in plan().contenders]
    assert all((record.iteration_s, record.overhead_s) == (1.5, 1.0) for record in result.records)
    assert result.wrong == []


def test_a_wrong_sum_in_any_round_is_told_with_its_contender() -> None:
    assert bench_scheduling(plan(), Applications(broken=[5]).start).wrong == ["mizzle, K = 10 with 2 workers"]


@given(ranks=st.integers(1, 40), iterations=st.integers(0, 12))
def test_states_are_exact_whole_numbers_in_any_order_of_the_sum(ranks: int, iterations: int) -> None:
    state = first_state()
    for _ in range(iterations):
        rows = [contribution(state, rank, 0.0) for rank in range(ranks)]
        state = np.zeros(1024, np.float32)
        for row in reversed(rows):
            state += row
    assert state.dtype == np.float32
    assert np.array_equal(state, state_after(ranks, iterations))
    assert np.array_equal(state, np.round(state))


@given(ranks=st.integers(2, 16), iterations=st.integers(1, 12), spoilt=st.integers(0, 11), how=st.integers(0, 2))
def test_an_array_that_is_missing_stale_or_added_twice_spoils_the_last_state(
    ranks: int, iterations: int, spoilt: int, how: int
) -> None:
    before = state = first_state()
    for iteration in range(iterations):
        rows = [contribution(state, rank, 0.0) for rank in range(ranks)]
        if iteration == spoilt % iterations:
            old = contribution(before if iteration else before[::-1], 0, 0.0)
            rows = [rows[1:], [old, *rows[1:]], [*rows, rows[0]]][how]
        before, state = state, np.sum(rows, axis=0)
    assert not np.array_equal(state, state_after(ranks, iterations))
