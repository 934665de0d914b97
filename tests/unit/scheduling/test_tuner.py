"""The tuner finds the group size, keeps its bounds, sits still in a noisy world and follows one that changes."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mizzle.errors import ConfigError
from mizzle.scheduling.tuner import Decision, FixedSize, GroupTiming, GroupTuner, TunerConfig, sizer_for

NO_LIMIT = TunerConfig(max_group_s=1e9)
LIMIT_S = TunerConfig().max_group_s
SECONDS = st.floats(1e-6, 100.0)


@dataclass(frozen=True)
class Seen:
    """One group as it went: its number, the iterations up to its end, its own size, its seconds, what came of it."""

    number: int
    stop: int
    size: int
    wall_s: float
    decision: Decision
    settled: bool

    @property
    def changed(self) -> bool:
        return self.decision.size != self.size


@dataclass(frozen=True)
class World:
    """What jobs and iterations cost, seconds, and by how much single groups may differ from that."""

    overhead_s: float
    iteration_s: float
    noise: float = 0.0


def simulate(
    tuner: GroupTuner,
    world: Callable[[int], World],
    *,
    groups: int,
    seed: int = 0,
    cold: World = World(2.0, 0.3),
    cut: Callable[[int], int] = lambda _: 10**9,
) -> list[Seen]:
    """Run groups of the sizes that the tuner wants, in a world that may differ from group to group.

    The first group costs ``cold`` on top. ``cut`` gives the iterations until the next trigger, by group.
    """
    draw = random.Random(seed)  # noqa: S311 - noise, no secret
    seen: list[Seen] = []
    stop = 0
    for number in range(groups):
        now = world(number)
        size = min(tuner.decision.size, cut(number))
        overhead_s, iteration_s = (
            mean * (1 + now.noise * draw.uniform(-1, 1)) for mean in (now.overhead_s, now.iteration_s)
        )
        if number == 0:
            overhead_s, iteration_s = overhead_s + cold.overhead_s, iteration_s + cold.iteration_s
        wall_s = overhead_s + size * iteration_s
        stop += size
        decision = tuner.observe(GroupTiming(size, wall_s, overhead_s))
        seen.append(Seen(number, stop, size, wall_s, decision, tuner.settled))
    return seen


def share(size: int, world: World) -> float:
    return world.overhead_s / (world.overhead_s + size * world.iteration_s)


def needing(size: float, iteration_s: float, noise: float = 0.0) -> World:
    """A world in which scheduling takes exactly the tuner's target at this size."""
    return World(size * iteration_s * 0.01 / 0.99, iteration_s, noise)


# --- bounds


@settings(deadline=None)
@given(
    timings=st.lists(
        st.builds(GroupTiming, st.integers(1, 2000), st.floats(0, 1e6), st.floats(-1.0, 1e6)), min_size=1, max_size=40
    ),
    start=st.integers(1, 50),
    max_size=st.integers(50, 5000),
)
def test_whatever_it_sees_the_size_is_within_its_bounds_and_a_step_within_its_factors(
    timings: list[GroupTiming], start: int, max_size: int
) -> None:
    config = TunerConfig(start=start, max_size=max_size)
    tuner = GroupTuner(config)
    steady = tuner.decision.size
    for timing in timings:
        decision = tuner.observe(timing)
        assert decision is tuner.decision
        assert 1 <= decision.size <= max_size
        # a group kept short for once may be followed by the size that was held before it
        assert decision.size <= max(config.growth * steady, steady)
        steady = max(steady, decision.size)
        assert decision.reason
        assert decision.limit in {"group size", "time limit"}


@settings(deadline=None)
@given(overhead_s=SECONDS, iteration_s=SECONDS, limit_s=st.floats(0.5, 60.0))
def test_no_group_lasts_longer_than_the_limit_once_iterations_are_known_except_a_single_one(
    overhead_s: float, iteration_s: float, limit_s: float
) -> None:
    tuner = GroupTuner(TunerConfig(max_group_s=limit_s))
    for seen in simulate(tuner, lambda _: World(overhead_s, iteration_s), groups=30)[2:]:
        assert seen.size == 1 or seen.wall_s <= limit_s


@settings(deadline=None)
@given(need=st.integers(50, 2000), seed=st.integers(0, 10**6))
def test_noisy_iterations_do_not_carry_a_group_over_the_limit(need: int, seed: int) -> None:
    world = needing(need, 0.05, noise=0.2)
    for seen in simulate(GroupTuner(), lambda _: world, groups=60, seed=seed)[2:]:
        assert seen.wall_s <= LIMIT_S


@settings(deadline=None)
@given(before=st.floats(0.001, 0.05), factor=st.floats(1.0, 1000.0))
def test_only_the_first_group_of_slower_iterations_may_break_the_limit(before: float, factor: float) -> None:
    tuner = GroupTuner()
    change = 8
    seen = simulate(
        tuner, lambda number: World(0.1, before if number < change else before * factor, 0.0), groups=30
    )  # fmt: skip
    for one in seen[2:]:
        assert one.number == change or one.size == 1 or one.wall_s <= LIMIT_S


# --- settling


@settings(deadline=None)
@given(need=st.floats(0.01, 400.0), iteration_s=st.floats(1e-4, 10.0))
def test_it_settles_within_100_iterations_and_then_stays(need: float, iteration_s: float) -> None:
    world = World(need * iteration_s * 0.01 / 0.99, iteration_s)
    seen = simulate(GroupTuner(NO_LIMIT), lambda _: world, groups=30)
    last_change = max((one.stop for one in seen if one.changed), default=0)
    assert last_change <= 100
    assert seen[-1].settled
    assert share(seen[-1].decision.size, world) <= 0.01
    assert all(one.settled for one in seen if one.stop >= 100)


@settings(deadline=None)
@given(need=st.floats(1.0, 400.0), iteration_s=st.floats(1e-4, 0.2))
def test_the_default_settles_within_100_iterations_under_the_time_limit_too(need: float, iteration_s: float) -> None:
    world = World(need * iteration_s * 0.01 / 0.99, iteration_s)
    seen = simulate(GroupTuner(), lambda _: world, groups=30, cold=World(3.0, iteration_s))
    assert max((one.stop for one in seen if one.changed), default=0) <= 100


@settings(deadline=None)
@given(need=st.integers(1, 1000), seed=st.integers(0, 10**6), long_s=st.sampled_from([LIMIT_S, 1e9]))
def test_noise_of_20_percent_never_makes_it_swing(need: int, seed: int, long_s: float) -> None:
    tuner = GroupTuner(TunerConfig(max_group_s=long_s))
    seen = simulate(tuner, lambda _: needing(need, 0.02, noise=0.2), groups=120, seed=seed)
    sizes = [one.decision.size for one in seen]
    moves = [after - before for before, after in itertools.pairwise(sizes) if after != before]
    turns = sum((one > 0) != (other > 0) for one, other in itertools.pairwise(moves))
    assert turns <= 1, moves
    assert len([one for one in seen if one.stop > 100 and one.changed]) <= 2, moves


def test_caches_that_warm_up_over_the_first_groups_do_not_leave_it_too_high() -> None:
    overheads = [0.15, 0.15, 0.06]
    tuner = GroupTuner()
    seen = simulate(tuner, lambda n: World(overheads[n] if n < 3 else 0.04, 0.05), groups=20)
    assert seen[2].stop == 95
    assert {one.decision.size for one in seen[2:]} == {238}, "the aim at 60 ms, twice what 1 % needs"
    assert seen[-1].settled


def test_a_cold_first_group_is_short_and_its_overhead_is_forgotten() -> None:
    seen = simulate(GroupTuner(), lambda _: World(0.001, 0.1), groups=6, cold=World(30.0, 0.0))
    assert [one.size for one in seen] == [1, 9, 2, 2, 2, 2]


def test_groups_cut_short_by_triggers_do_not_mislead_it() -> None:
    world = needing(100, 0.02)
    free = simulate(GroupTuner(), lambda _: world, groups=30)
    cut = simulate(GroupTuner(), lambda _: world, groups=30, cut=lambda number: 1 if number % 3 else 10**9)
    assert cut[-1].decision == free[-1].decision
    assert cut[-1].settled


# --- outliers and changes


@settings(deadline=None)
@given(
    need=st.integers(2, 300),
    at=st.integers(2, 20),
    factor=st.sampled_from([100.0, 10.0, 3.0]),
    where=st.sampled_from(["overhead", "iterations", "both"]),
)
@example(need=60, at=2, factor=100.0, where="iterations")  # while it still climbs
@example(need=60, at=2, factor=100.0, where="overhead")
def test_one_outlier_changes_nothing_that_lasts(need: int, at: int, factor: float, where: str) -> None:
    world = needing(need + 0.25, 0.01)  # a quarter, so that no aim is a whole number but for rounding
    overhead = factor if where != "iterations" else 1.0
    iterations = factor if where != "overhead" else 1.0
    bad = World(world.overhead_s * overhead, world.iteration_s * iterations)
    undisturbed = simulate(GroupTuner(), lambda _: world, groups=30)
    seen = simulate(GroupTuner(), lambda number: bad if number == at else world, groups=30)
    assert seen[-1].decision.size == undisturbed[-1].decision.size
    assert [one.size for one in seen[at + 4 :]] == [undisturbed[-1].decision.size] * (30 - at - 4)
    assert seen[-1].settled


def test_an_outlier_in_overhead_does_not_even_change_the_next_group() -> None:
    world = needing(50, 0.02)
    seen = simulate(
        GroupTuner(), lambda number: World(100 * world.overhead_s, 0.02) if number == 10 else world, groups=20
    )
    assert {one.decision.size for one in seen[5:]} == {seen[5].decision.size}
    assert not seen[10].settled, "a doubt is no settled state"
    assert seen[11].settled


CLIMB = 2 + 4  # two groups to believe it, then the largest K is at most four factors of 9.5 away


@settings(deadline=None)
@given(before=st.floats(0.5, 400.0), after=st.floats(0.5, 400.0), what=st.sampled_from(["overhead", "iterations"]))
def test_a_step_is_followed_within_a_stated_number_of_groups(before: float, after: float, what: str) -> None:
    first = World(before * 0.01 * 0.01 / 0.99, 0.01)
    ratio = after / before
    then = (
        World(first.overhead_s * ratio, 0.01) if what == "overhead" else World(first.overhead_s, 0.01 / ratio)
    )  # fmt: skip
    change = 10
    tuner = GroupTuner(NO_LIMIT)
    seen = simulate(tuner, lambda number: first if number < change else then, groups=80)
    settled = seen[-1].decision.size
    assert share(settled, then) <= 0.01 or math.isclose(share(settled, then), 0.01, rel_tol=0.02)
    assert settled == 1 or share(settled, then) >= 0.0025 * 0.98
    falling = math.ceil(max(0, seen[change].size - settled) / tuner.config.decrease)
    # a step that the band swallows, or nearly so, enters by the average: ten groups forget 97 % of the past
    allowed = max(CLIMB + falling, 10 + falling)
    assert {one.decision.size for one in seen[change + allowed :]} == {settled}


def test_a_tenfold_overhead_is_believed_at_its_second_group_and_met_there() -> None:
    cheap, dear = needing(20, 0.01), needing(200, 0.01)
    seen = simulate(GroupTuner(), lambda number: cheap if number < 10 else dear, groups=20)
    assert [one.decision.size for one in seen[9:13]] == [41, 41, 389, 389]


def test_an_overhead_that_falls_is_followed_by_subtraction_down_to_the_aim_and_no_further() -> None:
    dear, cheap = needing(100, 0.01), needing(20, 0.01)
    seen = simulate(GroupTuner(), lambda number: dear if number < 10 else cheap, groups=20)
    assert [one.decision.size for one in seen[9:16]] == [202, 202, 152, 102, 52, 52, 52]


# --- what people read


def test_reasons_tell_figures_and_what_changes() -> None:
    tuner = GroupTuner()
    assert tuner.decision == Decision(1, "start: 1")
    reasons = [tuner.observe(GroupTiming(size, wall, overhead)).reason for size, wall, overhead in [
        (1, 2.5, 2.0), (9, 0.48, 0.03), (85, 4.28, 0.03), (120, 6.03, 0.03), (120, 60.0, 0.03), (23, 1.18, 0.03),
        (120, 6.03, 0.03),
    ]]  # fmt: skip
    assert reasons == [
        "scheduling 80 % > 1.00 %: 1 -> 9",
        "scheduling 6.25 % > 1.00 %: 9 -> 85",
        "scheduling 0.70 % near 1.00 %: 85 -> 120",
        "scheduling 0.50 % within 0.25 %..1.00 %: stays 120",
        "group of 60.0 s > 20.0 s, if iterations stay so slow: 120 -> 23",
        "scheduling 0.50 % within 0.25 %..1.00 %: 23 -> 120",
        "scheduling 0.50 % within 0.25 %..1.00 %: stays 120",
    ]


def test_where_time_limits_the_size_the_decision_says_so() -> None:
    seen = simulate(GroupTuner(), lambda _: World(0.2, 0.05), groups=6)
    last = seen[-1].decision
    assert last.limit == "time limit"
    assert re.fullmatch(r"scheduling \S+ % > 1.00 %, but a group may last 20.0 s: stays \d+", last.reason)
    assert seen[-1].settled


def test_a_little_more_room_is_used_where_it_brings_scheduling_below_its_bound_and_only_there() -> None:
    def world(number: int) -> World:
        return World(0.13 if number < 25 else 0.11, 0.12 if number < 5 else 0.1)

    seen = simulate(GroupTuner(TunerConfig(start=20)), world, groups=50)
    sizes = [one.decision.size for one in seen]
    assert sizes[4] == 98, "12 s of iterations"
    assert sizes[24] == 98, "118 would fit, and still miss the bound"
    assert sizes[-1] == 118
    assert share(118, world(49)) <= 0.01 < min(share(98, world(49)), share(118, world(24)))


def test_a_fixed_size_stays_whatever_happens() -> None:
    sizer = sizer_for(7)
    assert isinstance(sizer, FixedSize)
    assert sizer.settled
    assert sizer.decision == sizer.observe(GroupTiming(7, 1e6, 1e6)) == Decision(7, "fixed")


def test_auto_is_a_tuner_with_the_given_settings() -> None:
    sizer = sizer_for("auto", TunerConfig(start=5))
    assert isinstance(sizer, GroupTuner)
    assert sizer.decision.size == 5
    assert not sizer.settled


@pytest.mark.parametrize("group_size", [0, -3])
def test_a_group_has_at_least_one_iteration(group_size: int) -> None:
    with pytest.raises(ConfigError, match=f"group_size is {group_size}"):
        sizer_for(group_size)


def test_another_word_than_auto_is_refused() -> None:
    with pytest.raises(ConfigError, match="'Auto'"):
        sizer_for("Auto")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [("target", 0.0), ("target", 1.0), ("target", math.nan), ("lower", 0.9), ("start", 0), ("start", 5000),
     ("max_size", 0), ("max_group_s", 0.0), ("weight", 1.5), ("outlier", 1.0), ("growth", 1.5), ("decrease", 0)],
)  # fmt: skip
def test_a_setting_without_a_meaning_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{name} of the group tuner is {value}"):
        TunerConfig(**{name: value})  # type: ignore[arg-type]


def test_clocks_that_disagree_make_nothing_negative() -> None:
    timing = GroupTiming(4, 1.0, -0.001)
    assert (timing.overhead_s, timing.iteration_s) == (0.0, 0.25)
    timing = GroupTiming(4, 1.0, 1.001)
    assert (timing.overhead_s, timing.iteration_s) == (1.0, 0.0)
