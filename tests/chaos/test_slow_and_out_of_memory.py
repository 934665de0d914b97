"""A slow executor is named, memory that ran out is called so: real limits, by control groups of ranks' processes."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from statistics import mean, median
from typing import Any

import pytest

from chaos.checker import History, complaints
from chaos.control_groups import skip_without
from chaos.stage import Scene, assert_kept, fault, play
from chaos.test_faults import RANKS

pytestmark = pytest.mark.chaos
HELD_BACK = fault("publish", 8, "hold_back_rank", after=True)
SCENES: dict[str, Scene] = {
    "nothing": {"layout": RANKS, "busy": True},
    "slow": {"layout": RANKS, "busy": True, "faults": [HELD_BACK]},
    "slow, and nobody waits": {
        "layout": RANKS, "busy": True, "faults": [HELD_BACK], "iterations": 48, "how": {"stragglers": "drop"},
    },
    "executor killed": {"layout": RANKS, "faults": [fault("publish", 12, "kill_executor")]},
    # The last one: its fault strikes as often as it can, and processes serve one run after the other.
    "out of memory again and again": {
        "layout": RANKS, "faults": [fault("backward", 1, "fill_memory", times=9, ranks=(1,), apart_s=0.0)],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("limits")


@pytest.fixture(scope="module")
def found(home: Path) -> dict[str, Any]:
    """What came of every scene."""
    skip_without()
    return play(home, SCENES, 420)


@pytest.mark.timeout(480)
def test_a_rank_that_runs_out_of_memory_again_and_again_ends_the_run_and_is_called_oom(
    found: dict[str, Any],
) -> None:
    outcome = found["out of memory again and again"]
    assert len(outcome["struck"]) == 3, "three times the same rank: no crash loop"
    assert outcome["wall_s"] < 60
    assert complaints(History.of(outcome["history"]), History()) == []
    trace = outcome["trace"]
    assert "PeerLost: rank" in outcome["error"]
    assert "out of memory (OOM): limit 128 MiB, peak 128 MiB, in control group /mizzle-test" in trace
    assert "spark.executor.memoryOverhead" in trace
    assert "times from the same boundary" in trace
    assert "the run was at: iterations " in trace
    assert re.search(r"executor \d+ on ", trace)


def test_what_spark_says_of_an_executors_end_is_in_the_log(found: dict[str, Any], home: Path) -> None:
    assert_kept(found["executor killed"], found["nothing"], strikes=1)
    log = (home / "driver.log").read_text()
    assert "Spark says of the end of executor" in log
    assert "(OOM)" in log, "a signal 9 may have been the kernel's"


def really_slower(noted: list[list[float]], rank: int, since: int) -> float:
    """From what ranks noted of each shard: a rank's seconds, as a multiple of the median of all ranks."""
    of: dict[int, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for iteration, who, seconds in noted:
        if iteration >= since:
            of[int(iteration)][int(who)].append(seconds)
    usual = sum(median(mean(shards) for shards in ranks.values()) for ranks in of.values())
    return sum(mean(ranks[rank]) for ranks in of.values()) / usual


def test_a_slow_executor_is_named_with_its_factor_and_changes_no_bit(found: dict[str, Any], home: Path) -> None:
    outcome = found["slow"]
    assert_kept(outcome, found["nothing"], strikes=1)
    assert outcome["faults"] == [], "slow is not dead"
    slow = max(outcome["stragglers"], key=lambda one: one["iterations"])
    # Its first call makes the weights known, so the eighth one is of iteration 6.
    assert slow["since"] in {7, 8}
    # As its shards really took: the others have a core each only where there are as many.
    really = really_slower(outcome["shard_s"], slow["rank"], since=slow["since"])
    assert really > 5, "it has a tenth of a processor"
    assert 0.75 <= slow["factor"] / really <= 1.25
    assert slow["executor"]
    assert f"executor={slow['executor']} host={slow['host']}" in (home / "driver.log").read_text()


def test_nobody_waits_for_a_slow_executor_where_its_shards_are_dropped(found: dict[str, Any]) -> None:
    outcome = found["slow, and nobody waits"]
    assert "error" not in outcome, outcome["trace"]
    assert outcome["faults"] == []
    assert len(outcome["dropped"]) > 8, "every iteration but the first ones, where the others are not slowed down too"
    assert all(one["rows"] < 20 for one in outcome["dropped"])
    assert max(outcome["stragglers"], key=lambda one: one["iterations"])["iterations"] >= 3
