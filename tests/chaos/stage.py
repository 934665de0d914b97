"""Scenes are played in a child process, because a process has one SparkContext; and how their outcome is judged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chaos.checker import History, complaints, recomputed

TESTS = Path(__file__).parents[1]
MASTER = "local-cluster[3,1,1024]"
Scene = dict[str, Any]
"""What is played: "layout" of the run, "faults" (each the arguments of `chaos.faults.Fault`), "shifts" (see
`chaos.membership.Shifts`), "executors" that must be there, "limit" of them, "group" (K), "iterations", "how" (further
arguments of the Trainer), "pace_s" of a shard, "busy", "at_fetch", "iterate", "beside", "look" (at what a run holds),
"silent" (what strikes ends no connection), "held_up_s" (for so long the scene itself keeps the run from going on after
a fault); and what other programs play (`chaos.on_hung_cluster`)."""
ENDS = frozenset({
    "kill_executor", "stop_executor", "pause_executor", "pause_executor_long", "kill_holders", "shrink_to",
    "kill_rank", "crash_rank", "exit_rank", "leave_zombie",
})  # fmt: skip
"""What ends an executor or a rank, or lets the driver believe so: names of `chaos.faults.ACTIONS`, and of shifts."""


def fault(point: str, call: int, action: str, **more: Any) -> dict[str, Any]:
    """One of a scene's faults."""
    return {"point": point, "call": call, "action": action, **more}


def strikes(scene: Scene) -> int:
    """How many faults must have struck."""
    faults: int = sum(one.get("times", 1) for one in scene.get("faults", ()))
    return faults + len(scene.get("shifts", ())) + bool(scene.get("at_fetch"))


def play(
    home: Path, scenes: Mapping[str, Scene], timeout_s: float, program: str = "on_faulty_cluster.py", *,
    master: str = MASTER, **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """Play scenes.

    Args:
        home: an empty directory.
        scenes: by name.
        timeout_s: for all of them.
        program: that plays, beside this file.
        master: of Spark.
        more: what else it is told.
    """
    (home / "stage.json").write_text(json.dumps({"master": master, "scenes": dict(scenes), **more}))
    with (home / "spark.log").open("w") as log:
        child = subprocess.run(
            [sys.executable, str(TESTS / "chaos" / program), str(home)],
            env={**os.environ, "PYTHONPATH": str(TESTS), "PYSPARK_PYTHON": sys.executable},
            stdout=log, stderr=subprocess.STDOUT, timeout=timeout_s, check=False,
        )  # fmt: skip
    assert child.returncode == 0, (home / "spark.log").read_text()[-4000:]
    found: dict[str, Any] = json.loads((home / "found.json").read_text())
    return found


def assert_kept(outcome: Mapping[str, Any], calm: Mapping[str, Any], *, strikes: int) -> None:
    """The run was struck so often, and went on to the end as if nothing had happened.

    What ended somebody was a fault for the run too (but for what struck before it had ranks), and each cost one group
    at most.
    """
    assert "error" not in outcome, outcome["trace"]
    assert len(outcome["struck"]) == strikes, f"the faults really struck: {outcome['struck']}"
    history = History.of(outcome["history"])
    assert complaints(history, History.of(calm["history"])) == []
    unseen = [name for name in outcome["unseen"] if ends_somebody(name)]
    assert not unseen, f"{unseen} struck, and the driver saw no fault: {outcome['faults']}"
    again = recomputed(history)
    assert len(again) <= outcome["group"] * max(1, strikes), f"iterations {again} were computed again"


def ends_somebody(struck: str) -> bool:
    """Whether it did, by its name in the ledger, and there were ranks."""
    point, _, rest = struck.partition(".")
    return struck == "fetch" or (rest.split(".")[0] in ENDS and point != "deal")


def assert_ended(outcome: Mapping[str, Any], error: str, *, strikes: int) -> None:
    """The run was struck so often, and ended with that error, in time and without leaving anything."""
    assert "error" in outcome, "it went on"
    assert outcome["error"].startswith(error), outcome["trace"]
    assert len(outcome["struck"]) == strikes, f"the faults really struck: {outcome['struck']}"
    assert complaints(History.of(outcome["history"]), History()) == []
