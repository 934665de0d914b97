"""Groups cover a run exactly, and end where a trigger fires."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mizzle.errors import ConfigError
from mizzle.scheduling.plan import Group, Triggers, plan_groups

NUMBERS = st.integers(1, 60)
TRIGGERS = st.builds(
    Triggers,
    st.integers(0, 200),
    st.none() | NUMBERS,
    st.dictionaries(st.sampled_from(["validation", "checkpoint"]), NUMBERS),
)


def groups_of(triggers: Triggers, sizes: list[int]) -> list[Group]:
    """All groups of a run whose sizer asks for these sizes, in turn."""
    groups: list[Group] = []
    first = 0
    while first < triggers.num_iterations:
        groups.append(triggers.next_group(len(groups), first, sizes[len(groups) % len(sizes)]))
        first = groups[-1].stop
    return groups


@settings(deadline=None)
@given(per_epoch=NUMBERS, total=st.integers(0, 200), size=NUMBERS)
def test_groups_cover_every_iteration_once_and_never_cross_an_epochs_end(per_epoch: int, total: int, size: int) -> None:
    groups = list(plan_groups(per_epoch, total, size))
    covered = [i for group in groups for i in range(group.first, group.stop)]
    assert covered == list(range(total))
    for number, group in enumerate(groups):
        assert group.number == number
        assert 1 <= group.size <= size
        assert {i // per_epoch for i in range(group.first, group.stop)} == {group.epoch}
        assert group.first_in_epoch == group.first - group.epoch * per_epoch


@settings(deadline=None)
@given(per_epoch=NUMBERS, total=st.integers(0, 200), size=NUMBERS)
def test_a_group_is_short_only_at_the_end_of_an_epoch_or_of_the_run(per_epoch: int, total: int, size: int) -> None:
    for group in plan_groups(per_epoch, total, size):
        assert group.size == size or group.stop == total or group.stop % per_epoch == 0


@settings(deadline=None)
@given(triggers=TRIGGERS, sizes=st.lists(NUMBERS, min_size=1, max_size=8))
def test_whatever_sizes_are_asked_for_triggers_fall_on_boundaries_and_the_groups_say_which(
    triggers: Triggers, sizes: list[int]
) -> None:
    groups = groups_of(triggers, sizes)
    assert [i for group in groups for i in range(group.first, group.stop)] == list(range(triggers.num_iterations))
    fired = {group.stop: triggers.fires(group.stop) for group in groups if triggers.fires(group.stop)}
    every_iteration = range(1, triggers.num_iterations + 1)
    assert fired == {stop: triggers.fires(stop) for stop in every_iteration if triggers.fires(stop)}
    for group in groups:
        assert group.size <= sizes[group.number % len(sizes)]
        assert group.cut == (", ".join(triggers.fires(group.stop)) or "group size")
        assert triggers.next_boundary(group.first) >= group.stop


def test_the_example_of_the_documentation() -> None:
    assert list(plan_groups(iterations_per_epoch=5, num_iterations=7, group_size=3)) == [
        Group(0, first=0, size=3, epoch=0, first_in_epoch=0, cut="group size"),
        Group(1, first=3, size=2, epoch=0, first_in_epoch=3, cut="epoch end"),
        Group(2, first=5, size=2, epoch=1, first_in_epoch=0, cut="end"),
    ]
    assert not list(plan_groups(5, 0, 3))


def test_validation_every_500_falls_behind_iterations_499_and_999() -> None:
    triggers = Triggers(1200, every={"validation": 500, "checkpoint": 1000})
    cuts = {group.stop: group.cut for group in groups_of(triggers, [300])}
    assert cuts == {
        300: "group size", 500: "validation", 800: "group size", 1000: "validation, checkpoint", 1200: "end",
    }  # fmt: skip
    assert triggers.next_boundary(499) == 500
    assert triggers.next_boundary(500) == 1000
    assert triggers.fires(0) == ()


def test_an_epochs_end_is_named_beside_what_else_falls_there() -> None:
    triggers = Triggers(10, 5, {"validation": 5})
    assert [triggers.fires(stop) for stop in (4, 5, 10)] == [
        (), ("epoch end", "validation"), ("epoch end", "validation", "end"),
    ]  # fmt: skip


def test_what_limited_the_size_is_named_only_where_no_trigger_fires() -> None:
    triggers = Triggers(10)
    assert triggers.next_group(0, 0, 4, limit="time limit").cut == "time limit"
    assert triggers.next_group(1, 4, 6, limit="time limit").cut == "end"


def test_without_epochs_all_is_epoch_0() -> None:
    group = Triggers(10).next_group(3, 6, 100)
    assert (group.epoch, group.first_in_epoch, group.size) == (0, 6, 4)


def test_triggers_and_groups_travel() -> None:
    triggers = Triggers(10, 5, {"validation": 2})
    assert pickle.loads(pickle.dumps(triggers)) == triggers  # noqa: S301 - just made
    group = triggers.next_group(0, 0, 9)
    assert pickle.loads(pickle.dumps(group)) == group  # noqa: S301 - just made


@pytest.mark.parametrize(
    ("total", "per_epoch", "every", "complaint"),
    [
        (-1, None, {}, "num_iterations is -1"),
        (1, 0, {}, "iterations_per_epoch is 0"),
        (1, None, {"validation": 0}, "'validation' is every 0 iterations"),
        (1, None, {"end": 5}, "named 'end'"),
        (1, None, {"a, b": 5}, "named 'a, b'"),
    ],
)
def test_triggers_without_a_meaning_are_refused(
    total: int, per_epoch: int | None, every: dict[str, int], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Triggers(total, per_epoch, every)
