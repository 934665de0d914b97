"""A save that is killed or fails somewhere leaves the old checkpoint or the new one. At every call: `tests/chaos`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from unit.training.crashes import WRITING, Point, Saver, can_trace, check_failing, check_killed, saver


@pytest.fixture(scope="module")
def saves(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saver]:
    why_not = can_trace()
    if why_not is not None:
        pytest.skip(why_not)
    with saver(tmp_path_factory.mktemp("saves")) as found:
        yield found


def test_a_save_that_is_killed_at_some_calls_leaves_the_old_one_or_the_new_one(saves: Saver) -> None:
    points = [point for point, _ in saves.run().calls]
    rename = next(at for at, point in enumerate(points) if point.call == "renameat")
    some = [*points[5 : rename - 1 : 14], *points[rename - 1 : rename + 2], *points[rename + 8 : -1 : 17]]
    assert check_killed(saves, some) == len(some)


def test_a_save_whose_calls_fail_says_so_and_harms_nothing(saves: Saver) -> None:
    last = {point.call: point for point, _ in saves.run().calls if point.call in WRITING}
    assert last.keys() == set(WRITING)
    check_failing(saves, [last["renameat"], Point("fsync", 2)], ["EIO"])
    check_failing(saves, [Point("write", 2)], ["ENOSPC"])


def test_all_is_on_disk_before_the_manifest_has_its_name_and_the_name_before_the_save_returns(saves: Saver) -> None:
    """What a loss of power would show, and no kill can: the kernel keeps what a killed process wrote."""
    done = [found for _, line in saves.run().calls if (found := deed(line)) is not None]
    name = next(what for call, what in done if call == "rename")
    folder = name.rpartition("/")[0]
    root = folder.rpartition("/")[0]
    before, after = done[: done.index(("rename", name))], done[done.index(("rename", name)) + 1 :]
    written = [what for call, what in before if call == "write"]
    assert [Path(one).name for one in written] == [
        "part-00000.safetensors", "part-00001.safetensors", "frozen.safetensors", ".MANIFEST.json",
    ]  # fmt: skip
    for one in written:
        assert ("fsync", one) in before[before.index(("write", one)) :], f"{one} is not on disk before it counts"
        assert ("fsync", folder) in before[before.index(("write", one)) :] or one.endswith(".MANIFEST.json")
    assert ("fsync", root) in before, "the folder may be gone after a loss of power"
    removing = next(at for at, (call, _) in enumerate(after) if call == "unlink")
    assert ("fsync", folder) in after[:removing], "the manifest's name may be gone when older ones are removed"
    old, _, first = after[removing][1].rpartition("/")
    assert first == "MANIFEST.json", "it would still look like a checkpoint with its files gone"
    assert after[removing + 1] == ("fsync", old), "the manifest may be back after a loss of power"


def deed(line: str) -> tuple[str, str] | None:
    """What a line of the trace did to which path."""
    for call, pattern in (
        ("write", r"write\(\d+<(.*?)>"), ("fsync", r"fsync\(\d+<(.*?)>"),
        ("unlink", r"unlinkat\(\d+<(.*?)>, \"(.*?)\""), ("rename", r"renameat\(\d+<(.*?)>, \"(.*?)\""),
    ):  # fmt: skip
        found = re.match(pattern, line)
        if found is not None:
            return call, "/".join(found.groups())
    return None
