"""Strikes an application again and again at random, by a seed, and only when the run has got on since the last time.

So no second fault meets a state while its copy is being made: that is the one thing that a run does not survive.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from pyspark.sql import SparkSession

from chaos.inventory import Process, processes, residents
from mizzle.blocks.deadline import Deadline
from mizzle.spark.driver import DriverSide

FAULTS = ("rank_kill", "rank_segv", "rank_flip", "executor_kill", "executor_pause", "executor_stop")
PAUSE_S, STOPS_S = 2.0, 5.0
_KEPT = "/memfd:mizzle-state"


class Nemesis:
    """A thread that strikes.

    Args:
        spark: of the application.
        home: its ``spark.local.dir``.
        seed: of the choices.
        every_s: seconds between faults, at least.
        faults: to choose from.
        got_on: since a moment (seconds since the epoch), whether the run has done a group.
        executors: without as many it waits: Spark is still replacing one.
    """

    def __init__(
        self, spark: SparkSession, home: Path, *, seed: int, every_s: float, got_on: Callable[[float], bool],
        executors: int, faults: Sequence[str] = FAULTS,
    ) -> None:  # fmt: skip
        self.struck: list[tuple[float, str]] = []
        self._driver, self._home, self._faults = DriverSide(spark.sparkContext), home, faults
        self._chance = random.Random(seed)  # noqa: S311 - no secret
        self._every_s, self._got_on, self._executors = every_s, got_on, executors
        self._over = threading.Event()
        self._stopped: list[int] = []
        self._thread = threading.Thread(target=self._run, name="nemesis", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """No more faults; what was stopped goes on, if it is still there."""
        self._over.set()
        self._thread.join()
        for pid in self._stopped:
            _send(pid, signal.SIGCONT)

    def _run(self) -> None:
        while not self._over.wait(self._every_s):
            last = self.struck[-1][0] if self.struck else 0.0
            while not (self._got_on(last) and len(self._driver.bridges()) >= self._executors):
                if self._over.wait(0.1):
                    return
            self._strike(self._chance.choice(self._faults))

    def _strike(self, fault: str) -> None:
        victims = [one.pid for one in self._victims(fault) if one.pid not in self._stopped]
        if not victims:
            return  # between two runs there may be no rank
        victim = self._chance.choice(sorted(victims))
        self.struck.append((time.time(), fault))
        if fault == "executor_pause":
            _send(victim, signal.SIGSTOP)
            threading.Timer(PAUSE_S, _send, [victim, signal.SIGCONT]).start()
        elif fault == "executor_stop":
            self._stopped.append(victim)
            _send(victim, signal.SIGSTOP)
        else:
            if fault == "rank_flip":
                _flip(victim)
            _send(victim, signal.SIGSEGV if fault == "rank_segv" else signal.SIGKILL)

    def _victims(self, fault: str) -> list[Process]:
        if fault.startswith("rank"):
            return residents(self._home)
        return [one for one in processes(self._home) if one.is_executor]


def _flip(pid: int) -> None:
    """A bit changes in each state that a rank keeps, and the rank stands still: what is left are the copies.

    It stands still before, so that it does not write a checksum of what has changed.
    """
    _send(pid, signal.SIGSTOP)
    deadline, paused = Deadline.after(STOPS_S), threading.Event()
    with suppress(OSError):  # it has ended meanwhile
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T" and not deadline.passed:
            paused.wait(0.005)
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            if str(fd.readlink()).startswith(_KEPT):
                with fd.open("r+b", buffering=0) as memory:
                    (first,) = memory.read(1)
                    memory.seek(0)
                    memory.write(bytes([first ^ 1]))


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # it has ended meanwhile
        os.kill(pid, number)
