"""A save that is killed, or told EIO or ENOSPC, at every one of its system calls."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from unit.training.crashes import WRITING, Saver, can_trace, check_failing, check_killed, saver

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def saves(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saver]:
    why_not = can_trace()
    if why_not is not None:
        pytest.skip(why_not)
    with saver(tmp_path_factory.mktemp("saves")) as found:
        yield found


def test_a_kill_at_every_call_leaves_the_old_one_or_the_new_one(saves: Saver) -> None:
    points = [point for point, _ in saves.run().calls]
    assert len(points) > 100
    # Not every run draws random numbers, or looks at a folder, as often as the one that was listened to.
    assert check_killed(saves, points) >= len(points) - 3


@pytest.mark.parametrize("call", WRITING)
def test_eio_and_enospc_at_every_call_that_changes_storage_are_told_and_harm_nothing(call: str, saves: Saver) -> None:
    points = [point for point, _ in saves.run().calls if point.call == call]
    assert points
    check_failing(saves, points, ["EIO", "ENOSPC"])
