"""What must not disturb a run: an attempt that lives on, storage that others fill, pauses too short to be a fault."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from chaos.zombies import BLOCKS, IMPOSTORS, ROUNDS

TESTS = Path(__file__).parents[1]
RANKS = {"ranks": 3, "transport": "auto"}
OVER_BLOCKS = {"ranks": 3, "transport": "blocks"}
FENCED, REFUSED = "4", "7"
"""Codes of the bridge's errors, as JSON has them."""
ITERATIONS, LONG = 200, 6_000

SCENES: dict[str, dict[str, Any]] = {
    "nothing": {"layout": RANKS, "iterations": ITERATIONS},
    "zombie": {
        "layout": OVER_BLOCKS, "iterations": ITERATIONS,
        "fault": {"point": "reduce", "call": 45, "action": "leave_zombie"},
    },
    "storage": {"layout": OVER_BLOCKS, "iterations": ITERATIONS, "around": "full storage"},
    "nothing, for long": {"layout": RANKS, "iterations": LONG},
    "pauses": {"layout": RANKS, "iterations": LONG, "around": "pauses", "every_s": 10.0},
}  # fmt: skip

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]


def play(home: Path, scenes: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Play scenes in a child process: a process has one SparkContext."""
    (home / "scenes.json").write_text(json.dumps(list(scenes.values())))
    with (home / "spark.log").open("w") as log:
        child = subprocess.run(
            [sys.executable, str(TESTS / "chaos" / "on_hard_cluster.py"), str(home)],
            env={**os.environ, "PYTHONPATH": str(TESTS), "PYSPARK_PYTHON": sys.executable},
            stdout=log, stderr=subprocess.STDOUT, timeout=800, check=False,
        )  # fmt: skip
    assert child.returncode == 0, (home / "spark.log").read_text()[-4000:]
    return dict(zip(scenes, json.loads((home / "found.json").read_text()), strict=True))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What came of every scene."""
    return play(tmp_path_factory.mktemp("hard"), SCENES)


@pytest.mark.parametrize("scene", ["zombie", "storage", "pauses"])
def test_the_result_is_that_of_an_undisturbed_run(found: dict[str, dict[str, Any]], scene: str) -> None:
    outcome = found[scene]
    nothing = found["nothing" if SCENES[scene]["iterations"] == ITERATIONS else "nothing, for long"]
    assert "error" not in nothing, nothing["trace"]
    assert "error" not in outcome, outcome["trace"]
    assert outcome["losses"] == nothing["losses"]
    assert outcome["model"] == nothing["model"]


def test_nothing_that_an_older_attempt_pushes_is_accepted(found: dict[str, dict[str, Any]]) -> None:
    assert found["zombie"]["struck"] == 1
    zombie = found["zombie"]["zombie"]
    assert zombie["old"] == {FENCED: ROUNDS * BLOCKS}
    assert zombie["current"] == {REFUSED: ROUNDS * BLOCKS}, "it was admitted to another generation"
    assert len(zombie["impostors"]) == IMPOSTORS
    assert all("superseded" in said and "join a group first" in said for said in zombie["impostors"])


def test_nothing_of_it_stays_in_memory(found: dict[str, dict[str, Any]]) -> None:
    zombie = found["zombie"]["zombie"]
    assert zombie["heap_bytes"] + zombie["memory_bytes"] < 64 << 20


def test_pauses_that_are_shorter_than_the_verdict_are_no_faults(found: dict[str, dict[str, Any]]) -> None:
    assert found["pauses"]["pauses"] >= 2
    assert found["pauses"]["faults"] == []
    assert found["storage"]["faults"] == []
