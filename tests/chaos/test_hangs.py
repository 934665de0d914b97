"""Whoever stands still is known in ten seconds, in every phase of a run, and does nothing when it wakes up."""

from __future__ import annotations

from typing import Any

import pytest

from chaos.test_faults import FEWER, play

pytestmark = pytest.mark.chaos

SCENES: dict[str, dict[str, Any]] = {
    "nothing": {"layout": FEWER},
    "executor stopped while shards are dealt": {
        "layout": FEWER, "fault": {"point": "publish", "call": 2, "action": "kill_executor"}, "at_deal": True,
    },
    "executor stopped before the model was fetched": {"layout": FEWER, "at_fetch": True},
    "executor asleep": {
        "layout": FEWER, "fault": {"point": "reduce", "call": 8, "action": "pause_executor"}, "sleeps": True,
    },
    "driver asleep": {
        "layout": FEWER, "fault": {"point": "reduce", "call": 8, "action": "pause_driver"}, "sleeps": True,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What came of every scene."""
    return play(tmp_path_factory.mktemp("hangs"), SCENES, 600, "on_hung_cluster.py")


@pytest.mark.timeout(620)
@pytest.mark.parametrize("scene", SCENES)
def test_the_result_is_that_of_a_run_in_which_nobody_stood_still(found: dict[str, dict[str, Any]], scene: str) -> None:
    outcome, nothing = found[scene], found["nothing"]
    assert "error" not in outcome, outcome["trace"]
    assert len(outcome["struck"]) == (0 if scene == "nothing" else 1 + ("at_deal" in SCENES[scene]))
    assert outcome["losses"] == nothing["losses"]
    assert outcome["model"] == nothing["model"]
    assert bool(outcome["faults"]) == (scene != "nothing")
    assert all(noticed < 30 for noticed in outcome["noticed_s"]), "long before Spark's own two minutes"


def test_a_frozen_executors_ranks_end_and_it_is_fenced_when_it_wakes_up(found: dict[str, dict[str, Any]]) -> None:
    outcome = found["executor asleep"]
    assert outcome["slept"]["residents"] >= 1
    assert outcome["slept"]["gone_s"] is not None
    assert outcome["slept"]["gone_s"] < 15, "its bridge said nothing for the length of a lease"
    assert max(outcome["fenced"].values()) >= 1
    assert min(outcome["sizes"]) < 3, "the others went on without it"


def test_executors_whose_driver_is_frozen_end_their_ranks_and_go_on_with_it(found: dict[str, dict[str, Any]]) -> None:
    outcome = found["driver asleep"]
    assert all(count >= 1 for count in outcome["fenced"].values()), outcome["fenced"]
