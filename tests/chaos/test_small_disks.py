"""Disks that are too small, in a mount namespace: mizzle's memory needs none of them, and what is missing is named."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chaos.on_small_disks import CRASH

TESTS = Path(__file__).parents[1]
NAMED_S = 15.0
"""It should take 5 s, and takes 3 on an idle machine; tests share theirs with whatever else runs there."""
WHY_NOT = None
if os.geteuid() != 0 or shutil.which("unshare") is None:
    WHY_NOT = "mounting needs root and util-linux (unshare)"
pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT)),
]


def play(home: Path, mount: str, what: str) -> dict[str, Any]:
    """One application, with a mount that nobody else sees."""
    local = home / "local"
    local.mkdir()
    script = f'{mount.format(local=local)} && exec "$@"'
    command = [sys.executable, str(TESTS / "chaos" / "on_small_disks.py"), str(home), str(local), what]
    with (home / "log").open("w") as log:
        child = subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *command],
            env={**os.environ, "PYTHONPATH": str(TESTS), "PYSPARK_PYTHON": sys.executable},
            stdout=log, stderr=subprocess.STDOUT, timeout=360, check=False,
        )  # fmt: skip
    assert child.returncode == 0, (home / "log").read_text()[-4000:]
    found: dict[str, Any] = json.loads((home / "found.json").read_text())
    said = (home / "log").read_text()
    assert "SIGBUS" not in said
    assert not [path.read_text()[:4000] for path in home.glob(f"{CRASH}*")], "a JVM has crashed"
    assert found["executors"] == 2, "no executor has died"
    return found


@pytest.mark.parametrize("size", ["1m", pytest.param("64m", marks=pytest.mark.chaos)])
def test_a_training_needs_no_room_in_dev_shm(tmp_path: Path, size: str) -> None:
    found = play(tmp_path, f"mount -t tmpfs -o size={size} tmpfs /dev/shm", "memory")
    assert len(found["losses"]) == 8
    assert found["faults"] == [], "a rank that a signal ended would have been survived"


def test_a_full_local_directory_is_named(tmp_path: Path) -> None:
    found = play(tmp_path, "mount -t tmpfs -o size=8m tmpfs {local}", "disk")
    assert found["error"].startswith("DiskFull: ")
    # Where the rows were written or, of a shuffle that Spark writes, by whom.
    assert re.search(rf"{tmp_path}|spark.local.dir of executor \d on \S+: ", found["error"]), found["error"]
    assert "spark.local.dir" in found["error"]
    assert found["full_s"] < NAMED_S, "from the moment when there was no room"
