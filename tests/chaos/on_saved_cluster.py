"""Started by test_saved_runs: fits with checkpoints, whose driver or whose executors are all killed."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pyspark import cloudpickle
from pyspark.sql import SparkSession

from chaos.faults import bits
from chaos.inventory import named
from chaos.membership import Executors
from chaos.on_faulty_cluster import GROUP, ITERATIONS, adam, cluster
from chaos.records import Watch, Watched
from cluster.trainings import frame, trainer
from mizzle.blocks.deadline import Deadline
from mizzle.config import Checkpoints
from mizzle.spark.runner import GroupRunner
from mizzle.training.manifest import MANIFEST
from unit.training.runs import Mlp, Training, digits

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]

EVERY, EXECUTORS, SPARK_KNOWS_S = 6, 2, 60.0
LONG, PACE_S = 120, 0.1
"""Iterations, and seconds for each of the two shards that a rank has: for kills at any time."""


class Paced(Mlp):
    """Takes some time for a shard, whatever its rows: so groups are longer than a checkpoint takes to be written."""

    def __init__(self, pace_s: float) -> None:
        super().__init__(dropout=0.2, norm=True)
        self.pace_s = pace_s

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            threading.Event().wait(self.pace_s)
        return super().forward(inputs)


def fitted(
    spark: SparkSession, home: Path, name: str, resume: Any = "never", *,
    iterations: int = ITERATIONS, pace_s: float = 0.0,
) -> dict[str, Any]:  # fmt: skip
    """One fit, and what came of it."""
    training = Training(partial(Paced, pace_s), digits(), adam)
    fitter = trainer(
        training, run={"ranks": EXECUTORS, "group_size": GROUP}, max_iterations=iterations,
        checkpoints=Checkpoints(path=home / name, every=EVERY),
    )  # fmt: skip
    result = fitter.fit(frame(spark, training.data), features="x", label="y", resume=resume)
    return {
        "losses": result.history.losses,
        "model": {name: value.hex() for name, value in bits(result.model.state_dict()).items()},
        "resumed_at": result.report["resumed_at"],
        "first": result.history.groups[0].first,
        "went_on_from": [fault.boundary for fault in result.history.faults],
        "saved": [one.iteration for one in result.history.checkpoints if not one.fault],
    }


def strike_once(watch: Watch, checkpoints: Path, action: Callable[[], None]) -> list[int]:
    """Between two groups, when a checkpoint is there; returns a list that will hold the boundary."""
    boundaries: list[int] = []

    def struck(runner: GroupRunner, _done: Watched) -> None:
        if runner._since.iteration > EVERY and any(named(checkpoints, MANIFEST)):
            watch.at_boundary = lambda _runner, _done: None
            boundaries.append(runner._since.iteration)
            action()

    watch.at_boundary = struck
    return boundaries


def kill_all_executors(spark: SparkSession) -> None:
    """SIGKILL for every executor, so that no copy of any state is left; returns when Spark knows."""
    executors, deadline = Executors(spark), Deadline.after(SPARK_KNOWS_S)
    there = executors.pids()
    for name in there:
        executors.kill(name)
    while there.keys() & executors.pids().keys():
        deadline.check("Spark to know that its executors died")
        threading.Event().wait(0.01)


def kill_driver(spark: SparkSession) -> None:
    """SIGKILL for the driver's JVM and for this process: nobody says goodbye."""
    gateway: Any = spark.sparkContext._gateway
    os.kill(gateway.proc.pid, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def kill_later(spark: SparkSession, watch: Watch, delay_s: float, boundaries: Path) -> None:
    """The driver dies some time after it has given its first order; boundaries that it orders from are noted before."""
    timer = threading.Timer(delay_s, kill_driver, [spark])
    timer.daemon = True

    def noted(runner: GroupRunner, done: Watched) -> None:
        with boundaries.open("a") as file:
            file.write(f"{runner._since.iteration}\n")
        if not done.tried:
            timer.start()

    watch.at_boundary = noted


def killed_at_random(home: Path, delay_s: float, boundaries: Path) -> None:
    """Go on from what the application before has left, until the end of this process."""
    spark, watch = cluster(home, f"local-cluster[{EXECUTORS},1,1024]"), Watch()
    kill_later(spark, watch, delay_s, boundaries)
    fitted(spark, home, "killed at random", resume="auto", iterations=LONG, pace_s=PACE_S)


def main(home: Path) -> None:
    """Fit in peace, without any executor, and until the end of this process."""
    logging.basicConfig(level=logging.INFO, filename=home / "driver.log", format="%(asctime)s %(name)s %(message)s")
    spark, watch = cluster(home, f"local-cluster[{EXECUTORS},1,1024]"), Watch()
    found = {"calm": fitted(spark, home, "calm")}
    struck_at = strike_once(watch, home / "all lost", lambda: kill_all_executors(spark))
    found["all lost"] = fitted(spark, home, "all lost") | {"struck_at": struck_at}
    (home / "found.json").write_text(json.dumps(found))
    strike_once(watch, home / "driver killed", lambda: kill_driver(spark))
    fitted(spark, home, "driver killed")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        killed_at_random(Path(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]))
    else:
        main(Path(sys.argv[1]))
