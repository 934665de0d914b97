"""What the doctor reads from the system, on texts as Linux writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mizzle.spark.probe import listeners, memory_limit

TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1
   1: 020200C0:8515 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2
   2: 0100007F:8515 0100007F:0016 01 00000000:00000000 00:00000000 00000000     0        0 3
"""
TCP6 = """\
   0: 0000000000000000FFFF00000100007F:942F 00000000000000000000000000000000:0000 0A 0 0 0 0 0 0 4
   1: 00000000000000000000000000000000:97E5 00000000000000000000000000000000:0000 0A 0 0 0 0 0 0 5
   2: 00000000000000000000000001000000:93A5 00000000000000000000000000000000:0000 0A 0 0 0 0 0 0 6
"""


@pytest.mark.parametrize(
    ("port", "addresses"),
    [
        (0x1F90, ["0.0.0.0"]),  # noqa: S104 - nothing is bound
        (0x8515, ["192.0.2.2"]),
        (0x942F, ["127.0.0.1"]),
        (0x97E5, ["::"]),
        (0x93A5, ["::1"]),
        (1, []),
    ],
)
def test_the_address_that_a_port_listens_on_is_read_from_the_kernels_table(port: int, addresses: list[str]) -> None:
    assert listeners(TCP + TCP6, port) == addresses


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
