"""Whoever stands still is known in ten seconds, in every phase of a run, and does nothing when it wakes up."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pyspark
import pytest

from chaos.stage import Scene, assert_kept, fault, play, strikes
from chaos.test_faults import BLOCKS, FEWER, RANKS
from mizzle.spark.session import _JAR

pytestmark = pytest.mark.chaos

MINUTE = "executor asleep for a minute"
LONG: Scene = {"layout": FEWER, "iterations": 360, "how": {"max_epochs": 10**6}}
"""With a pace of 0.1 s for a shard, and two of them on a rank, more than a minute."""
SCENES: dict[str, Scene] = {
    "nothing": {"layout": FEWER},
    "executor stopped while shards are dealt": {
        "layout": FEWER, "faults": [fault("publish", 2, "kill_executor")], "at_deal": "dealt again", "silent": True,
    },
    "executor stopped while rows are looked at": {"layout": FEWER, "at_deal": "looked at", "silent": True},
    "executor stopped while rows are dealt": {"layout": RANKS, "at_deal": "dealt", "silent": True},
    "executor stopped before the model was fetched": {"layout": FEWER, "at_fetch": True, "silent": True},
    "executor asleep": {
        "layout": FEWER, "faults": [fault("reduce", 8, "pause_executor")], "sleeps": True, "silent": True,
    },
    "nothing, for long": LONG,
    MINUTE: LONG | {
        "faults": [fault("reduce", 8, "pause_executor_long")], "sleeps": True, "silent": True, "pace_s": 0.1,
    },
    "driver asleep": {
        "layout": FEWER, "faults": [fault("reduce", 8, "pause_driver")], "sleeps": True, "silent": True,
    },
}  # fmt: skip
BEFORE = [scene for scene, how in SCENES.items() if how.get("at_deal") in {"looked at", "dealt"}]
"""Before there are ranks: no fault of theirs."""
THROWS: dict[str, Scene] = {
    "nothing": {"layout": BLOCKS},
    "a block is not asked for": {"layout": BLOCKS, "throws": True},
}


def hang(home: Path, scenes: dict[str, Scene]) -> dict[str, Any]:
    """Play them; executors note who sleeps in the same directory."""
    return play(home, scenes, 600, "on_hung_cluster.py", conf={"spark.executorEnv.CHAOS_HOME": str(home)})


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of every scene."""
    return hang(tmp_path_factory.mktemp("hangs"), SCENES)


@pytest.mark.timeout(620)
@pytest.mark.parametrize("scene", SCENES)
def test_the_result_is_that_of_a_run_in_which_nobody_stood_still(found: dict[str, Any], scene: str) -> None:
    calm = "nothing, for long" if "iterations" in SCENES[scene] else "nothing"
    assert_kept(found[scene], found[calm], strikes=strikes(SCENES[scene]) + ("at_deal" in SCENES[scene]))
    # Without its driver a group may still end; the next one then finds nobody and the ranks take their places anew.
    assert bool(found[scene]["faults"]) == (scene not in {calm, "driver asleep", *BEFORE})


@pytest.mark.parametrize("scene", BEFORE)
def test_an_executor_that_hangs_before_there_are_ranks_holds_nobody_up_for_minutes(
    found: dict[str, Any], scene: str
) -> None:
    assert found[scene]["wall_s"] < 60


@pytest.mark.parametrize("scene", ["executor asleep", MINUTE])
def test_a_frozen_executors_ranks_end_and_it_is_fenced_when_it_wakes_up(found: dict[str, Any], scene: str) -> None:
    outcome = found[scene]
    assert outcome["slept"]["residents"] >= 1
    assert outcome["slept"]["gone_s"] is not None
    assert outcome["slept"]["gone_s"] < 15, "its bridge said nothing for the length of a lease"
    assert sorted(outcome["fenced"].values()) == [0, 0, 1]
    assert min(outcome["sizes"]) < 3, "the others went on without it"


def test_the_others_went_on_while_it_slept_and_when_it_woke_up(found: dict[str, Any]) -> None:
    outcome = found[MINUTE]
    slept, ends = outcome["slept"], outcome["ends"]
    assert slept["awake"] - slept["begun"] == 60
    resumed = outcome["resumed_at"][0]
    assert sum(resumed < end < slept["awake"] for end in ends) > 5, "groups while it slept"
    assert sum(slept["awake"] < end for end in ends) > 5, "groups when it was awake, and could have spoken"


def test_executors_whose_driver_is_frozen_end_their_ranks_and_go_on_with_it(found: dict[str, Any]) -> None:
    outcome = found["driver asleep"]
    assert list(outcome["fenced"].values()) == [1, 1, 1]


def faulty_jar(home: Path) -> None:
    """mizzle's jar, with a plugin whose bridges throw when they are told to."""
    sources, mine = Path(__file__).parents[2] / "java" / "src" / "test", home / "faulty.jar"
    shutil.copy(_JAR, mine)
    jars = Path(pyspark.__file__).parent / "jars"
    (source,) = sources.rglob("FaultyPlugin.java")
    subprocess.run(
        ["javac", "--release", "17", "-nowarn", "-cp", f"{mine}:{jars}/*", "-d", str(home / "classes"), str(source)],
        check=True, timeout=120,
    )  # fmt: skip
    with zipfile.ZipFile(mine, "a") as jar:
        for made in (home / "classes").rglob("*.class"):
            jar.write(made, made.relative_to(home / "classes"))


@pytest.mark.timeout(620)
def test_an_asynchronous_call_that_throws_in_a_real_bridge_is_survived_at_once(tmp_path: Path) -> None:
    faulty_jar(tmp_path)
    found = hang(tmp_path, THROWS)
    outcome = found["a block is not asked for"]
    assert_kept(outcome, found["nothing"], strikes=1)
    assert outcome["struck"] == ["thrown"]
    assert len(outcome["faults"]) == 1, "it surfaces, and in the group that it belongs to"
    assert "a block" in outcome["faults"][0]
    assert outcome["noticed_s"][0] < 2 + 2, "peers have two seconds to say what they know"
