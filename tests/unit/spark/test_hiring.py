"""A resident that was started early is waited for: no second one is started beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mizzle.spark import hiring


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
    assert [hiring.claim_early() for _ in range(3)] == [True, True, False]


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


@pytest.mark.parametrize("module", ["hiring", "placement", "data", "rows"])
def test_what_tasks_import_loads_no_torch(module: str) -> None:
    """It would cost each new Python worker seconds, those of an executor that replaces another one above all."""
    program = f"import sys, mizzle.spark.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
