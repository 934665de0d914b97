"""A fault costs seconds, never the result: each fit ends with the bits of the one that nothing happened to.

One Spark application plays all scenes, on executors of their own that really die; Spark starts new ones.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parents[1]
MASTER = "local-cluster[3,1,1024]"
RANKS = {"ranks": 3, "transport": "auto"}
BLOCKS = {"ranks": 3, "transport": "blocks"}
FEWER = {"ranks": (1, 3), "transport": "auto"}

SCENES: dict[str, dict[str, Any]] = {
    "nothing": {"layout": RANKS},
    "rank killed in backward": {"layout": RANKS, "fault": {"point": "backward", "call": 6, "action": "kill_rank"}},
    "rank crashed in update": {"layout": BLOCKS, "fault": {"point": "update", "call": 10, "action": "crash_rank"}},
    "rank left while it kept": {"layout": RANKS, "fault": {"point": "keep", "call": 3, "action": "exit_rank"}},
    "executor killed at publish": {
        "layout": FEWER, "fault": {"point": "publish", "call": 12, "action": "kill_executor"},
    },
    "executor killed at gather": {
        "layout": BLOCKS, "fault": {"point": "gather", "call": 7, "action": "kill_executor"},
    },
    "executor killed with copies given": {
        "layout": RANKS, "fault": {"point": "copy", "call": 2, "action": "kill_executor", "after": True},
    },
    "executor stopped in reduce": {
        "layout": FEWER, "fault": {"point": "reduce", "call": 8, "action": "stop_executor"},
    },
    "executor stopped while ranks take their places": {
        "layout": FEWER, "fault": {"point": "settle", "call": 1, "action": "stop_executor"},
    },
    "executor killed before the model was fetched": {"layout": FEWER, "at_fetch": True},
    "two executors killed, one behind the other": {
        "layout": FEWER, "fault": {"point": "reduce", "call": 14, "action": "kill_executor", "times": 2},
    },
}  # fmt: skip
ITERATED: dict[str, dict[str, Any]] = {
    "nothing, iterated": {"layout": {}, "iterate": True},
    "executor killed in a step": {
        "layout": {}, "iterate": True, "fault": {"point": "forward", "call": 0, "action": "kill_executor"},
    },
}  # fmt: skip


def play(
    home: Path, scenes: Mapping[str, dict[str, Any]], timeout_s: float, program: str = "on_faulty_cluster.py"
) -> dict[str, dict[str, Any]]:
    """Play scenes in a child process: a process has one SparkContext."""
    (home / "scenes.json").write_text(json.dumps([{"master": MASTER, **scene} for scene in scenes.values()]))
    with (home / "spark.log").open("w") as log:
        child = subprocess.run(
            [sys.executable, str(TESTS / "chaos" / program), str(home)],
            env={**os.environ, "PYTHONPATH": str(TESTS), "PYSPARK_PYTHON": sys.executable},
            stdout=log, stderr=subprocess.STDOUT, timeout=timeout_s, check=False,
        )  # fmt: skip
    assert child.returncode == 0, (home / "spark.log").read_text()[-4000:]
    return dict(zip(scenes, json.loads((home / "found.json").read_text()), strict=True))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What came of every scene."""
    return play(tmp_path_factory.mktemp("chaos"), SCENES | ITERATED, 420)


@pytest.mark.timeout(480)
@pytest.mark.parametrize("scene", SCENES)
def test_the_result_is_that_of_a_run_without_a_fault(found: dict[str, dict[str, Any]], scene: str) -> None:
    outcome, nothing = found[scene], found["nothing"]
    assert "error" not in outcome, outcome["trace"]
    times = SCENES[scene].get("fault", {}).get("times", 0 if scene == "nothing" else 1)
    assert len(outcome["struck"]) == times, "the fault really struck"
    assert outcome["sizes"][0] == 3 or "take their places" in scene
    assert outcome["resume_s"] is None or outcome["resume_s"] < 60, "long before Spark's own two minutes"
    assert outcome["losses"] == nothing["losses"]
    assert outcome["model"] == nothing["model"]


@pytest.mark.parametrize(
    "scene", [scene for scene, how in SCENES.items() if "executor" in scene and how["layout"] == FEWER]
)
def test_the_run_goes_on_with_those_that_are_left(found: dict[str, dict[str, Any]], scene: str) -> None:
    assert min(found[scene]["sizes"]) < 3


def test_an_iterated_computation_goes_on_with_every_ranks_state(found: dict[str, dict[str, Any]]) -> None:
    outcome, nothing = found["executor killed in a step"], found["nothing, iterated"]
    assert "error" not in nothing, nothing["trace"]
    assert "error" not in outcome, outcome["trace"]
    assert len(outcome["struck"]) == 1
    assert outcome["losses"] == nothing["losses"]
    assert outcome["model"] == nothing["model"]
