"""Two executors, two hosts as far as blocks know: peers meet without the driver, and a death is seen at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("peers.py")
SOON_S = 2.0
ROOM_BYTES = 300_000
"""For heartbeats, and for what launching a task varies by. One question for a block's location takes about 1 KB, and
500 all-reduces of two ranks fetch 2000 blocks."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the program saw; it has a process and a Spark of its own."""
    where = tmp_path_factory.mktemp("peers")
    environment = os.environ | {"SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": sys.executable}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(where)], capture_output=True, text=True, check=False, timeout=200,
        cwd=where, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def traffic(found: dict[str, Any]) -> dict[str, Any]:
    measured: dict[str, Any] = found["traffic"]
    if "skipped" in measured:
        pytest.skip(measured["skipped"])
    return measured


@pytest.mark.timeout(240)
def test_the_meter_sees_what_does_pass_the_driver(traffic: dict[str, Any]) -> None:
    assert 4_000_000 <= traffic["control_bytes"] < 40_000_000


def test_peers_are_on_separate_executors_and_sum_right(traffic: dict[str, Any]) -> None:
    for group in traffic["groups"]:
        assert len({rank["executor"] for rank in group["ranks"]}) == 2
        for rank in group["ranks"]:
            assert rank["right"]
            assert rank["fetched"] >= group["iterations"]


def test_no_iteration_asks_the_driver_anything(traffic: dict[str, Any]) -> None:
    for group in traffic["groups"]:
        assert [rank["asks"] for rank in group["ranks"]] == [0, 0]
        assert group["messages"] < 300, "only the ranks' coming together"


def test_bytes_over_the_driver_grow_neither_with_iterations_nor_with_size(traffic: dict[str, Any]) -> None:
    measured = [group["bytes"] for group in traffic["groups"]]
    assert min(measured) > 0
    assert max(measured) - min(measured) < ROOM_BYTES, measured


@pytest.mark.parametrize("victim", ["executor", "worker"])
def test_a_killed_peer_is_lost_within_two_seconds(found: dict[str, Any], victim: str) -> None:
    seen = found[victim]
    assert "PeerLost" in seen["error"], seen
    assert "rank 1 is lost" in seen["error"]
    assert seen["seconds"] < SOON_S
    assert seen["driver"], "the group fails at the driver too"


def test_after_both_deaths_a_group_runs(found: dict[str, Any]) -> None:
    assert [rank["right"] for rank in found["after"]] == [True, True]
