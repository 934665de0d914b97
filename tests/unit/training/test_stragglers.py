from __future__ import annotations

import logging
from statistics import median_low
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mizzle.errors import ConfigError
from mizzle.spark.slow import note_stragglers
from mizzle.training.history import TrainingHistory
from mizzle.training.stragglers import LEAST_S, SLOW, STREAK, WARM_UP, Straggler, StragglerWatch
from unit.training.runs import Mlp, Training, digits
from unit.training.test_rank import sgd

SECONDS = st.floats(0.05, 5.0)


def watched(iterations: list[list[float]], first: int = 0) -> StragglerWatch:
    watch = StragglerWatch()
    for number, seconds in enumerate(iterations, start=first):
        watch.observe(number, seconds)
    return watch


@settings(deadline=None)
@given(
    st.integers(2, 9), st.data(), SECONDS, st.floats(2.6, 50.0), st.integers(STREAK, 12), st.integers(0, 2**30),
)  # fmt: skip
def test_a_rank_slowed_down_is_named_with_its_factor_and_nobody_else(
    ranks: int, data: st.DataObject, base: float, factor: float, iterations: int, first: int
) -> None:
    slow = data.draw(st.integers(0, ranks - 1))
    noise = st.lists(st.floats(0.9, 1.1), min_size=ranks, max_size=ranks)
    seen = [
        [base * one * (factor if rank == slow else 1.0) for rank, one in enumerate(data.draw(noise))]
        for _ in range(WARM_UP + iterations)
    ]
    (found,) = watched(seen, first).take()
    assert (found.rank, found.since, found.iterations) == (slow, first + WARM_UP, iterations)
    assert found.factor == pytest.approx(factor, rel=0.25)


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(1.0, 1.99), min_size=5, max_size=5), max_size=20), SECONDS)
def test_nobody_is_slow_where_none_takes_twice_the_median(iterations: list[list[float]], base: float) -> None:
    assert watched([[base * one for one in seconds] for seconds in iterations]).take() == ()


@settings(deadline=None)
@given(st.lists(st.lists(st.one_of(st.just(0.0), SECONDS), min_size=4, max_size=4), max_size=25))
def test_who_is_named_was_over_the_limit_in_that_many_iterations_behind_each_other(
    iterations: list[list[float]],
) -> None:
    for one in watched(iterations).take():
        assert one.since >= WARM_UP
        streak = [s for s in iterations[one.since :] if s[one.rank] > 0][: one.iterations]
        assert len(streak) == one.iterations >= STREAK
        medians = [median_low([seconds for seconds in s if seconds > 0]) for s in streak]
        assert all(s[one.rank] > SLOW * median for s, median in zip(streak, medians, strict=True))
        assert one.factor == pytest.approx(sum(s[one.rank] for s in streak) / sum(medians))


def test_a_pause_a_warm_up_and_noise_make_no_straggler() -> None:
    calm, pause = [1.0, 1.0, 1.0], [1.0, 9.0, 1.0]
    assert watched([calm] * 3 + [pause] * (STREAK - 1) + [calm] * 3).take() == ()
    assert watched([pause] * (WARM_UP + STREAK - 1) + [calm]).take() == ()
    assert watched([[0.001, 0.001, 0.9 * LEAST_S]] * 20).take() == (), "9 times as long, but nobody waits 10 ms"
    assert watched([[0.001, 0.001, 1.2 * LEAST_S]] * 20).take() != ()


def test_of_two_ranks_the_faster_one_is_normal_and_one_alone_is_never_slow() -> None:
    assert [one.rank for one in watched([[8.0, 1.0]] * 5).take()] == [0]
    assert watched([[8.0]] * 50).take() == ()
    assert watched([[0.0, 8.0, 0.0]] * 50).take() == (), "who had nothing to do is nobody's measure"


def test_a_slow_spell_is_told_again_as_it_goes_on_and_a_new_one_by_itself() -> None:
    watch = watched([[1.0, 1.0, 4.0]] * 5)
    assert watch.take() == (Straggler(2, 2, 3, 4.0),)
    assert watch.take() == (), "nothing new was seen"
    watch.observe(5, [1.0, 1.0, 6.0])
    assert watch.take() == (Straggler(2, 2, 4, 4.5),)
    watch.observe(6, [1.0, 1.0, 1.0])
    for iteration in (7, 8, 9):
        watch.observe(iteration, [3.0, 1.0, 7.5])
    assert watch.take() == (Straggler(2, 7, 3, 2.5),), "the median is 3 now"
    for iteration in (10, 11, 12):
        watch.observe(iteration, [3.0, 1.0, 1.0], [1, 0, 0])
    assert [one.rank for one in watch.take()] == [0], "who dropped a shard was slow, whatever it took"


def test_the_limit_follows_the_ranks_and_is_unknown_at_first() -> None:
    watch = StragglerWatch()
    limits = []
    for iteration in range(20):
        limits.append(watch.limit_s)
        watch.observe(iteration, [0.5 if iteration == 9 else 1.0, 1.1, 1.2, 30.0])
    assert limits[: WARM_UP + STREAK] == [None] * (WARM_UP + STREAK)
    assert limits[WARM_UP + STREAK :] == [SLOW * 1.1] * (20 - WARM_UP - STREAK)
    tiny = watched([[0.001, 0.001]] * 9).limit_s
    assert tiny == 0.001 + LEAST_S
    growing = watched([[1.0, 1.0]] * 9)
    growing.observe(9, [2.0, 2.0], [1, 1])
    assert growing.limit_s == SLOW * 1.0, "one slow iteration changes nothing"
    growing.observe(10, [2.0, 2.0], [1, 1])
    assert growing.limit_s == SLOW * 2.0, "all were stopped again: the next one has more time"
    short_and_long = watched([[1.0, 1.0], [0.1, 0.1]] * 9)
    assert short_and_long.limit_s == SLOW * 1.0, "epochs of two iterations, the second one with few rows"


def test_an_executor_is_warned_of_once_and_every_spell_is_in_the_history(caplog: pytest.LogCaptureFixture) -> None:
    history = TrainingHistory()
    places = {1: ("7", "hostA"), 2: ("8", "hostB")}
    groups = [
        [Straggler(1, 4, 3, 9.5)], [Straggler(1, 4, 7, 10.0), Straggler(2, 9, 3, 3.0)], [], [Straggler(1, 20, 3, 8.0)],
    ]  # fmt: skip
    with caplog.at_level(logging.WARNING, "mizzle.spark.slow"):
        for found in groups:
            note_stragglers("0123456789", history, found, places.__getitem__)
    warned = [record.getMessage() for record in caplog.records]
    assert len(warned) == 2
    assert warned[0].startswith("run=0123 rank=1 executor=7 host=hostA iteration=4: computes 9.5 times as long")
    assert [(one.executor, one.since, one.iterations, one.factor) for one in history.stragglers] == [
        ("7", 4, 7, 10.0), ("8", 9, 3, 3.0), ("7", 20, 3, 8.0),
    ]  # fmt: skip


def test_a_policy_that_does_not_exist_or_cannot_be_had_is_refused() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"stragglers": "kill"}, "stragglers is 'kill'; give 'wait' or 'drop'"),
        ({"stragglers": "drop", "overlap": True}, "stragglers='drop' sends no gradient before its shard is done"),
    ]
    for options, message in cases:
        with pytest.raises(ConfigError, match=message):
            Training(Mlp, digits(), sgd, options=options).spec(Mlp())
