"""Started by test_hangs: fits whose executors, or whose driver, stand still for a while, in every phase of a run."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pyspark import cloudpickle
from pyspark.sql import DataFrame, SparkSession

import cluster.trainings
import mizzle.spark.session
from chaos import faults
from chaos.faults import ACTIONS, Fault, executor_pid
from chaos.on_faulty_cluster import EXECUTORS, Watch, played
from chaos.on_faulty_cluster import cluster as start_cluster
from mizzle.blocks.deadline import Deadline
from mizzle.spark.driver import DriverSide
from mizzle.spark.placement import placed
from mizzle.spark.runner import GroupRun, GroupRunner
from unit.training.runs import Rows

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]

ASLEEP_S = 16
"""Longer than the lease of ten seconds, and than what a process has to end after it."""
SOON_S = 40.0
FRAME = cluster.trainings.frame


def _sleep(pid: int) -> None:
    """SIGSTOP now, SIGCONT later, by a process that belongs to nobody here."""
    subprocess.Popen(["sh", "-c", f"sleep {ASLEEP_S}; kill -CONT {pid}"], start_new_session=True)
    Path(os.environ["CHAOS_HOME"], "asleep").write_text(f"{pid} {os.environ['SPARK_LOCAL_DIRS']} {time.time()}")
    os.kill(pid, signal.SIGSTOP)


def pause_executor() -> None:
    """Its JVM sleeps and wakes; the rank's process is awake all the time."""
    _sleep(executor_pid())


def pause_driver() -> None:
    """The driver's JVM does, which started the executors."""
    stat = Path(f"/proc/{executor_pid()}/stat").read_text()
    _sleep(int(stat.rpartition(")")[2].split()[1]))


def residents(local_dirs: str) -> list[int]:
    """The residents of an executor, and their standbys."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            settings = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"mizzle.spark.resident" in words and f"SPARK_LOCAL_DIRS={local_dirs}".encode() in settings:
            found.append(int(entry.name))
    return found


class Sleepers:
    """What became of whoever was put to sleep, seen from outside."""

    def __init__(self, home: Path) -> None:
        self._note = home / "asleep"
        self.found: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        pause, first = threading.Event(), Deadline.after(10 * SOON_S)
        while not (self._note.exists() and self._note.read_text().count(" ") > 1):
            if first.passed:
                return
            pause.wait(0.05)
        pid, local_dirs, begun = self._note.read_text().split()
        awake = float(begun) + ASLEEP_S
        mine = residents(local_dirs)
        self.found |= {"residents": len(mine), "gone_s": None, "pid": int(pid)}
        while time.time() < awake + 15:
            if not set(mine).intersection(residents(local_dirs)):
                self.found["gone_s"] = time.time() - float(begun)
                break
            pause.wait(0.05)
        pause.wait(max(0.0, awake - time.time()))

    def done(self) -> dict[str, Any]:
        """Once the sleeper is awake."""
        self._thread.join(2 * SOON_S)
        self._note.unlink(missing_ok=True)
        return self.found


def keep_alive(spark: SparkSession) -> None:
    """No hung executor is killed: as on a host that is cut off, where nobody can."""
    side: Any = spark.sparkContext._jvm.org.mizzle.bridge.DriverSide.current()  # type: ignore[union-attr]
    for name in ("replacements", "asked"):
        field = side.getClass().getDeclaredField(name)
        field.setAccessible(True)
        side = field.get(side)
    for executor in DriverSide(spark.sparkContext).hosts():
        side.add(executor)


def stop_before_fetch(spark: SparkSession, ledger: Path) -> None:
    """Once, from the driver: an executor stops when ranks have left their results and nothing is fetched yet."""
    fetch = GroupRunner.fetch

    def struck(runner: GroupRunner, wanted: Any) -> list[bytes]:
        GroupRunner.fetch = fetch  # type: ignore[method-assign]
        told = DriverSide(spark.sparkContext).bridges()[runner._executors[0]]
        os.kill(int(dict(part.split("=", 1) for part in told.split())["pid"]), signal.SIGSTOP)
        (ledger / "fetch").touch()
        return fetch(runner, wanted)

    GroupRunner.fetch = struck  # type: ignore[method-assign, assignment]


def arm_at_boundary(home: Path) -> None:
    """After some groups the next block that any executor asks another one for is not asked for: the call throws."""
    run_once = GroupRunner._run_once

    def armed(runner: GroupRunner, title: str, pickled: bytes) -> GroupRun:
        if runner._since.iteration >= 10:
            GroupRunner._run_once = run_once  # type: ignore[method-assign]
            (home / "arm").touch()
        return run_once(runner, title, pickled)

    GroupRunner._run_once = armed  # type: ignore[method-assign, assignment]


def stop_when_dealt_again(ledger: Path, other: Path) -> None:
    """An executor stops while it reads rows again, because another one was killed."""
    fault = Fault(point="deal", call=0, action="stop_executor", ledger=ledger)

    def rows_again(_: int, rows: Iterable[Any]) -> Iterator[Any]:
        if any(other.iterdir()):
            fault.strike()
        yield from rows

    def frame(spark: SparkSession, data: Rows) -> DataFrame:
        made = FRAME(spark, data)
        return spark.createDataFrame(made.rdd.mapPartitionsWithIndex(rows_again), made.schema)

    cluster.trainings.frame = frame


def counted(_: int, rows: Iterable[int]) -> Iterator[tuple[str, int]]:
    """Runs on an executor: how often the driver was out of its bridge's reach."""
    from mizzle.blocks.bridge import BridgeClient

    list(rows)
    with BridgeClient.connect(Deadline.after(30)) as client:
        yield client.executor_id, client.counters()["leases_lost"]


def fenced(spark: SparkSession) -> dict[str, int]:
    """By executor, how often its bridge has fenced itself."""
    hosts = DriverSide(spark.sparkContext).hosts()
    tasks = placed(spark.sparkContext, [(host, executor) for executor, host in hosts.items()])
    return dict(tasks.mapPartitionsWithIndex(counted).collect())


def prepare(spark: SparkSession, how: dict[str, Any], home: Path, ledger: Path) -> None:
    """Whatever strikes from outside of the ranks."""
    if how.get("sleeps"):
        keep_alive(spark)
    if how.get("at_fetch"):
        stop_before_fetch(spark, ledger)
    if how.get("throws"):
        arm_at_boundary(home)
    if how.get("at_deal"):
        (home / "dealt").mkdir()
        stop_when_dealt_again(home / "dealt", ledger)


def all_there(spark: SparkSession) -> None:
    """Spark replaces executors that died, and who slept is heard of again."""
    driver, deadline = DriverSide(spark.sparkContext), Deadline.after(SOON_S)
    while len(driver.bridges()) < EXECUTORS:
        deadline.check("executors")
        threading.Event().wait(0.05)


def scene(spark: SparkSession, how: dict[str, Any], home: Path, number: int, watch: Watch) -> dict[str, Any]:
    """One of them, with all executors there at its beginning."""
    ledger, thrown = home / f"ledger{number}", home / "thrown"
    ledger.mkdir()
    all_there(spark)
    fault = Fault(ledger=ledger, **how["fault"]) if how.get("fault") else None
    sleepers = Sleepers(home) if how.get("sleeps") else None
    prepare(spark, how, home, ledger)
    before = fenced(spark)
    layout = {name: tuple(value) if isinstance(value, list) else value for name, value in how["layout"].items()}
    found = played(spark, fault, ledger, layout, watch)
    cluster.trainings.frame = FRAME
    if sleepers:
        found["slept"] = sleepers.done()
        all_there(spark)
        found["fenced"] = {executor: count - before.get(executor, 0) for executor, count in fenced(spark).items()}
    if how.get("throws") and thrown.exists() and "error" not in found:
        found["struck"].append(thrown.name)
        found["noticed_s"] = [at - thrown.stat().st_ctime for at in found["noticed_at"]]
    if how.get("at_deal") and "error" not in found:
        found["struck"] += [path.name for path in (home / "dealt").iterdir()]
    return found


def main(home: Path) -> None:
    """Play the scenes that the test has written down."""
    ACTIONS.update({action.__name__: action for action in (pause_executor, pause_driver)})
    # What executors get by value must find these too.
    faults.ACTIONS = ACTIONS
    logging.basicConfig(level=logging.INFO, filename=home / "driver.log", format="%(asctime)s %(name)s %(message)s")
    scenes: list[dict[str, Any]] = json.loads((home / "scenes.json").read_text())
    if (home / "faulty.jar").exists():
        mizzle.spark.session._JAR = home / "faulty.jar"
        mizzle.spark.session.PLUGIN = "org.mizzle.bridge.FaultyPlugin"
    spark = start_cluster(home, scenes[0]["master"], **{"spark.executorEnv.CHAOS_HOME": str(home)})
    watch, found = Watch(), []
    for number, how in enumerate(scenes):
        found.append(scene(spark, how, home, number, watch))
        (home / "found.json").write_text(json.dumps(found))
    spark.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
