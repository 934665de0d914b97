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

from pyspark import cloudpickle
from pyspark.sql import SparkSession

from chaos.faults import bits
from cluster.trainings import frame, trainer
from mizzle.config import Checkpoints
from mizzle.spark.driver import DriverSide
from mizzle.spark.runner import GroupRun, GroupRunner
from mizzle.spark.session import session
from unit.training.runs import Mlp, Training, digits

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]

ITERATIONS, GROUP, EVERY, EXECUTORS = 24, 4, 6, 2


def adam(groups: list[dict[str, object]]) -> Any:
    """An optimizer with state."""
    from torch.optim import Adam

    return Adam(groups, lr=0.01)


def fitted(spark: SparkSession, path: Path, resume: Any = "never") -> dict[str, Any]:
    """One fit, and what came of it."""
    training = Training(partial(Mlp, dropout=0.2, norm=True), digits(), adam)
    layout = {"ranks": EXECUTORS, "group_size": GROUP}
    saved = Checkpoints(path=path, every=EVERY)
    fitter = trainer(training, run=layout, checkpoints=saved, max_iterations=ITERATIONS)
    result = fitter.fit(frame(spark, training.data), features="x", label="y", resume=resume)
    return {
        "losses": result.history.losses,
        "model": {name: value.hex() for name, value in bits(result.model.state_dict()).items()},
        "resumed_at": result.report["resumed_at"],
        "first": result.history.groups[0].first,
        "faults": [fault.cause for fault in result.history.faults],
        "saved": [one.iteration for one in result.history.checkpoints if not one.fault],
    }


def behind_group(number: int, action: Callable[[GroupRunner], None]) -> None:
    """Do something, once, when the driver has the outcomes of that group, counted from 1."""
    run_once = GroupRunner._run_once
    done = []

    def counted(runner: GroupRunner, title: str, pickled: bytes) -> GroupRun:
        found = run_once(runner, title, pickled)
        done.append(title)
        if len(done) == number:
            action(runner)
        return found

    GroupRunner._run_once = counted  # type: ignore[method-assign, assignment]


def kill_all_executors(spark: SparkSession, _runner: GroupRunner) -> None:
    """SIGKILL for every executor, so that no copy of any state is left; returns when Spark knows."""
    driver = DriverSide(spark.sparkContext)
    there = driver.bridges()
    for told in there.values():
        os.kill(int(dict(part.split("=", 1) for part in told.split())["pid"]), signal.SIGKILL)
    while there.keys() & driver.bridges().keys():
        threading.Event().wait(0.01)


def kill_driver(spark: SparkSession, _runner: GroupRunner) -> None:
    """SIGKILL for the driver's JVM and for this process: nobody says goodbye."""
    gateway: Any = spark.sparkContext._gateway
    os.kill(gateway.proc.pid, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def main(scene: str, home: Path) -> None:
    """Play one scene."""
    logging.basicConfig(level=logging.INFO, filename=home / f"{scene}.log", format="%(asctime)s %(name)s %(message)s")
    quiet = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "WARN",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.local.dir": str(home / "local"),
        "spark.executorEnv.PYTHONPATH": os.environ["PYTHONPATH"],
    }
    spark = session(f"local-cluster[{EXECUTORS},1,1024]", app_name="mizzle tests", conf=quiet)
    found = {}
    if scene == "killed":
        found["calm"] = fitted(spark, home / "calm")
        behind_group(4, partial(kill_all_executors, spark))
        found["all lost"] = fitted(spark, home / "all lost")
        (home / "found.json").write_text(json.dumps(found))
        behind_group(4, partial(kill_driver, spark))
        fitted(spark, home / "driver killed")
    else:
        found = json.loads((home / "found.json").read_text())
        found["driver killed"] = fitted(spark, home / "driver killed", resume="auto")
        (home / "found.json").write_text(json.dumps(found))
        spark.stop()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
