"""What memory cannot survive, storage does: the driver's death, and the loss of all copies of a state."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from chaos.on_saved_cluster import EVERY, LONG, fitted

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

TESTS = Path(__file__).parents[1]
GONE_S = 30.0
KILLS, LATEST_S = 10, 4.0
"""Applications that are killed one after the other, each within so many seconds of its first group."""


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


def play(home: Path, timeout_s: float, *arguments: str) -> float:
    """An application that is killed; seconds until nothing of it was left."""
    with (home / "spark.log").open("w") as log:
        killed = subprocess.run(
            [sys.executable, str(TESTS / "chaos" / "on_saved_cluster.py"), str(home), *arguments],
            env={**os.environ, "PYTHONPATH": str(TESTS), "PYSPARK_PYTHON": sys.executable},
            stdout=log, stderr=subprocess.STDOUT, timeout=timeout_s, check=False,
        )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, (home / "spark.log").read_text()[-4000:]
    begun, paused = time.monotonic(), threading.Event()
    while left := processes_of(home):
        assert time.monotonic() - begun < GONE_S, left
        paused.wait(0.1)
    return time.monotonic() - begun


@pytest.fixture(scope="module")
def found(spark_local: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of every fit."""
    home = tmp_path_factory.mktemp("saved")
    gone_s = play(home, 500)
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


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_a_driver_may_be_killed_at_any_time_and_costs_what_was_done_since_the_newest_checkpoint(
    spark_local: SparkSession, tmp_path: Path
) -> None:
    dice = random.Random(1)  # noqa: S311 - to be repeatable, not secret
    notes = [tmp_path / f"boundaries{number}" for number in range(KILLS)]
    for note in notes:
        play(tmp_path, 120, str(dice.uniform(0, LATEST_S)), str(note))
    resumed = fitted(spark_local, tmp_path, "killed at random", resume="auto", iterations=LONG)
    calm = fitted(spark_local, tmp_path, "calm", iterations=LONG)
    assert resumed["losses"] == calm["losses"]
    assert resumed["model"] == calm["model"]
    ordered = [[int(line) for line in note.read_text().split("\n")[:-1]] for note in notes]
    assert all(one == sorted(one) for one in ordered)
    for before, after in pairwise([*ordered, [resumed["first"]]]):
        # What is done again beyond that is the group that was under way.
        assert before[-1] - EVERY <= after[0] <= before[-1]
        assert after[0] % EVERY == 0
    assert len({one[0] for one in ordered}) > 3, "it got on between the kills"
