"""Faults without end: minutes of a random mix, and a hundred kills. Every fit keeps its bits, and nothing piles up.

`MIZZLE_SOAK_S` seconds (300), a fault every `MIZZLE_SOAK_EVERY_S` (15), by `MIZZLE_SOAK_SEED`; `MIZZLE_SOAK_KILLS`
(100). What was seen goes to ``build/soak.json``.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from chaos.checker import History, complaints
from chaos.records import DEATH, SILENCE
from chaos.stage import play

MASTER = "local-cluster[4,1,1024]"
SOAK_S = float(os.environ.get("MIZZLE_SOAK_S", "300"))
EVERY_S = float(os.environ.get("MIZZLE_SOAK_EVERY_S", "15"))
KILLS = int(os.environ.get("MIZZLE_SOAK_KILLS", "100"))
GOODPUT = 0.4
SEED = int(os.environ.get("MIZZLE_SOAK_SEED", "7"))
SCENE: dict[str, Any] = {"layout": {"ranks": (2, 4), "transport": "auto"}, "iterations": 120, "pace_s": 0.02}
SMALL = {"spark.ui.retainedJobs": "20", "spark.ui.retainedStages": "20", "spark.sql.ui.retainedExecutions": "5"}
"""What Spark remembers of past jobs is no leak, and must not look like one."""
BUILD = Path(__file__).parents[2] / "build"


def soak(home: Path, timeout_s: float, **more: Any) -> dict[str, Any]:
    found = play(
        home, {}, timeout_s, "on_soak.py", master=MASTER, scene=SCENE, executors=4, seed=SEED,
        conf=SMALL, **more,
    )  # fmt: skip
    return found | {"fits": [json.loads(line) for line in (home / "fits.json").read_text().splitlines()]}


def report(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """For people: goodput is what the same iterations take in peace, of the time that they took."""
    calm_s = found["calm"]["wall_s"]
    told = {
        "faults": Counter(fault for _, fault in found["struck"]), "fits": found["under_fire"],
        "wall_s": found["wall_s"], "goodput": calm_s * found["under_fire"] / found["wall_s"],
        "longest_without_commit_s": max(after - before for before, after in pairwise([found["begun"], *found["ends"]])),
        "before": found["before"], "after": found["after"],
    }  # fmt: skip
    BUILD.mkdir(exist_ok=True)
    (BUILD / f"{name}.json").write_text(json.dumps(told, indent=2))
    return told


def waits(outcome: dict[str, Any], struck: list[tuple[float, str]]) -> list[tuple[str, float, float]]:
    """How long one fit took for what struck it, where the driver saw it before the next one struck."""
    found = []
    for (at, fault), (next_at, _) in pairwise([*struck, (math.inf, "")]):
        seen = zip(outcome["noticed_at"], outcome["resumed_at"], strict=True)
        noticed, resumed = next((times for times in seen if times[1] > at), (math.inf, math.inf))
        if outcome["begun"] < at and fault != "executor_pause" and noticed < next_at:
            limits = SILENCE if fault == "executor_stop" else DEATH
            found.append((f"the verdict on {fault}", max(noticed - at, 0.0), limits.known_s))
            found.append((f"the first group after {fault}", resumed - at, limits.resumed_s))
    return found


def assert_every_fit_kept(found: dict[str, Any]) -> None:
    struck = [(at, fault) for at, fault in found["struck"]]
    for outcome in found["fits"]:
        assert "error" not in outcome, outcome["trace"]
        outcome["history"]["waits"] = waits(outcome, struck)
        assert complaints(History.of(outcome["history"]), History.of(found["calm"]["history"])) == []
    assert found["left"] == []


def assert_nothing_piled_up(told: dict[str, Any]) -> None:
    before, after = told["before"], told["after"]
    for name in ("jvm_fds", "python_fds"):
        assert after[name] <= before[name] + 16, f"{name}: connections to executors come and go, but do not pile up"
    for name in ("heap_kb", "python_kb"):
        assert after[name] <= before[name] * 1.02 + 4096, f"{name} has grown from {before[name]} to {after[name]}"


@pytest.mark.chaos
@pytest.mark.timeout(SOAK_S * 3 + 600)
def test_minutes_of_mixed_faults_change_nothing(tmp_path: Path) -> None:
    found = soak(tmp_path, SOAK_S * 3 + 500, soak_s=SOAK_S, every_s=EVERY_S)
    told = report("soak", found)
    assert_every_fit_kept(found)
    assert len(found["struck"]) >= SOAK_S / EVERY_S * 3 / 4, "a fault waits for the run to get on, but not for long"
    assert told["goodput"] >= GOODPUT
    assert told["longest_without_commit_s"] < 60
    assert_nothing_piled_up(told)


@pytest.mark.chaos
@pytest.mark.timeout(KILLS * 40 + 600)
def test_a_hundred_kills_leave_nothing_behind(tmp_path: Path) -> None:
    found = soak(tmp_path, KILLS * 40 + 500, strikes=KILLS, every_s=0.5, faults=["rank_kill", "executor_kill"])
    told = report("kills", found)
    assert_every_fit_kept(found)
    assert len(found["struck"]) >= KILLS
    assert_nothing_piled_up(told)
