"""What memory cannot survive, storage does: the driver's death, and the loss of all copies of a state."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from chaos.on_saved_cluster import fitted

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

TESTS = Path(__file__).parents[1]
GONE_S = 30.0


def processes_of(home: Path) -> list[str]:
    """Command lines of all processes that were started for this test: they know its directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command, settings = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
            except OSError:
                continue  # it has ended
            if str(home).encode() in command + settings:
                found.append(command.replace(b"\0", b" ").decode())
    return found


@pytest.fixture(scope="module")
def found(spark_local: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of every fit."""
    home = tmp_path_factory.mktemp("saved")
    with (home / "spark.log").open("w") as log:
        killed = subprocess.run(
            [sys.executable, str(TESTS / "chaos" / "on_saved_cluster.py"), str(home)],
            env={**os.environ, "PYTHONPATH": str(TESTS), "PYSPARK_PYTHON": sys.executable},
            stdout=log, stderr=subprocess.STDOUT, timeout=500, check=False,
        )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, (home / "spark.log").read_text()[-4000:]
    begun = time.monotonic()
    while left := processes_of(home):
        assert time.monotonic() - begun < GONE_S, left
    gone_s = time.monotonic() - begun
    outcomes: dict[str, Any] = json.loads((home / "found.json").read_text())
    return outcomes | {"gone_s": gone_s, "driver killed": fitted(spark_local, home, "driver killed", resume="auto")}


@pytest.mark.timeout(700)
def test_a_run_whose_driver_was_killed_goes_on_in_a_new_application(found: dict[str, Any]) -> None:
    resumed, calm = found["driver killed"], found["calm"]
    assert resumed["resumed_at"] in {6, 12, 18}, "at a checkpoint"
    assert resumed["went_on_from"] == []
    assert resumed["first"] == resumed["resumed_at"]
    assert resumed["losses"] == calm["losses"]
    assert resumed["model"] == calm["model"]


def test_executors_and_ranks_of_a_killed_driver_end(found: dict[str, Any]) -> None:
    assert found["gone_s"] < GONE_S


def test_a_run_that_lost_all_copies_of_a_state_goes_back_to_its_newest_checkpoint(found: dict[str, Any]) -> None:
    lost, calm = found["all lost"], found["calm"]
    (struck_at,), (went_on_from,) = lost["struck_at"], lost["went_on_from"]
    assert went_on_from in {6, 12, 18}, "at a checkpoint"
    assert went_on_from < struck_at
    assert lost["losses"] == calm["losses"]
    assert lost["model"] == calm["model"]
    assert lost["saved"][-1] == calm["saved"][-1]
