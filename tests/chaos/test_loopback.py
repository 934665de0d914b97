"""Executors of one host that hear nothing of each other, or lose packets: in a network namespace with only loopback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chaos.checker import History, complaints

TESTS = Path(__file__).parents[1]
RANKS = 3
TIMEOUT_S = 600
WHY_NOT = None
if os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "ip", "nft"))):
    WHY_NOT = "a network namespace needs root, util-linux (unshare), iproute2 (ip) and nftables (nft)"
pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(TIMEOUT_S + 60),
    pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT)),
]

SCENES: dict[str, dict[str, Any]] = {
    "nothing": {"ranks": [1, RANKS]},
    "unheard": {"ranks": [1, RANKS], "fault": "unheard", "how": []},
    "one packet of 100 lost": {"ranks": [1, RANKS], "fault": "lose", "how": [1]},
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What came of every scene."""
    home = tmp_path_factory.mktemp("loopback")
    plan = {
        "master": f"local-cluster[{RANKS},1,1024]", "directory": str(home), "hosts": [["", "127.0.0.1"]],
        "ranks": RANKS, "scenes": list(SCENES.values()),
    }  # fmt: skip
    (home / "plan.json").write_text(json.dumps(plan))
    command = [sys.executable, str(TESTS / "chaos" / "on_hosts.py"), str(home)]
    here = {"SPARK_LOCAL_IP": "127.0.0.1", "SPARK_LOCAL_DIRS": str(home / "local")}
    with (home / "log").open("w") as log:
        done = subprocess.run(
            ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *command],
            env={**os.environ, "PYTHONPATH": str(TESTS), "PYSPARK_PYTHON": sys.executable, **here},
            stdout=log, stderr=subprocess.STDOUT, timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
    assert done.returncode == 0, (home / "log").read_text()[-4000:]
    return dict(zip(SCENES, json.loads((home / "found.json").read_text()), strict=True))


@pytest.mark.parametrize("scene", list(SCENES))
def test_the_result_is_that_of_a_sound_network(found: dict[str, dict[str, Any]], scene: str) -> None:
    outcome, nothing = found[scene], found["nothing"]
    assert "error" not in outcome, outcome["trace"]
    assert complaints(History.of(outcome["history"]), History.of(nothing["history"])) == []


def test_an_executor_that_its_peers_cannot_reach_is_given_up_while_the_driver_still_can(
    found: dict[str, dict[str, Any]],
) -> None:
    faults = found["unheard"]["faults"]
    assert faults
    assert faults[0]["noticed_s"] < 12
    assert found["nothing"]["faults"] == []


def test_packets_that_are_lost_are_no_fault(found: dict[str, dict[str, Any]]) -> None:
    assert found["one packet of 100 lost"]["faults"] == []
