"""Groups cover a run exactly, and end where an epoch does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mizzle.scheduling.plan import Group, plan_groups

NUMBERS = st.integers(1, 60)


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


@given(per_epoch=NUMBERS, total=st.integers(0, 200), size=NUMBERS)
def test_a_group_is_short_only_at_the_end_of_an_epoch_or_of_the_run(per_epoch: int, total: int, size: int) -> None:
    for group in plan_groups(per_epoch, total, size):
        assert group.size == size or group.stop == total or group.stop % per_epoch == 0


def test_the_example_of_the_documentation() -> None:
    assert list(plan_groups(iterations_per_epoch=5, num_iterations=7, group_size=3)) == [
        Group(0, first=0, size=3, epoch=0, first_in_epoch=0),
        Group(1, first=3, size=2, epoch=0, first_in_epoch=3),
        Group(2, first=5, size=2, epoch=1, first_in_epoch=0),
    ]
    assert not list(plan_groups(5, 0, 3))
