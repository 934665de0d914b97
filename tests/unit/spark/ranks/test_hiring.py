"""Residents that were started early are waited for; one that ends on its way, or as it makes itself ready, is told."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mizzle.blocks.bridge import BridgeClient
from mizzle.blocks.deadline import Deadline
from mizzle.blocks.frames import Writer
from mizzle.errors import BridgeLost, BridgeMissing, Fenced, PeerLost
from mizzle.spark.explain import raise_cause
from mizzle.spark.ranks import hiring
from mizzle.spark.ranks.hiring import Hiring
from mizzle.spark.ranks.orders import Committed, JoinTerms
from mizzle.spark.ranks.outcome import Failure, Outcome
from mizzle.spark.recovery import ended_at_start
from unit.spark.ranks.fake_bridge import FakeBridge


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes in place of residents, which load nothing."""
    processes: list[subprocess.Popen[bytes]] = []

    def start() -> int:
        processes.append(subprocess.Popen(["sleep", "60"]))
        return processes[-1].pid

    monkeypatch.setenv("SPARK_LOCAL_DIRS", f"{tmp_path},/elsewhere")
    monkeypatch.setattr(hiring, "start_resident", start)
    yield processes
    for process in processes:
        process.kill()
        process.wait(10)


def test_one_that_is_on_its_way_is_claimed_once(started: list[subprocess.Popen[bytes]]) -> None:
    assert not hiring.claim_early()
    hiring.start_early()
    hiring.start_early()
    claimed = [hiring.claim_early() for _ in range(3)]
    assert sorted(claimed) == [0, *sorted(process.pid for process in started)]
    assert claimed[-1] == 0


def test_one_that_has_died_on_its_way_is_not_waited_for(started: list[subprocess.Popen[bytes]]) -> None:
    hiring.start_early()
    started[0].kill()
    started[0].wait(10)
    assert not hiring.claim_early()


def test_one_that_has_arrived_is_nobodys_to_wait_for(
    started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    hiring.arrive()
    monkeypatch.setattr(hiring, "start_resident", os.getpid)
    hiring.start_early()
    hiring.arrive()
    assert not hiring.claim_early()


NOBODY = Writer().number("B", 0)
FENCED, GONE = 4, 9
"""Codes of the bridge's errors."""


class Work:
    value = b"work"


@pytest.fixture
def bridge(tmp_path: Path, started: list[subprocess.Popen[bytes]]) -> Iterator[FakeBridge]:
    made = FakeBridge(tmp_path, 10)
    yield made
    made.close()


def hired(*executors: str) -> Outcome:
    """What a task says that is to make a rank resident on executor 7."""
    terms = JoinTerms("r" * 32, 3, 0, 2, "auto", 5.0)
    work: Any = Work()
    (outcome,) = Hiring(terms, work, Committed(), executors, with_rows=False)(0, ())
    return outcome


def test_a_process_that_ends_while_it_makes_itself_ready_is_told_with_its_rank_and_why(bridge: FakeBridge) -> None:
    bridge.hires = [NOBODY, (GONE, "it was killed (OOM): limit 512 MiB"), (FENCED, "all 2 ranks were admitted")]
    outcome = hired("3", "7")
    assert (outcome.rank, outcome.executor_id, outcome.host) == (1, "7", "host")
    assert ended_at_start([outcome]) == {1}
    peer = Outcome(0, 0, "3", failure=Failure.of(PeerLost(1, "its Python worker ended within a group")))
    with pytest.raises(PeerLost, match=r"rank 1 is lost: .*OOM.*512 MiB"):
        raise_cause([peer, outcome])
    assert ended_at_start([peer]) == frozenset(), "a peer knows of its connection only"


def test_who_is_fenced_without_having_lost_anybody_says_so(bridge: FakeBridge) -> None:
    bridge.hires = [(FENCED, "a later generation has started")]
    outcome = hired("3", "7")
    assert outcome.failure is not None
    assert isinstance(outcome.failure.error(), Fenced)


def test_a_process_that_ends_on_its_way_is_followed_by_one_other_and_then_told(
    bridge: FakeBridge, started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mizzle.blocks.residence._LOOK_S", 0.05)
    start = hiring.start_resident

    def fails() -> int:
        pid = start()
        started[-1].kill()
        return pid

    monkeypatch.setattr(hiring, "start_resident", fails)
    bridge.hires = [NOBODY, None, NOBODY, None]
    outcome = hired("3", "7")
    assert len(started) == 2
    assert outcome.failure is not None
    assert isinstance(outcome.failure.error(), BridgeLost)
    assert "ended before it came to its bridge" in outcome.failure.text


def test_an_executor_that_ends_meanwhile_is_no_session_without_a_bridge(
    bridge: FakeBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = BridgeClient.connect

    def connected(deadline: Deadline) -> Any:
        if not bridge.hires:
            raise BridgeMissing("no mizzle bridge in this executor")
        return connect(deadline)

    monkeypatch.setattr(BridgeClient, "connect", connected)
    bridge.hires = [(GONE, "it ended")]
    outcome = hired("3", "7")
    assert outcome.failure is not None
    assert isinstance(outcome.failure.error(), BridgeLost)


@pytest.mark.parametrize("module", ["ranks.hiring", "early", "placement", "data", "rows"])
def test_what_tasks_import_loads_no_torch(module: str) -> None:
    """It would cost each new Python worker seconds, those of an executor that replaces another one above all."""
    program = f"import sys, mizzle.spark.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
