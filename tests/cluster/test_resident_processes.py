"""Resident processes on two executors: what a group's job says when a process or an executor is killed in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("resident_processes.py")
BOTH = [{"status": "OUTCOME", "rank": rank} for rank in range(2)]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the program saw; it has a process and a Spark of its own."""
    home = tmp_path_factory.mktemp("residents")
    environment = os.environ | {"SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": sys.executable}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(home)], capture_output=True, text=True, check=False, timeout=280, cwd=home,
        env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def outcomes(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"status": one["status"], "rank": one["rank"]} for one in results]


@pytest.mark.timeout(300)
def test_processes_outlive_the_tasks_that_started_them_and_do_every_group(seen: dict[str, Any]) -> None:
    assert [one["spawned"] for one in seen["settled"]] == [True, True]
    assert all(outcomes(group) == BOTH for group in seen["first"])


def test_a_killed_process_ends_the_group_at_once_and_says_so(seen: dict[str, Any]) -> None:
    died, missing = seen["resident killed"]
    assert (died["status"], died["rank"], missing["status"]) == ("DIED", 0, "MISSING")
    assert f"process {seen['settled'][0]['pid']} ended" in died["text"]
    assert outcomes(seen["after resident"]) == BOTH


def test_a_killed_executor_ends_the_group_too(seen: dict[str, Any]) -> None:
    statuses = {one["status"] for one in seen["executor killed"]}
    # The driver knew of it before the second attempt of its task told, or not.
    assert statuses <= {"AWAY", "MISSING"}, seen["executor killed"]
    assert outcomes(seen["after executor"]) == BOTH


def test_processes_that_do_not_end_with_a_cancelled_group_are_killed(seen: dict[str, Any]) -> None:
    assert "cancelled" in seen["cancelled"]
    assert seen["stuck ended"] == [True, True]


def test_an_executor_that_is_being_replaced_is_awaited(seen: dict[str, Any]) -> None:
    assert seen["slots while one is replaced"] == [1, 1]
    assert seen["slots behind it"] == len(BOTH)
