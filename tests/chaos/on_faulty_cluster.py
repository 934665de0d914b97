"""Started by test_faults: fits on separate executors that are struck by faults; what came of each goes to a file."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from pyspark import cloudpickle
from pyspark.sql import SparkSession

import mizzle
from chaos.control_groups import release
from chaos.faults import GROUP_NAME, Busy, Fault, Faulty, bits, struck
from cluster.trainings import fit, frame
from mizzle.spark.driver import DriverSide
from mizzle.spark.runner import GroupRun, GroupRunner
from mizzle.spark.session import session
from unit.training.runs import Training, digits

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]

ITERATIONS, GROUP, EXECUTORS = 24, 4, 3


def adam(groups: list[dict[str, object]]) -> Any:
    """An optimizer with state."""
    from torch.optim import Adam

    return Adam(groups, lr=0.01)


class Watch:
    """When groups were done, and by how many ranks."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.ends: list[float] = []
        done = GroupRunner._run_once

        def run_once(runner: GroupRunner, title: str, pickled: bytes) -> GroupRun:
            found = done(runner, title, pickled)
            self.sizes.append(len(found.results))
            self.ends.append(time.time())
            return found

        GroupRunner._run_once = run_once  # type: ignore[method-assign, assignment]

    def clear(self) -> None:
        self.sizes.clear()
        self.ends.clear()


def played(
    spark: SparkSession, fault: Fault | None, ledger: Path, layout: dict[str, Any], watch: Watch,
    how: Mapping[str, Any] = MappingProxyType({}), *, busy: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """One fit, and what came of it."""
    watch.clear()
    training = Training(partial(Busy if busy else Faulty, fault, dropout=0.2, norm=True), digits(), adam)
    begun = time.time()
    try:
        result = fit(spark, training, run=layout | {"group_size": GROUP}, **{"max_iterations": ITERATIONS} | dict(how))
    except Exception as error:  # noqa: BLE001 - the test judges it
        return {
            "error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc(), "struck": struck(ledger),
            "wall_s": time.time() - begun,
        }  # fmt: skip
    hit = sorted(path.stat().st_mtime for path in fault.ledger.iterdir()) if fault else []
    resumed = [end - hit[-1] for end in watch.ends if hit and end > hit[-1]]
    return {
        "losses": result.history.losses,
        "model": {name: value.hex() for name, value in bits(result.model.state_dict()).items()},
        "sizes": list(watch.sizes),
        "struck": struck(ledger),
        "faults": [one.cause for one in result.history.faults],
        "noticed_at": [one.noticed_at for one in result.history.faults],
        "noticed_s": [one.noticed_at - hit[0] for one in result.history.faults] if hit else [],
        "resume_s": resumed[0] if resumed else None,
        "wall_s": time.time() - begun,
        "history": result.history.as_dict(),
    }


def kill_before_fetch(spark: SparkSession, ledger: Path) -> None:
    """Once, from the driver: an executor dies when the ranks have left their results and nothing is fetched yet."""
    fetch = GroupRunner.fetch

    def struck_fetch(runner: GroupRunner, wanted: Any) -> list[bytes]:
        GroupRunner.fetch = fetch  # type: ignore[method-assign]
        driver = DriverSide(spark.sparkContext)
        told = driver.bridges()[runner._executors[0]]
        os.kill(int(dict(part.split("=", 1) for part in told.split())["pid"]), signal.SIGKILL)
        (ledger / "fetch").touch()
        while runner._executors[0] in driver.bridges():
            threading.Event().wait(0.01)
        return fetch(runner, wanted)

    GroupRunner.fetch = struck_fetch  # type: ignore[method-assign, assignment]


class Step:
    """A computation whose state is a sum over all iterations and ranks' rows; one rank strikes in the middle."""

    def __init__(self, fault: Fault | None) -> None:
        self.fault = fault

    def __call__(self, context: Any, batch: Any) -> dict[str, float]:
        if self.fault is not None and context.iteration == 13 and context.rank == 1:
            self.fault.strike()
        mine = np.array([float(sum(batch["y"].to_pylist())) + context.iteration, 1.0])
        context.state = context.state + context.all_reduce(mine)
        return {"total": float(context.state[0])}


def iterated(spark: SparkSession, fault: Fault | None, watch: Watch) -> dict[str, Any]:
    """One iterative job, and what came of it."""
    watch.clear()
    data = frame(spark, digits())
    try:
        result = mizzle.iterate(
            data, Step(fault), iterations=ITERATIONS, ranks=3, group_size=GROUP, state=np.zeros(2),
            finish=lambda context, _batch: context.state.tolist(),
        )  # fmt: skip
    except Exception as error:  # noqa: BLE001 - the test judges it
        return {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
    return {
        "losses": result.metrics["total"], "model": result.values, "sizes": list(watch.sizes),
        "struck": struck(fault.ledger) if fault else [],
    }  # fmt: skip


def cluster(home: Path, master: str, **settings: str) -> SparkSession:
    """A session with executors of its own, all of whose files lie in that directory."""
    quiet = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "WARN",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.local.dir": str(home / "local"),
        "spark.executorEnv.PYTHONPATH": os.environ["PYTHONPATH"],
    }
    return session(master, app_name="mizzle tests", conf=quiet | settings)


def main(home: Path) -> None:
    """Play the scenes that the test has written down."""
    logging.basicConfig(level=logging.INFO, filename=home / "driver.log", format="%(asctime)s %(name)s %(message)s")
    scenes: list[dict[str, Any]] = json.loads((home / "scenes.json").read_text())
    spark = cluster(home, scenes[0]["master"])
    watch, found = Watch(), []
    for number, scene in enumerate(scenes):
        ledger = home / f"ledger{number}"
        ledger.mkdir()
        if scene.get("at_fetch"):
            kill_before_fetch(spark, ledger)
        fault = Fault(ledger=ledger, **scene["fault"]) if scene.get("fault") else None
        while len(DriverSide(spark.sparkContext).bridges()) < EXECUTORS:  # Spark replaces those that died
            threading.Event().wait(0.05)
        layout = {name: tuple(value) if isinstance(value, list) else value for name, value in scene["layout"].items()}
        found.append(
            iterated(spark, fault, watch)
            if scene.get("iterate")
            else played(spark, fault, ledger, layout, watch, scene.get("how", {}), busy=scene.get("busy", False))
        )
        release(GROUP_NAME)
        (home / "found.json").write_text(json.dumps(found))
    spark.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
