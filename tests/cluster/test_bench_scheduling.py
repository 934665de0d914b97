"""The scheduling benchmark on Spark: what the baselines really do, and the command as a user starts it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark import RDD
from pyspark.sql import SparkSession

from mizzle.bench.application import Application
from mizzle.bench.scheduling_plain import first_state, one_job, state_after, two_jobs
from mizzle.errors import MizzleError

TIMEOUT_S = 900.0


@pytest.mark.parametrize(("iterate", "jobs"), [(one_job, 1), (two_jobs, 2)])
def test_a_plain_iteration_sums_right_in_exactly_so_many_jobs_of_one_task_a_rank(
    spark_local: SparkSession, iterate: Callable[[RDD[int], np.ndarray, float], np.ndarray], jobs: int
) -> None:
    context, iterations, ranks = spark_local.sparkContext, 2, 3
    context.setJobGroup(f"plain {jobs}", "counted")
    try:
        places, state = context.parallelize(range(ranks), ranks), first_state()
        for _ in range(iterations):
            state = iterate(places, state, 0.0)
    finally:
        context.setLocalProperty("spark.jobGroup.id", None)  # type: ignore[arg-type]
    assert np.array_equal(state, state_after(ranks, iterations))
    tracker: Any = context.statusTracker()
    found = [tracker.getJobInfo(job) for job in tracker.getJobIdsForGroup(f"plain {jobs}")]
    assert len(found) == jobs * iterations
    for job in found:
        stages = [tracker.getStageInfo(stage) for stage in job.stageIds]
        assert sum(stage.numCompletedTasks for stage in stages if stage is not None) == ranks


def test_the_baselines_workers_load_no_torch() -> None:
    program = "import sys, mizzle.bench.scheduling_plain; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0


@pytest.mark.parametrize(
    ("what", "complaint"), [("ends", "its process has ended"), ("hangs", "did not answer within 0.1")]
)
def test_an_application_that_ends_or_hangs_is_told_with_its_log(what: str, complaint: str) -> None:
    here, there = socket.socketpair()
    with there, Connection(here.detach()) as connection:
        if what == "ends":
            there.close()
        with pytest.raises(MizzleError, match=f"{complaint}.* Its log is /somewhere"):
            Application(connection, Path("/somewhere")).ask("anything", within_s=0.1)


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_the_command_measures_every_system_on_separate_executors_and_leaves_nothing(tmp_path: Path) -> None:
    out, result = tmp_path / "out", tmp_path / "result.json"
    with out.open("wb") as stream:
        done = subprocess.run(
            [sys.executable, "-c", "from mizzle.cli import main; main()", "bench", "scheduling", "--workers", "2",
             "--group-sizes", "1,10", "--repeats", "4", "--warmup", "2", "--settle", "3",
             "--body", "sleep:0.001", "--json", result],
            cwd=tmp_path, env=os.environ | {"TMPDIR": str(tmp_path)}, stdin=subprocess.DEVNULL, stdout=stream,
            stderr=stream, timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
    assert done.returncode == 0, out.read_text()
    records = json.loads(result.read_text())
    assert [(record["system"], record["group_size"]) for record in records] == [
        ("spark", 1), ("spark2", 1), ("mizzle", 1), ("mizzle", 10),
    ]  # fmt: skip
    for record in records:
        assert list(record) == [
            "system", "workers", "group_size", "body_s", "iteration_s", "overhead_s", "driver_messages_per_iteration",
            "repeats",
        ]  # fmt: skip
        assert (record["workers"], record["body_s"], record["repeats"]) == (2, 0.001, 4)
        assert record["overhead_s"] == record["iteration_s"] - record["body_s"] > 0
        messages = record["driver_messages_per_iteration"]
        assert messages is None if shutil.which("ss") is None else messages > 0
    if shutil.which("ss") is not None:
        # Each of two tasks is launched and answers; the second job of spark2 as well.
        spark, spark2 = (record["driver_messages_per_iteration"] for record in records[:2])
        assert spark >= 4
        assert spark2 > spark
    assert "overhead" in out.read_text()
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("hsperf")) == [
        "out", "result.json",
    ]  # fmt: skip
