"""What the doctor reads from the system, on texts as Linux writes them."""

from __future__ import annotations

from pathlib import Path

from mizzle.spark.probe import memory_limit


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_smallest_limit_on_the_way_to_the_root_counts_in_version_2(tmp_path: Path) -> None:
    write(tmp_path / "pod" / "memory.max", "2147483648\n")
    write(tmp_path / "pod" / "box" / "memory.max", "max\n")
    assert memory_limit("0::/pod/box\n", tmp_path) == 2**31
    write(tmp_path / "pod" / "box" / "memory.max", "1073741824\n")
    assert memory_limit("0::/pod/box\n", tmp_path) == 2**30


def test_version_1_is_read_from_its_memory_controller_and_its_no_limit_is_none(tmp_path: Path) -> None:
    groups = "3:cpu,cpuacct:/x\n2:memory:/docker/ab\n0::/\n"
    write(tmp_path / "memory" / "memory.limit_in_bytes", "9223372036854771712\n")
    assert memory_limit(groups, tmp_path) is None
    # Inside a container the own group is mounted as the root, and the path told is not there.
    write(tmp_path / "memory" / "memory.limit_in_bytes", "536870912\n")
    assert memory_limit(groups, tmp_path) == 2**29


def test_a_system_without_control_groups_has_no_limit(tmp_path: Path) -> None:
    assert memory_limit("", tmp_path) is None
