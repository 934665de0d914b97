"""What must not disturb a run: storage memory that others fill, and pauses too short to be a fault."""

from __future__ import annotations

from typing import Any

import pytest

from chaos.checker import History, recomputed
from chaos.stage import Scene, assert_kept, play

RANKS = {"ranks": 3, "transport": "auto"}
OVER_BLOCKS = {"ranks": 3, "transport": "blocks"}
LONG: dict[str, Any] = {"layout": RANKS, "iterations": 6_000, "group": 10, "how": {"max_epochs": 10**6}}
PACE_S, LEAST = 0.01, 12
"""Of a shard, of which one rank has two: two minutes and more, and pauses in them."""
SCENES: dict[str, Scene] = {
    "nothing": {"layout": RANKS},
    "full storage": {"layout": OVER_BLOCKS, "around": "full storage"},
    "nothing, for long": LONG,
    "pauses": LONG | {"around": "pauses", "every_s": 10.0, "pace_s": PACE_S},
}

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of every scene."""
    return play(tmp_path_factory.mktemp("hard"), SCENES, 800, "on_hard_cluster.py")


def test_full_storage_memory_changes_nothing(found: dict[str, Any]) -> None:
    assert_kept(found["full storage"], found["nothing"], strikes=0)
    assert found["full storage"]["faults"] == []


def test_pauses_that_are_shorter_than_the_verdict_are_no_faults(found: dict[str, Any]) -> None:
    pauses = len(found["pauses"]["struck"])
    assert pauses >= LEAST
    assert_kept(found["pauses"], found["nothing, for long"], strikes=pauses)
    assert found["pauses"]["faults"] == []
    assert recomputed(History.of(found["pauses"]["history"])) == []
