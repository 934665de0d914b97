"""Started by test_hangs: fits whose executors, or whose driver, stand still for a while, in every phase of a run."""

from __future__ import annotations

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
from chaos.inventory import processes
from chaos.membership import Executors
from chaos.on_faulty_cluster import EXECUTORS, Cast
from chaos.on_faulty_cluster import main as play
from mizzle.blocks.deadline import Deadline
from mizzle.spark.driver import DriverSide
from mizzle.spark.placement import placed
from mizzle.spark.runner import GroupRun, GroupRunner
from unit.training.runs import Rows

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]

ASLEEP_S, LONG_S = 16, 60
"""Longer than the lease of ten seconds, and than what a process has to end after it; and much longer."""
SOON_S = 40.0
FRAME = cluster.trainings.frame


def _sleep(pid: int, seconds: int = ASLEEP_S) -> None:
    """SIGSTOP now, SIGCONT later, by a process that belongs to nobody here."""
    subprocess.Popen(["sh", "-c", f"sleep {seconds}; kill -CONT {pid}"], start_new_session=True)
    note = Path(os.environ["CHAOS_HOME"], "asleep")
    note.with_suffix(".half").write_text(f"{pid} {os.environ['SPARK_LOCAL_DIRS']} {time.time()} {seconds}")
    note.with_suffix(".half").rename(note)
    os.kill(pid, signal.SIGSTOP)


def pause_executor() -> None:
    """Its JVM sleeps and wakes; the rank's process is awake all the time."""
    _sleep(executor_pid())


def pause_executor_long() -> None:
    """The same, for a minute."""
    _sleep(executor_pid(), LONG_S)


def pause_driver() -> None:
    """The driver's JVM does, which started the executors."""
    stat = Path(f"/proc/{executor_pid()}/stat").read_text()
    _sleep(int(stat.rpartition(")")[2].split()[1]))


def residents(directory: str) -> list[int]:
    """The residents of an executor, and their standbys."""
    return [one.pid for one in processes(directory) if one.is_resident]


class Sleepers:
    """What became of whoever was put to sleep, seen from outside."""

    def __init__(self, home: Path) -> None:
        self._note = home / "asleep"
        self.found: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        pause, first = threading.Event(), Deadline.after(10 * SOON_S)
        while not self._note.exists():
            if first.passed:
                return
            pause.wait(0.05)
        pid, local_dirs, begun, seconds = self._note.read_text().split()
        awake = float(begun) + int(seconds)
        mine = residents(local_dirs)
        self.found |= {"residents": len(mine), "gone_s": None, "pid": int(pid), "begun": float(begun), "awake": awake}
        while time.time() < awake + 15:
            if not set(mine).intersection(residents(local_dirs)):
                self.found["gone_s"] = time.time() - float(begun)
                break
            pause.wait(0.05)
        pause.wait(max(0.0, awake - time.time()))

    def done(self) -> dict[str, Any]:
        """Once the sleeper is awake."""
        self._thread.join(LONG_S + SOON_S)
        self._note.unlink(missing_ok=True)
        return self.found


def _of_replacements(spark: SparkSession, name: str) -> tuple[Any, Any]:
    """A private field of the driver's `Replacements`, and its owner."""
    jvm: Any = spark.sparkContext._jvm
    found: Any = jvm.org.mizzle.bridge.DriverSide.current()
    for step in ("replacements", name):
        owner = found
        field = owner.getClass().getDeclaredField(step)
        field.setAccessible(True)
        found = field.get(owner)
    return field, owner


def keep_alive(spark: SparkSession) -> None:
    """Spark is thought to end executors that hang, and does not: as on a host that is cut off, where nobody can."""
    field, owner = _of_replacements(spark, "spark")
    jvm: Any = spark.sparkContext._jvm
    field.set(owner, jvm.java.util.function.Predicate.isEqual("nobody").negate())


def take_back(spark: SparkSession) -> None:
    """Who was thought to be ended is not, and may have ranks again."""
    field, owner = _of_replacements(spark, "asked")
    field.get(owner).clear()


def stop_before_fetch(spark: SparkSession, ledger: Path) -> None:
    """Once, from the driver: an executor stops when ranks have left their results and nothing is fetched yet."""
    fetch = GroupRunner.fetch

    def struck(runner: GroupRunner, wanted: Any) -> list[bytes]:
        GroupRunner.fetch = fetch  # type: ignore[method-assign]
        told = DriverSide(spark.sparkContext).told()[runner._executors[0]]
        os.kill(int(told["pid"]), signal.SIGSTOP)
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


def stop_at_rows(ledger: Path, when: str) -> None:
    """An executor stops while it reads rows: to look at them, to deal them, or, when another one was killed, again."""
    fault = Fault(point="deal", call=0, action="stop_executor", ledger=ledger)

    def rows_again(number: int, rows: Iterable[Any]) -> Iterator[Any]:
        looked = ledger / f"{number}.id"
        now = {"looked at": True, "dealt": looked.exists(), "dealt again": any(ledger.glob("*.kill_executor.*"))}
        looked.touch()
        if now[when]:
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


class HungCast(Cast):
    """Plays also: "sleeps" (whoever is paused wakes up again), "at_fetch" (an executor stops, and does not die),
    "throws", "at_deal" (when an executor stops that reads rows)."""

    def __init__(self, home: Path, stage: dict[str, Any]) -> None:
        if (home / "faulty.jar").exists():
            mizzle.spark.session._JAR = home / "faulty.jar"
            mizzle.spark.session.PLUGIN = "org.mizzle.bridge.FaultyPlugin"
        super().__init__(home, stage)
        self._sleepers: Sleepers | None = None
        self._fenced: dict[str, int] = {}

    def prepare(self, scene: dict[str, Any], ledger: Path) -> None:
        if scene.get("sleeps"):
            self._fenced, self._sleepers = fenced(self.spark), Sleepers(self.home)
            keep_alive(self.spark)
        if scene.get("at_fetch"):
            stop_before_fetch(self.spark, ledger)
        if scene.get("throws"):
            arm_at_boundary(self.home)
        if scene.get("at_deal"):
            stop_at_rows(ledger, scene["at_deal"])

    def settle(self, scene: dict[str, Any], ledger: Path, found: dict[str, Any]) -> None:
        super().settle(scene, ledger, found)
        cluster.trainings.frame = FRAME
        if self._sleepers:
            found["slept"], self._sleepers = self._sleepers.done(), None
            take_back(self.spark)
            Executors(self.spark).await_count(EXECUTORS)  # who slept is heard of again
            now = fenced(self.spark)
            found["fenced"] = {executor: count - self._fenced.get(executor, 0) for executor, count in now.items()}
        thrown = self.home / "thrown"
        if scene.get("throws") and thrown.exists():
            found["struck"].append(thrown.name)
            found["noticed_s"] = [at - thrown.stat().st_ctime for at in found.get("noticed_at", ())]


def main(home: Path) -> None:
    """Play the scenes that the test has written down."""
    ACTIONS.update({action.__name__: action for action in (pause_executor, pause_executor_long, pause_driver)})
    # What executors get by value must find these too.
    faults.ACTIONS = ACTIONS
    play(home, HungCast)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
