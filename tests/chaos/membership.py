"""Executors that come and go while a run goes on, by the hand of the driver: killed, added, told to leave.

Everything is real: Spark's own requests, SIGKILL for the JVM, SIGPWR as a cloud's notice arrives.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from chaos.records import Watched
from mizzle.blocks.deadline import Deadline
from mizzle.scheduling.buddies import Place, buddies
from mizzle.spark.driver import DriverSide
from mizzle.spark.runner import GroupRunner

REPLACED_S = 90.0
NOTICE_S = 5.0


class Executors:
    """Those of one application on this machine."""

    def __init__(self, spark: SparkSession) -> None:
        self._context = spark.sparkContext
        self._driver = DriverSide(self._context)

    def pids(self) -> dict[str, int]:
        """Of those that may have ranks, by executor."""
        return {name: int(one["pid"]) for name, one in self._driver.told().items()}

    def await_count(self, count: int) -> None:
        """Until there are as many: Spark has replaced those that died, or started those that were asked for."""
        paused, deadline = threading.Event(), Deadline.after(REPLACED_S)
        while len(self._driver.bridges()) < count:
            assert not deadline.passed, f"after {REPLACED_S:g} s there are {self._driver.bridges()}, not {count}"
            paused.wait(0.05)

    def limit(self, count: int) -> None:
        """From now on Spark has at most so many, and replaces no others; those beyond are killed."""
        self._request(count)
        for name in sorted(self.pids(), key=int)[count:]:
            self.kill(name)
        paused, deadline = threading.Event(), Deadline.after(REPLACED_S)
        while len(self._driver.bridges()) > count and not deadline.passed:
            paused.wait(0.05)

    def _request(self, count: int) -> None:
        jvm: Any = self._context._jvm
        spark: Any = self._context._jsc.sc()
        spark.requestTotalExecutors(count, 0, jvm.PythonUtils.toScalaMap(jvm.java.util.HashMap()))

    def add_up_to(self, count: int) -> None:
        """Spark starts new ones; returns when they are there."""
        self._request(count)
        self.await_count(count)

    def kill(self, name: str) -> None:
        """SIGKILL, now."""
        with suppress(ProcessLookupError):
            os.kill(self.pids()[name], signal.SIGKILL)

    def tell_to_leave(self, name: str, *, by_signal: bool) -> None:
        """A decommission notice, and NOTICE_S later SIGKILL, if it is still there."""
        pid = self.pids()[name]
        if by_signal:
            os.kill(pid, signal.SIGPWR)
        else:
            spark: Any = self._context._jsc.sc()
            jvm: Any = self._context._jvm
            info = jvm.org.apache.spark.scheduler.ExecutorDecommissionInfo("by the test", jvm.scala.Option.apply(None))
            spark.schedulerBackend().decommissionExecutor(name, info, False, False)  # noqa: FBT003 - py4j
        threading.Timer(NOTICE_S, _kill_if_there, [pid]).start()


def _kill_if_there(pid: int) -> None:
    with suppress(OSError):
        if b"--executor-id" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)


def holders(executors: Sequence[str], *, of_one: bool) -> tuple[str, str]:
    """Two executors of a run on one machine, given by rank: both that hold rank 1's state, or two without one."""
    buddy = buddies([Place("here", name) for name in executors])
    first = buddy[1]
    assert first is not None
    if of_one:
        return executors[1], executors[first]
    other = next(rank for rank in range(len(executors)) if rank not in {1, first} and buddy[rank] != 1)
    return executors[1], executors[other]


class Shifts:
    """What happens at the boundaries of a run: for `chaos.records.Watch.at_boundary`.

    Args:
        spark: the session.
        plan: (iterations done, what, arguments): each happens once, when an order is about to be given behind that
            boundary, or in the middle of the group (``during`` seconds after the order).
        ledger: is noted in as a fault is.
    """

    def __init__(self, spark: SparkSession, plan: Sequence[Sequence[Any]], ledger: Path) -> None:
        self._executors, self._ledger = Executors(spark), ledger
        self._plan = list(plan)

    def __call__(self, runner: GroupRunner, _done: Watched) -> None:
        """At a boundary."""
        while self._plan and runner._since.iteration >= self._plan[0][0]:
            at, what, *arguments = self._plan.pop(0)
            getattr(self, f"_{what}")(runner, *arguments)
            (self._ledger / f"{at}.{what}").touch()

    def _shrink_to(self, runner: GroupRunner, count: int) -> None:
        """Nobody comes for those who die; the executor of rank 1 does."""
        self._executors._request(count)
        self._executors.kill(runner._executors[1])

    def _grow_to(self, _runner: GroupRunner, count: int) -> None:
        self._executors.add_up_to(count)

    def _kill_holders(self, runner: GroupRunner, of_one: bool) -> None:  # noqa: FBT001 - from JSON
        pids = self._executors.pids()
        for pid in [pids[name] for name in holders(runner._executors, of_one=of_one)]:
            os.kill(pid, signal.SIGKILL)

    def _choose_two(self, runner: GroupRunner) -> None:
        """Faults may strike executors that hold no common state: their ids are in first.id and second.id."""
        for name, executor in zip(("first", "second"), holders(runner._executors, of_one=False), strict=True):
            (self._ledger / f"{name}.id").write_text(executor)

    def _leave(self, runner: GroupRunner, by_signal: bool, during_s: float = 0.3) -> None:  # noqa: FBT001 - from JSON
        """Rank 1's executor is told, in the middle of the group that is about to begin."""
        name = runner._executors[1]
        threading.Timer(during_s, self._executors.tell_to_leave, [name], {"by_signal": by_signal}).start()

    def _pause(self, _runner: GroupRunner, seconds: float) -> None:
        """The driver is busy with something else, and executors are idle."""
        threading.Event().wait(seconds)
