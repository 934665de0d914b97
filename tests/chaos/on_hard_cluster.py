"""Started by test_hard_cluster: fits beside others who fill the storage memory, and with pauses."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pyspark import StorageLevel
from pyspark.sql import SparkSession

from chaos.inventory import processes
from chaos.on_faulty_cluster import EXECUTORS, Cast
from chaos.on_faulty_cluster import main as play
from mizzle.blocks.deadline import Deadline

PAUSE_S, FULL_S = 2.0, 120.0


@contextmanager
def full_storage(spark: SparkSession) -> Iterator[None]:
    """Every executor's storage memory is full of somebody's cached rows, and stays so."""
    context = spark.sparkContext
    # Random, because Spark compresses what Python caches; in many parts, because one that does not fit is left out.
    cached = context.parallelize(range(1500), 150).map(lambda _: os.urandom(1 << 20))
    cached.persist(StorageLevel.MEMORY_ONLY)
    deadline = Deadline.after(FULL_S)
    while True:
        cached.count()  # whose parts found no room are made again, wherever a slot is free
        memory: Any = context._jsc.sc().getExecutorMemoryStatus()
        left = sorted(int(pair.split(",")[1].split(")")[0]) for pair in memory.mkString(";").split(";"))
        if max(left[:EXECUTORS]) < 30 << 20:
            break
        deadline.check(f"all storage to be full: {left}")
    yield
    cached.unpersist(blocking=True)


@contextmanager
def pauses(home: Path, ledger: Path, every_s: float) -> Iterator[None]:
    """An executor or a resident stands still for two seconds, again and again; noted as faults are."""
    over = threading.Event()
    dice = random.Random(7)  # noqa: S311 - to be repeatable, not secret

    def nemesis() -> None:
        number = 0
        while not over.wait(every_s - PAUSE_S):
            victims = sorted(one.pid for one in processes(home) if one.is_executor or one.is_resident)
            try:
                victim = dice.choice(victims)
                os.kill(victim, signal.SIGSTOP)
                (ledger / f"pause.{number}").touch()
                number += 1
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


class HardCast(Cast):
    """Plays also "around": what goes on while the scene is played."""

    def __init__(self, home: Path, stage: dict[str, Any]) -> None:
        super().__init__(home, stage)
        self._around = ExitStack()

    def prepare(self, scene: dict[str, Any], ledger: Path) -> None:
        """It begins."""
        super().prepare(scene, ledger)
        kinds: dict[str, Callable[[], AbstractContextManager[None]]] = {
            "full storage": lambda: full_storage(self.spark),
            "pauses": lambda: pauses(self.home / "local", ledger, scene["every_s"]),
        }
        if "around" in scene:
            self._around.enter_context(kinds[scene["around"]]())

    def settle(self, scene: dict[str, Any], ledger: Path, found: dict[str, Any]) -> None:
        """It ends."""
        super().settle(scene, ledger, found)
        self._around.close()


if __name__ == "__main__":
    play(Path(sys.argv[1]), HardCast)
