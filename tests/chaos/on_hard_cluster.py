"""Started by test_hard_cluster: fits beside a zombie, in full storage memory, with pauses; what came of each."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from pyspark import StorageLevel
from pyspark.sql import SparkSession

from chaos.faults import ACTIONS, Fault, Faulty, bits
from chaos.zombies import REPORT, WAIT_S, leave_zombie
from cluster.trainings import fit
from mizzle.blocks.deadline import Deadline
from mizzle.spark.driver import DriverSide
from mizzle.spark.session import session
from unit.training.runs import Training, digits

ACTIONS["leave_zombie"] = leave_zombie
EXECUTORS, GROUP = 3, 10
PAUSE_S = 2.0


def adam(groups: list[dict[str, object]]) -> Any:
    """An optimizer with state."""
    from torch.optim import Adam

    return Adam(groups, lr=0.01)


def played(spark: SparkSession, fault: Fault | None, layout: dict[str, Any], iterations: int) -> dict[str, Any]:
    """One fit."""
    training = Training(partial(Faulty, fault, dropout=0.2, norm=True), digits(), adam)
    try:
        result = fit(spark, training, run=layout | {"group_size": GROUP}, max_iterations=iterations, max_epochs=10**6)
    except Exception as error:  # noqa: BLE001 - the test judges it
        return {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
    return {
        "losses": result.history.losses,
        "model": {name: value.hex() for name, value in bits(result.model.state_dict()).items()},
        "faults": [fault.cause for fault in result.history.faults],
    }


def report_of_zombie(home: Path) -> dict[str, Any]:
    """What the zombie says when it has done all it could."""
    deadline, paused = Deadline.after(2 * WAIT_S), threading.Event()
    while not (found := list(home.rglob(REPORT))):
        deadline.check("the zombie's report")
        paused.wait(0.05)
    told: dict[str, Any] = json.loads(found[0].read_text())
    return told


@contextmanager
def full_storage(spark: SparkSession) -> Iterator[None]:
    """Every executor's storage memory is full of somebody's cached rows, and stays so."""
    context = spark.sparkContext
    # Random, because Spark compresses what Python caches; in many parts, because one that does not fit is left out.
    cached = context.parallelize(range(1500), 150).map(lambda _: os.urandom(1 << 20))
    cached.persist(StorageLevel.MEMORY_ONLY).count()
    memory: Any = context._jsc.sc().getExecutorMemoryStatus()
    left = sorted(int(pair.split(",")[1].split(")")[0]) for pair in memory.mkString(";").split(";"))
    assert max(left[:EXECUTORS]) < 30 << 20, f"something is left of an executor's storage: {left}"
    yield
    cached.unpersist(blocking=True)


def processes(spark: SparkSession) -> list[int]:
    """The executors, and the residents beside them."""
    jvms = {int(dict(part.split("=", 1) for part in told.split())["pid"])
            for told in DriverSide(spark.sparkContext).bridges().values()}  # fmt: skip
    mine = spark.sparkContext.getConf().get("spark.local.dir") or ""
    residents = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words, settings = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
            except OSError:
                continue
            if b"mizzle.spark.resident" in words and mine.encode() in settings:
                residents.append(int(entry.name))
    return [*sorted(jvms), *sorted(residents)]


@contextmanager
def pauses(spark: SparkSession, times: list[float], every_s: float) -> Iterator[None]:
    """Somebody stands still for two seconds, again and again; notes when."""
    over = threading.Event()
    dice = random.Random(7)  # noqa: S311 - to be repeatable, not secret

    def nemesis() -> None:
        while not over.wait(every_s - PAUSE_S):
            victim = dice.choice(processes(spark))
            try:
                os.kill(victim, signal.SIGSTOP)
                times.append(time.time())
                over.wait(PAUSE_S)
                os.kill(victim, signal.SIGCONT)
            except ProcessLookupError:
                continue

    thread = threading.Thread(target=nemesis)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def scene(spark: SparkSession, home: Path, number: int, how: dict[str, Any]) -> dict[str, Any]:
    """Play it."""
    ledger = home / f"ledger{number}"
    ledger.mkdir()
    fault = Fault(ledger=ledger, **how["fault"]) if "fault" in how else None
    stopped: list[float] = []
    around: dict[str, Callable[[], Any]] = {
        "full storage": lambda: full_storage(spark),
        "pauses": lambda: pauses(spark, stopped, how["every_s"]),
    }
    with around.get(how.get("around", ""), nullcontext)():
        found = played(spark, fault, how["layout"], how["iterations"])
    found["pauses"] = len(stopped)
    found["struck"] = len(list(ledger.iterdir()))
    if fault is not None and fault.action == "leave_zombie":
        found["zombie"] = report_of_zombie(home)
    return found


def main(home: Path) -> None:
    """Play the scenes that the test has written down."""
    logging.basicConfig(level=logging.INFO, filename=home / "driver.log", format="%(asctime)s %(name)s %(message)s")
    quiet = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "WARN",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.local.dir": str(home / "local"),
        "spark.executorEnv.PYTHONPATH": os.environ["PYTHONPATH"],
    }
    found = []
    with session(f"local-cluster[{EXECUTORS},1,1024]", app_name="mizzle tests", conf=quiet) as spark:
        for number, how in enumerate(json.loads((home / "scenes.json").read_text())):
            found.append(scene(spark, home, number, how))
            (home / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
