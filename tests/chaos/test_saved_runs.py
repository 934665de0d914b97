"""What memory cannot survive, storage does: the driver's death, and the loss of all copies of a state."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parents[1]
GONE_S = 30.0


def ended(scene: str, home: Path, timeout_s: float) -> int:
    """How an application of its own ends: it is to be killed."""
    with (home / f"{scene}.spark.log").open("w") as log:
        return subprocess.run(
            [sys.executable, str(TESTS / "chaos" / "on_saved_cluster.py"), scene, str(home)],
            env={**os.environ, "PYTHONPATH": str(TESTS), "PYSPARK_PYTHON": sys.executable},
            stdout=log, stderr=subprocess.STDOUT, timeout=timeout_s, check=False,
        ).returncode  # fmt: skip


def processes_of(home: Path) -> list[str]:
    """Command lines of all processes that were started for this test: they know its directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                told = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue
            if str(home).encode() in told:
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of every fit."""
    home = tmp_path_factory.mktemp("saved")
    assert ended("killed", home, 500) == -signal.SIGKILL, (home / "killed.spark.log").read_text()[-4000:]
    begun = time.monotonic()
    while left := processes_of(home):
        assert time.monotonic() - begun < GONE_S, left
    gone_s = time.monotonic() - begun
    assert ended("resumed", home, 300) == 0, (home / "resumed.spark.log").read_text()[-4000:]
    outcomes: dict[str, Any] = json.loads((home / "found.json").read_text())
    return outcomes | {"gone_s": gone_s}


@pytest.mark.timeout(860)
def test_a_run_whose_driver_was_killed_goes_on_in_a_new_application(found: dict[str, Any]) -> None:
    resumed, calm = found["driver killed"], found["calm"]
    assert resumed["resumed_at"] in {6, 12, 18}, "at a checkpoint"
    assert resumed["first"] == resumed["resumed_at"]
    assert resumed["losses"] == calm["losses"]
    assert resumed["model"] == calm["model"]


def test_executors_and_ranks_of_a_killed_driver_end(found: dict[str, Any]) -> None:
    assert found["gone_s"] < GONE_S


def test_a_run_that_lost_all_copies_of_a_state_goes_back_to_its_newest_checkpoint(found: dict[str, Any]) -> None:
    lost, calm = found["all lost"], found["calm"]
    assert any("goes back to checkpoint" in cause for cause in lost["faults"]), lost["faults"]
    assert lost["losses"] == calm["losses"]
    assert lost["model"] == calm["model"]
    assert lost["saved"][-1] == calm["saved"][-1]
