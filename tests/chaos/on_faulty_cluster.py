"""Started by `chaos.stage`: plays scenes in one application on separate executors; their histories go to a file."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pyspark import cloudpickle
from pyspark.sql import SparkSession

import mizzle
from chaos.control_groups import release
from chaos.faults import ACTIONS, GROUP_NAME, Busy, Fault, Faulty, bits, struck, struck_at
from chaos.inventory import Inventory
from chaos.membership import Executors, Shifts
from chaos.records import DEATH, ERROR_S, SILENCE, Watch, Watched, history_of, over_with, shard_seconds, waits_of
from chaos.zombies import leave_zombie, report_of_zombie
from cluster.speculation import superfluous_attempts
from cluster.trainings import fit, frame
from mizzle.spark.driver import DriverSide
from mizzle.spark.runner import GroupRunner
from mizzle.spark.session import session
from unit.training.runs import Training, digits

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]

ITERATIONS, GROUP, EXECUTORS = 24, 4, 3
LOOK_BEHIND = 2
"""Groups, where a scene wants to know what a run holds."""
ACTIONS[leave_zombie.__name__] = leave_zombie


def adam(groups: list[dict[str, object]]) -> Any:
    """An optimizer with state."""
    from torch.optim import Adam

    return Adam(groups, lr=0.01)


def training_of(faults: Sequence[Fault], ledger: Path, pace_s: float = 0.0, *, busy: bool = False) -> Training:
    """What is trained in every scene."""
    kind = Busy if busy else Faulty
    return Training(partial(kind, faults, ledger, pace_s, dropout=0.2, norm=True), digits(), adam)


def played(
    spark: SparkSession, scene: dict[str, Any], ledger: Path, watch: Watch, faults: Sequence[Fault]
) -> dict[str, Any]:
    """One fit, and what came of it."""
    training = training_of(faults, ledger, scene.get("pace_s", 0.0), busy=scene.get("busy", False))
    layout = {name: tuple(value) if isinstance(value, list) else value for name, value in scene["layout"].items()}
    how: dict[str, Any] = {"run": layout | {"group_size": scene.get("group", GROUP)}} | scene.get("how", {})
    begun = time.time()
    try:
        result = fit(spark, training, max_iterations=scene.get("iterations", ITERATIONS), **how)
    except Exception as error:  # noqa: BLE001 - the checker judges it
        return failed(error, ledger) | {"wall_s": time.time() - begun}
    done = watch.of[result.report["run"]]
    lines = (ledger / f"{result.report['run']}.rows").read_text().splitlines()
    told = history_of(
        training, result.history, {name: value.hex() for name, value in bits(result.model.state_dict()).items()}, done,
        lines,
    )  # fmt: skip
    silent = scene.get("silent") or any(fault.action == "stop_executor" for fault in faults)
    limits = SILENCE if silent else DEATH
    limits = replace(limits, resumed_s=limits.resumed_s + scene.get("held_up_s", 0.0))
    hit = dict(zip(struck(ledger), struck_at(ledger), strict=True))
    told["waits"] = waits_of(result.history, list(hit.values()), limits)
    as_dict = result.history.as_dict()
    return {
        "history": told, "sizes": done.sizes, "struck": list(hit), "group": scene.get("group", GROUP),
        "unseen": [name for name, at in hit.items() if over_with(result.history, at) is None],
        "faults": [fault.cause for fault in result.history.faults], "wall_s": time.time() - begun, "begun": begun,
        "noticed_at": [fault.noticed_at for fault in result.history.faults],
        "resumed_at": [fault.resumed_at for fault in result.history.faults], "ends": done.ends,
        "stragglers": as_dict["stragglers"], "dropped": as_dict["dropped"],
        "shard_s": shard_seconds(lines) if scene.get("busy") else [],
    }  # fmt: skip


def failed(error: BaseException, ledger: Path) -> dict[str, Any]:
    """What came of a run that ended with an error: it, too, must come in time."""
    hit = struck_at(ledger)
    waits = [("the error", time.time() - hit[-1], ERROR_S)] if hit else []
    kind = type(error).__name__
    return {
        "history": {
            "losses": [], "model": {}, "num_rows": 0, "num_shards": 1, "per_epoch": 1, "committed": [], "tried": [],
            "seen": [], "waits": waits, "left": [], "error": kind,
        },
        "error": f"{kind}: {error}", "trace": traceback.format_exc(), "struck": struck(ledger), "sizes": [],
        "faults": [],
    }  # fmt: skip


def kill_before_fetch(spark: SparkSession, ledger: Path) -> None:
    """Once, from the driver: an executor dies when the ranks have left their results and nothing is fetched yet."""
    fetch = GroupRunner.fetch

    def struck_fetch(runner: GroupRunner, wanted: Any) -> list[bytes]:
        GroupRunner.fetch = fetch  # type: ignore[method-assign]
        driver = DriverSide(spark.sparkContext)
        os.kill(int(driver.told()[runner._executors[0]]["pid"]), signal.SIGKILL)
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


def iterated(spark: SparkSession, fault: Fault | None) -> dict[str, Any]:
    """One iterative job, and what came of it."""
    data = frame(spark, digits())
    try:
        result = mizzle.iterate(
            data, Step(fault), iterations=ITERATIONS, ranks=3, group_size=GROUP, state=np.zeros(2),
            finish=lambda context, _batch: context.state.tolist(),
        )  # fmt: skip
    except Exception as error:  # noqa: BLE001 - the test judges it
        return {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
    return {
        "losses": result.metrics["total"], "model": result.values,
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


class Cast:
    """One application, and what all its scenes share."""

    def __init__(self, home: Path, stage: dict[str, Any]) -> None:
        self.home = home
        self.spark = cluster(home, stage["master"], **stage.get("conf", {}))
        self.watch = Watch()
        self.inventory = Inventory(home / "local", stage.get("slots", 1))
        self.held: list[str] = []

    def play(self, number: int, scene: dict[str, Any]) -> dict[str, Any]:
        """One scene; nothing of it may be left ten seconds later."""
        ledger = self.home / f"ledger{number}"
        ledger.mkdir()
        faults = [Fault(ledger=ledger, **fault) for fault in scene.get("faults", ())]
        executors = Executors(self.spark)
        if "limit" in scene:
            executors.limit(scene["limit"])
        executors.await_count(scene.get("executors", EXECUTORS))
        before, superfluous = executors.pids(), self._superfluous()
        self.watch.at_boundary = Shifts(self.spark, scene.get("shifts", ()), ledger)
        self.prepare(scene, ledger)
        if scene.get("iterate"):
            found = iterated(self.spark, faults[0] if faults else None)
            return found | {"left": self.inventory.left(len(faults))}
        if scene.get("beside"):
            found = self._two(scene, ledger, faults)
        else:
            found = played(self.spark, scene, ledger, self.watch, faults)
        found["executors"] = [before, executors.pids()]
        found["superfluous"] = self._superfluous() - superfluous
        self.settle(scene, ledger, found)
        found["history"]["left"] = self.inventory.left(len(found["struck"]))
        if scene.get("look"):
            found["held"] = self.held
        return found

    def _superfluous(self) -> int:
        """Attempts of groups' tasks that were not needed, until now; only speculation makes any."""
        if self.spark.conf.get("spark.speculation") != "true":
            return 0
        return sum(superfluous_attempts(self.spark.sparkContext).values())

    def prepare(self, scene: dict[str, Any], ledger: Path) -> None:
        """Whatever strikes, or looks, from outside of the ranks."""
        if scene.get("look"):
            self.watch.at_boundary = self._look
        if scene.get("at_fetch"):
            kill_before_fetch(self.spark, ledger)

    def _look(self, _runner: GroupRunner, done: Watched) -> None:
        """Once, in the middle of a run."""
        if len(done.ends) == LOOK_BEHIND:
            self.held = self.inventory.now()

    def settle(self, scene: dict[str, Any], ledger: Path, found: dict[str, Any]) -> None:
        """What struck from outside is over; limits of processes are, too."""
        release(GROUP_NAME)
        if any(one["action"] == leave_zombie.__name__ for one in scene.get("faults", ())):
            found["zombie"] = report_of_zombie(ledger)

    def _two(self, scene: dict[str, Any], ledger: Path, faults: Sequence[Fault]) -> dict[str, Any]:
        """The scene, with another training beside it in the same session, which nothing strikes itself."""
        beside = self.home / f"{ledger.name}.beside"
        beside.mkdir()
        with ThreadPoolExecutor(2) as pool:
            other = pool.submit(played, self.spark, scene, beside, self.watch, [])
            found = pool.submit(played, self.spark, scene, ledger, self.watch, faults).result()
            found["beside"] = other.result()
        return found


def main(home: Path, kind: type[Cast] = Cast) -> None:
    """Play the scenes that the test has written down."""
    logging.basicConfig(level=logging.INFO, filename=home / "driver.log", format="%(asctime)s %(name)s %(message)s")
    stage: dict[str, Any] = json.loads((home / "stage.json").read_text())
    cast, found = kind(home, stage), {}
    for number, (name, scene) in enumerate(stage["scenes"].items()):
        logging.getLogger(__name__).info("scene %d: %s", number, name)
        found[name] = cast.play(number, scene)
        (home / "found.json").write_text(json.dumps(found))
    cast.spark.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
