"""Whose memory it is, and how much is free, by the files of the kernel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mizzle.blocks.arena import BridgeArena, _container_free_bytes, allocate

STAT = """anon 400
{0}inactive_file 30
{0}active_file 20
{0}inactive_anon 1000
"""
V2 = ("memory.max", "memory.current", "memory.stat", "")
V1 = ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_")


def cgroup(root: Path, version: tuple[str, str, str, str], limit: str, used: int) -> Path:
    *paths, prefix = version
    for path, text in zip(paths, (f"{limit}\n", f"{used}\n", STAT.format(prefix)), strict=True):
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_text(text)
    return root


@pytest.mark.parametrize("version", [V2, V1])
def test_cached_files_count_as_free_memory_of_a_container(tmp_path: Path, version: tuple[str, str, str, str]) -> None:
    assert _container_free_bytes(cgroup(tmp_path, version, "1000", 900)) == 1000 - 900 + 30 + 20
    assert _container_free_bytes(cgroup(tmp_path, version, "1000", 2000)) == 0


def test_a_container_without_a_limit_leaves_all(tmp_path: Path) -> None:
    assert _container_free_bytes(tmp_path) is None
    assert _container_free_bytes(cgroup(tmp_path, V2, "max", 900)) is None


def test_memory_of_another_rank_is_kept_although_that_one_ends_meanwhile(tmp_path: Path) -> None:
    theirs, path = allocate("shared", 4096)

    def register(_name: str, given: Path, num_bytes: int) -> tuple[int, str]:
        os.close(theirs)  # as its death does
        with given.open("rb") as file:
            assert len(file.read()) == num_bytes
        return 7, str(given)

    region = BridgeArena([], register, tmp_path).adopt("shared", str(path), 4096)
    assert (region.number, region.size) == (7, 4096)
