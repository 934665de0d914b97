"""Executors come and go, some with a notice, several at once, beside another training: the result is the same.

Each application plays the scenes that its settings allow; what the checker says of each history is the verdict.
"""

from __future__ import annotations

from typing import Any

import pytest

from chaos.checker import History, recomputed
from chaos.stage import Scene, assert_ended, assert_kept, fault, play, strikes
from cluster.speculation import SPECULATION
from cluster.test_elastic import master  # noqa: F401 - a fixture

FOUR = "local-cluster[4,1,1024]"
LAYOUT = {"ranks": 4, "transport": "auto"}
ELASTIC = {"ranks": (1, 4), "transport": "auto"}
THREE = {"ranks": 3, "transport": "auto"}
UP_TO_THREE = {"ranks": (1, 3), "transport": "auto"}


TWICE: dict[str, Scene] = {
    "nothing": {"layout": LAYOUT, "executors": 4},
    "two that hold no common state": {"layout": ELASTIC, "executors": 4, "shifts": [(9, "kill_holders", False)]},
    "an executor, and another while the run goes on": {
        "layout": ELASTIC, "executors": 4, "shifts": [(0, "choose_two")],
        "faults": [
            fault("backward", 9, "kill_executor", at="first.id"), fault("collect", 1, "kill_executor", at="second.id"),
        ],
    },
    "a rank, and five times more while the run goes on": {
        "layout": LAYOUT, "executors": 4,
        "faults": [
            fault("backward", 9, "kill_rank", ranks=(3,)),
            fault("collect", 1, "kill_rank", times=5, ranks=(0, 1, 2, 0, 1), apart_s=0.0),
        ],
        "held_up_s": 25.0,  # by five more, of 5 s each
    },
}  # fmt: skip
BOTH: Scene = {"layout": ELASTIC, "executors": 4, "shifts": [(9, "kill_holders", True)]}
"""Who holds a state, and who holds its copy. With checkpoints in the layout the run goes on from the newest."""


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return play(tmp_path_factory.mktemp("twice"), TWICE | {"both": BOTH}, 900, master=FOUR)


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.parametrize("scene", TWICE)
def test_faults_that_come_together_or_during_recovery_change_nothing(twice: dict[str, Any], scene: str) -> None:
    assert_kept(twice[scene], twice["nothing"], strikes=strikes(TWICE[scene]))


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_a_state_that_is_lost_with_its_copy_ends_the_run_with_that_word(twice: dict[str, Any]) -> None:
    assert_ended(twice["both"], "StateLost", strikes=1)


LEAVING: dict[str, Scene] = {
    "nothing": {"layout": THREE},
    "told to leave, one less goes on": {
        "layout": UP_TO_THREE, "pace_s": 0.1, "shifts": [(5, "leave", False)],
    },
    "told to leave, another comes": {"layout": THREE, "pace_s": 0.1, "shifts": [(5, "leave", False)]},
    "told by a signal": {"layout": UP_TO_THREE, "pace_s": 0.1, "shifts": [(10, "leave", True)]},
    "one after the other": {
        "layout": UP_TO_THREE, "pace_s": 0.1, "shifts": [(5, "leave", False), (15, "leave", True)],
    },
    "the driver pauses for longer than executors may be idle": {"layout": THREE, "shifts": [(9, "pause", 4.0)]},
}  # fmt: skip
DYNAMIC = {
    "spark.decommission.enabled": "true",
    "spark.dynamicAllocation.enabled": "true",
    "spark.dynamicAllocation.shuffleTracking.enabled": "true",
    "spark.dynamicAllocation.shuffleTracking.timeout": "1s",
    "spark.dynamicAllocation.executorIdleTimeout": "1s",
    "spark.dynamicAllocation.minExecutors": "3",
    "spark.dynamicAllocation.maxExecutors": "4",
}


@pytest.fixture(scope="module")
def leaving(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return play(tmp_path_factory.mktemp("leaving"), LEAVING, 900, master=FOUR, conf=DYNAMIC)


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.parametrize("scene", LEAVING)
def test_after_a_notice_nothing_is_computed_again(leaving: dict[str, Any], scene: str) -> None:
    assert_kept(leaving[scene], leaving["nothing"], strikes=strikes(LEAVING[scene]))
    assert recomputed(History.of(leaving[scene]["history"])) == []


BESIDE: dict[str, Scene] = {
    "nothing": {"layout": THREE},
    "an executor dies": {
        "layout": THREE, "beside": True, "pace_s": 0.05,
        "faults": [fault("gather", 9, "kill_executor", ranks=(1,))],
    },
    "a rank dies": {
        "layout": THREE, "beside": True, "pace_s": 0.05, "faults": [fault("update", 9, "kill_rank", ranks=(0,))],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Executors have two slots: both trainings have a rank in each."""
    home = tmp_path_factory.mktemp("beside")
    return play(home, BESIDE, 600, master="local-cluster[3,2,1024]", slots=2)


@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize("scene", BESIDE)
def test_two_trainings_of_a_session_both_keep_their_bits(beside: dict[str, Any], scene: str) -> None:
    assert_kept(beside[scene], beside["nothing"], strikes=strikes(BESIDE[scene]))
    if scene != "nothing":
        assert_kept(beside[scene]["beside"], beside["nothing"], strikes=0)


SPECULATED: dict[str, Scene] = {
    "nothing": {"layout": {"ranks": 2, "transport": "auto"}, "executors": 2},
    "a rank dawdles behind its last exchange": {
        "layout": {"ranks": 2, "transport": "auto"}, "executors": 2,
        "faults": [fault("keep", 3, "dawdle", ranks=(1,), after=True)],
    },
    "a rank dawdles, an executor dies": {
        "layout": {"ranks": (1, 2), "transport": "auto"}, "executors": 2,
        "faults": [
            fault("keep", 2, "dawdle", ranks=(1,), after=True),
            fault("reduce", 14, "kill_executor", ranks=(0,)),
        ],
    },
}  # fmt: skip
ROOM_FOR_TWICE = {"spark.cores.max": "4", "spark.executor.cores": "2", "spark.executor.memory": "512m"}


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_speculation_changes_nothing(master: str, tmp_path: Any) -> None:  # noqa: F811 - the fixture
    home = tmp_path / "speculated"
    home.mkdir()
    found = play(home, SPECULATED, 500, master=master, conf=ROOM_FOR_TWICE | SPECULATION, slots=2)
    for name, scene in SPECULATED.items():
        assert_kept(found[name], found["nothing"], strikes=strikes(scene))
        if scene.get("faults"):
            assert found[name]["superfluous"] > 0, "Spark started no task of the dawdling group again"
