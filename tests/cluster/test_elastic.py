"""Dynamic allocation and speculation, both on, do not disturb a run: executors come when ranks ask for them, and a
second attempt of a task neither wins nor fails it. On a standalone cluster whose workers look like two hosts, because
Spark never starts a second attempt on the host of the first.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyspark
import pytest

TESTS = Path(__file__).parents[1]
SPARK_HOME = Path(pyspark.__file__).parent


def start(home: Path, name: str, *command: str) -> tuple[subprocess.Popen[bytes], Path]:
    log = home / f"{name}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(SPARK_HOME / "bin" / "spark-class"), f"org.apache.spark.deploy.{command[0]}", *command[1:]],
            env={**os.environ, "SPARK_HOME": str(SPARK_HOME), "SPARK_DAEMON_MEMORY": "256m"},
            stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
    return process, log


def await_line(log: Path, pattern: str) -> str:
    follow = subprocess.run(
        ["timeout", "60", "sh", "-c", f"tail -n +1 -F '{log}' 2>/dev/null | grep -m1 -E '{pattern}'"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = re.search(pattern, follow.stdout)
    assert found, log.read_text()[-3000:]
    return found[0]


@pytest.fixture
def master(tmp_path: Path) -> Iterator[str]:
    """URL of a standalone master with two workers of four slots, on 127.0.0.2 and 127.0.0.3."""
    processes = []
    try:
        process, log = start(
            tmp_path, "master", "master.Master", "--host", "127.0.0.1", "--port", "0", "--webui-port", "0"
        )
        processes.append(process)
        url = await_line(log, r"spark://127\.0\.0\.1:[0-9]+")
        for host in ("127.0.0.2", "127.0.0.3"):
            process, log = start(
                tmp_path, host, "worker.Worker", "--host", host, "--webui-port", "0", "--cores", "4",
                "--memory", "1g", "--work-dir", str(tmp_path / f"work-{host}"), url,
            )  # fmt: skip
            processes.append(process)
            await_line(log, "Successfully registered with master")
        yield url
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(20)


@pytest.mark.timeout(240)
def test_dynamic_allocation_and_speculation_do_not_disturb_a_run(master: str, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    child = subprocess.run(
        [sys.executable, str(TESTS / "cluster" / "on_standalone.py"), master, str(out)],
        env={**os.environ, "PYTHONPATH": str(TESTS), "PYSPARK_PYTHON": sys.executable},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr[-4000:]
    seen = json.loads(out.read_text())
    assert seen["before"] == 0, "no executor was there before ranks asked for them"
    iterations = sum(range(30))
    assert [state for *_, state in seen["2"]] == [[1.0 * 30 + 2 * iterations] * 3] * 2
    assert [state for *_, state in seen["4"]] == [[6.0 * 30 + 4 * iterations] * 3] * 4
    assert len({host for host, *_ in seen["4"]}) == 2, "the executor that second attempts brought is used"
    assert len({(executor, pid) for _, executor, pid, _ in seen["4"]}) == 4, "each rank is a process"
    assert seen["speculated"] == [True, True], "Spark started tasks of both runs a second time"
