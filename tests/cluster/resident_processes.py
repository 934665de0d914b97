"""A program of its own: resident processes on two executors, of which residents and executors are killed.

Prints one JSON object. A process has one SparkContext at most, so `test_resident_processes.py` starts this once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark import InheritableThread, SparkContext

from mizzle.blocks.deadline import Deadline
from mizzle.spark.driver import DriverSide, await_slots, num_executors, task_slots
from mizzle.spark.jvm_groups import JvmGroups
from mizzle.spark.session import session

RANKS = 2
WITHIN_S = 60.0
RESIDENT = """
import os, sys, threading
from pathlib import Path
from mizzle.blocks.bridge import BridgeClient
from mizzle.blocks.deadline import Deadline
from mizzle.blocks.residence import OrderKind, serve
from mizzle.errors import BridgeLost

client = BridgeClient(sys.argv[1], bytes.fromhex(sys.argv[2]), Deadline.after(60))
serial, rank, outcome = 0, -1, b""
try:
    while (order := serve(client, pid=os.getpid(), serial=serial, rank=rank, outcome=outcome)).kind != OrderKind.EXIT:
        serial = order.serial
        if order.kind == OrderKind.START:
            number, _, folder = order.payload.decode().partition(" ")
            Path(folder, number).touch()
            while len(list(Path(folder).iterdir())) < 2:
                threading.Event().wait(0.01)
            rank, outcome = int(number), str(os.getpid()).encode()
        elif order.kind == OrderKind.RELEASE:
            rank, outcome = -1, b""
        elif order.payload:
            Path(order.payload.decode(), str(rank)).touch()
            threading.Event().wait()
except BridgeLost:
    pass
"""
"""Starts when both ranks do. In a group it does nothing, or, if the order names a folder, marks that and waits."""


def settle_rank(run: str, generation: int, meeting: str, rank: int, _rows: Iterable[int]) -> Iterator[dict[str, Any]]:
    """Hire a resident, started here if none is idle, and say where it is."""
    import os
    import subprocess
    import sys

    from mizzle.blocks.bridge import BridgeClient
    from mizzle.blocks.card import find_bridge
    from mizzle.blocks.deadline import Deadline
    from mizzle.blocks.residence import hire

    within = Deadline.after(60)
    path, token = find_bridge(os.environ["SPARK_LOCAL_DIRS"])
    with BridgeClient(path, token, within) as client:
        payload = f"{rank} {meeting}".encode()
        outcome = hire(client, run, generation, payload, wait=False, deadline=within)
        if spawned := outcome is None:
            subprocess.Popen([sys.executable, "-c", RESIDENT, path, token.hex()], start_new_session=True)
            outcome = hire(client, run, generation, payload, wait=True, deadline=within)
        assert outcome is not None
        yield {"executor": client.executor_id, "host": client.host, "pid": int(outcome), "spawned": spawned}


class Scene:
    """A run whose residents are settled again and again."""

    def __init__(self, context: SparkContext, run: str, marks: Path) -> None:
        self.context, self.run, self.marks = context, run, marks
        self.groups = JvmGroups(context)
        self.generation = -1
        self.number = 0
        self.residents: list[dict[str, Any]] = []
        self._prepared: object = None

    def settle(self) -> list[dict[str, Any]]:
        """Begin a generation."""
        self.generation += 1
        await_slots(self.context, RANKS, Deadline.after(WITHIN_S))
        meeting = self.marks / f"generation {self.generation}"
        meeting.mkdir()
        settle = partial(settle_rank, self.run, self.generation, str(meeting))
        self.residents = self.context.parallelize(range(RANKS), RANKS).mapPartitionsWithIndex(settle).collect()
        where = [(one["host"], one["executor"]) for one in self.residents]
        self._prepared = self.groups.prepare(self.run, self.generation, where)
        return self.residents

    def group(self, order: bytes = b"") -> list[dict[str, Any]]:
        """Run a group; what its tasks returned."""
        self.number += 1
        results = self.groups.run(self._prepared, self.number, order)
        return [{"status": one.status.name, "rank": one.rank, "text": one.body.decode()} for one in results]

    def group_during(self, act: Callable[[], object]) -> list[dict[str, Any]] | str:
        """Run a group that does not end by itself; ``act`` once both ranks are in it."""
        folder = self.marks / str(self.number)
        folder.mkdir()
        found: list[list[dict[str, Any]] | str] = []

        def run() -> None:
            self.context.addJobTag(self.run)
            try:
                found.append(self.group(str(folder).encode()))
            except Py4JJavaError as error:
                found.append(str(error.java_exception))

        thread = InheritableThread(target=run, daemon=True)
        thread.start()
        deadline, pause = Deadline.after(WITHIN_S), threading.Event()
        while len(list(folder.iterdir())) < RANKS:
            deadline.check("both ranks to begin the group")
            pause.wait(0.01)
        act()
        thread.join(WITHIN_S)
        return found[0]


def is_gone(pid: int) -> bool:
    """Whether the process ends in time."""
    deadline, pause = Deadline.after(WITHIN_S), threading.Event()
    stat = Path(f"/proc/{pid}/stat")
    while not deadline.passed:
        try:
            if stat.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        pause.wait(0.01)
    return False


def play(scene: Scene, driver: DriverSide) -> dict[str, Any]:
    """All that happens to the run."""
    seen: dict[str, Any] = {"settled": scene.settle(), "first": [scene.group() for _ in range(5)]}
    seen["resident killed"] = scene.group_during(lambda: os.kill(scene.residents[0]["pid"], signal.SIGKILL))
    scene.settle()
    seen["after resident"] = scene.group()
    executor_pid = int(driver.told()[scene.residents[1]["executor"]]["pid"])
    seen["executor killed"] = scene.group_during(lambda: os.kill(executor_pid, signal.SIGKILL))
    scene.settle()
    seen["after executor"] = scene.group()
    seen["cancelled"] = scene.group_during(lambda: scene.context.cancelJobsWithTag(scene.run))
    seen["stuck ended"] = [is_gone(one["pid"]) for one in scene.residents]
    driver.replace(scene.residents[0]["executor"])
    seen["slots while one is replaced"] = slots_without_one(scene.context)
    await_slots(scene.context, RANKS, Deadline.after(WITHIN_S))
    seen["slots behind it"] = task_slots(scene.context)
    return seen


def slots_without_one(context: SparkContext) -> tuple[int, int]:
    """Task slots, and executors that have them, as soon as one executor's are gone."""
    deadline, pause = Deadline.after(WITHIN_S), threading.Event()
    while (slots := task_slots(context)) == RANKS:
        deadline.check("an executor to be replaced")
        pause.wait(0.01)
    return slots, num_executors(context)


def main(home: Path) -> None:
    """Print what was seen."""
    spark = session(
        f"local-cluster[{RANKS},1,1024]",
        app_name="mizzle tests",
        conf={
            "spark.ui.enabled": "false",
            "spark.ui.showConsoleProgress": "false",
            "spark.log.level": "OFF",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.driver.host": "127.0.0.1",
            "spark.executor.memory": "512m",
            "spark.local.dir": str(home / "local"),
        },
    )
    driver = DriverSide(spark.sparkContext)
    with driver.run() as run:
        seen = play(Scene(spark.sparkContext, run, home), driver)
    spark.stop()
    sys.stdout.write(json.dumps(seen) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
