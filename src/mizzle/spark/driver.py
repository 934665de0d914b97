"""The driver's way to its half of the plugin, and what it knows of the cluster. No tensor passes here."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyspark import SparkContext

from mizzle.blocks.deadline import Deadline
from mizzle.errors import BridgeMissing, ConfigError
from mizzle.spark.session import check_session

_LOOK_AGAIN_S = 0.05


class DriverSide:
    """The driver's half of the plugin, through py4j."""

    def __init__(self, context: SparkContext) -> None:
        """Find it.

        Raises:
            BridgeMissing: the session was started without the plugin.
        """
        check_session(context)
        jvm: Any = context._jvm  # noqa: SLF001 - PySpark offers no public way to a class of one's own
        self._side = jvm.org.mizzle.bridge.DriverSide.current()
        if self._side is None:
            raise BridgeMissing("spark.plugins names mizzle's plugin, but the driver did not load it: see its log")

    @contextmanager
    def run(self) -> Iterator[str]:
        """A new run's id; when it ends, every executor drops what it holds of the run within a second."""
        run = secrets.token_hex(16)
        self._side.begin(run)
        try:
            yield run
        finally:
            self._side.end(run)

    def bridges(self) -> dict[str, str]:
        """Description of every executor's bridge that has reported, by executor id."""
        lines = [str(line) for line in self._side.bridges()]
        return dict(line.split("\t", 1) for line in lines)

    def hosts(self) -> dict[str, str]:
        """Spark's name of the host of every executor, by executor id."""
        return {executor: dict(part.split("=", 1) for part in told.split())["host"]
                for executor, told in self.bridges().items()}  # fmt: skip

    def messages(self) -> int:
        """How many questions the bridges have asked the driver so far."""
        return int(self._side.messages())


def task_slots(context: SparkContext) -> int:
    """How many tasks can run at once now."""
    spark: Any = context._jsc.sc()  # noqa: SLF001 - the same number that barrier jobs are checked against
    return int(spark.maxNumConcurrentTasks(spark.resourceProfileManager().defaultResourceProfile()))


def default_ranks(context: SparkContext, driver: DriverSide) -> int:
    """One rank per executor; embedded Spark has only one executor, so there it is one per slot."""
    slots = task_slots(context)
    return slots if str(context.master).startswith("local[") else max(1, min(slots, len(driver.bridges())))


def await_slots(context: SparkContext, num_ranks: int, deadline: Deadline) -> None:
    """Wait until that many tasks can run at once: executors may still be starting.

    Raises:
        ConfigError: there are fewer slots than ranks.
    """
    paused = threading.Event()
    while (slots := task_slots(context)) < num_ranks:
        if deadline.passed:
            raise ConfigError(
                f"{num_ranks} ranks need {num_ranks} task slots, but the cluster has {slots}: ask for fewer ranks, or "
                "raise spark.executor.instances or spark.executor.cores"
            )
        paused.wait(min(_LOOK_AGAIN_S, deadline.remaining_s()))
