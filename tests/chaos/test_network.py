"""Links that break, lose packets or are slow: on hosts that are network namespaces, under a standalone Spark."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chaos.checker import History, complaints

ROOT = Path(__file__).parents[2]
HOSTS = 4
EXECUTOR_MB = 1024
HEAL_S = 30.0
TIMEOUT_S = 1500
FEWER = [2, HOSTS]

SCENES: dict[str, dict[str, Any]] = {
    "nothing": {"ranks": FEWER},
    "one host and all others": {"ranks": FEWER, "fault": "apart", "how": [[0], [1, 2, 3]], "heal_s": HEAL_S},
    "two hosts": {"ranks": FEWER, "fault": "apart", "how": [[0], [1]], "heal_s": HEAL_S},
    "two halves": {"ranks": FEWER, "fault": "apart", "how": [[0, 1], [2, 3]], "heal_s": HEAL_S},
    "one way": {"ranks": FEWER, "fault": "deaf", "how": [[0], [1, 2, 3]], "heal_s": HEAL_S},
    "driver": {"ranks": FEWER, "fault": "driver_apart", "how": [[0]], "heal_s": HEAL_S},
    "one packet of 100 lost": {"ranks": FEWER, "fault": "lose", "how": [1]},
    "five packets of 100 lost": {"ranks": FEWER, "fault": "lose", "how": [5]},
    "resets": {"ranks": FEWER, "fault": "reset", "how": [10_000]},
    "slow link": {"ranks": FEWER, "fault": "slow", "how": [0, 50]},
    "long link": {"ranks": FEWER, "fault": "delay", "how": [0, 100, 50]},
    "resets all the time": {"ranks": FEWER, "fault": "reset", "how": [1000]},
}  # fmt: skip
PARTITIONS = [name for name, how in SCENES.items() if "heal_s" in how]


def benchmark(name: str) -> Any:
    """A module of `benchmarks/`, which makes hosts and starts Spark on them."""
    folder = str(ROOT / "benchmarks")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)


hosts = benchmark("hosts")
WHY_NOT = hosts.missing() or (None if shutil.which("nft") else "tools are missing: apt-get install nftables")
pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(TIMEOUT_S + 100),
    pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT)),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, Any]]]:
    """What came of every scene."""
    home = tmp_path_factory.mktemp("network")
    network = benchmark("network")
    with hosts.Network(HOSTS) as made, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT / "tests"))
        plan = {
            "master": network.start_spark(made, 1, EXECUTOR_MB), "directory": str(made.directory),
            "hosts": [(host.namespace, host.address) for host in made.all], "scenes": list(SCENES.values()),
            "ranks": HOSTS, "switch": (made.switch, [host.port for host in made.hosts]),
        }  # fmt: skip
        (home / "plan.json").write_text(json.dumps(plan))
        application = made.start(
            made.driver, [sys.executable, str(ROOT / "tests" / "chaos" / "on_hosts.py"), str(home)],
            log=home / "log", env=network.environment(made, made.driver), own_processes=False,
        )  # fmt: skip
        assert application.wait(TIMEOUT_S) == 0, (home / "log").read_text()[-4000:]
        yield dict(zip(SCENES, json.loads((home / "found.json").read_text()), strict=True))


@pytest.mark.parametrize("scene", [scene for scene in SCENES if scene != "resets all the time"])
def test_there_is_one_history_whatever_happens_to_the_links(found: dict[str, dict[str, Any]], scene: str) -> None:
    outcome, nothing = found[scene], found["nothing"]
    assert "error" not in outcome, outcome["trace"]
    assert complaints(History.of(outcome["history"]), History.of(nothing["history"])) == []


@pytest.mark.parametrize("scene", PARTITIONS)
def test_a_partition_is_seen_within_the_deadline_and_a_little(found: dict[str, dict[str, Any]], scene: str) -> None:
    faults = found[scene]["faults"]
    assert faults
    assert faults[0]["noticed_s"] < 12


@pytest.mark.parametrize("scene", PARTITIONS)
def test_after_a_partition_the_run_goes_on_without_whom_it_cannot_reach_or_soon_after_the_end(
    found: dict[str, dict[str, Any]], scene: str
) -> None:
    # Spark's broadcasts, which every task needs, may have been asked of an executor that is cut off; TCP then tries
    # again up to half a minute after the network is whole.
    for fault in found[scene]["faults"]:
        assert fault["ranks"] < HOSTS or fault["resumed_s"] < HEAL_S + 45


def test_not_every_partition_is_waited_for(found: dict[str, dict[str, Any]]) -> None:
    left = [scene for scene in PARTITIONS if any(fault["ranks"] < HOSTS for fault in found[scene]["faults"])]
    assert len(left) >= len(PARTITIONS) // 2, left


@pytest.mark.parametrize("scene", ["nothing", "one packet of 100 lost", "slow link", "long link"])
def test_what_is_merely_slow_is_no_fault(found: dict[str, dict[str, Any]], scene: str) -> None:
    assert found[scene]["faults"] == []


def test_a_network_that_loses_much_costs_a_few_groups_at_most(found: dict[str, dict[str, Any]]) -> None:
    assert len(found["five packets of 100 lost"]["faults"]) <= 2


def test_where_connections_break_all_the_time_there_are_the_same_bits_or_an_end_with_that_word(
    found: dict[str, dict[str, Any]],
) -> None:
    outcome, nothing = found["resets all the time"], found["nothing"]
    if "error" in outcome:
        assert outcome["error"].startswith(("PeerLost: ", "CollectiveTimeout: ")), outcome["trace"]
    else:
        assert complaints(History.of(outcome["history"]), History.of(nothing["history"])) == []
