"""The driver's way to its half of the plugin, and what it knows of the cluster. No tensor passes here."""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyspark import SparkContext
from pyspark.sql import SparkSession

from mizzle.blocks.deadline import Deadline
from mizzle.errors import BridgeMissing, ConfigError
from mizzle.spark.session import check_session

_LOOK_AGAIN_S = 0.05
EMBEDDED = "driver"
"""Spark's name of the one executor of embedded Spark."""


class DriverSide:
    """The driver's half of the plugin, through py4j."""

    def __init__(self, context: SparkContext) -> None:
        """Find it.

        Raises:
            BridgeMissing: the session was started without the plugin.
        """
        check_session(context)
        jvm: Any = context._jvm  # noqa: SLF001 - PySpark offers no public way to a class of one's own
        self._watches = jvm.org.mizzle.bridge.JobWatch
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
        """Description of every executor's bridge that has reported, by executor id; not of those told to leave."""
        lines = [str(line) for line in self._side.bridges()]
        return dict(line.split("\t", 1) for line in lines)

    def told(self) -> dict[str, dict[str, str]]:
        """What every bridge of `bridges` says of itself, by executor id and name.

        The names are "host" and "port" of the block manager, "pid" of the JVM, "host_id" and "listens".
        """
        return {
            executor: dict(part.split("=", 1) for part in line.split()) for executor, line in self.bridges().items()
        }

    def hosts(self) -> dict[str, str]:
        """Spark's name of the host of every executor that ranks may be in, by executor id."""
        return {executor: one["host"] for executor, one in self.told().items()}

    def listens(self) -> list[str]:
        """Addresses that block managers listen on: the driver's, and those of the executors that have reported.

        Empty where one of them cannot tell.
        """
        told = [one.get("listens", "") for one in self.told().values()]
        by_process = [list(map(str, self._side.exposure().addresses())), *(one.split(",") for one in told)]
        found = [address for of_one in by_process for address in of_one or [""]]
        return found if all(found) else []

    def is_first_warning(self) -> bool:
        """Whether nobody has asked this in the application before."""
        return bool(self._side.exposure().isFirst())

    def why_removed(self, executor: str) -> str:
        """What Spark said when it removed that executor; "" if it lives, or nothing is known."""
        return str(self._side.whyRemoved(executor))

    def replace(self, executor: str) -> None:
        """Have Spark end an executor and start another one in its place; returns at once."""
        self._side.replace(executor)

    @contextmanager
    def replacing_hung(self) -> Iterator[None]:
        """While the body's jobs run, executors that hang are ended: Spark would wait two minutes for their tasks.

        For jobs of which any executor may do any part: Spark itself starts elsewhere what they have not finished.
        """
        watch = self._watches.beginReplacing()
        try:
            yield
        finally:
            watch.close()

    def messages(self) -> int:
        """How many questions the bridges have asked the driver so far."""
        return int(self._side.messages())


def task_slots(context: SparkContext) -> int:
    """How many tasks can run at once now."""
    spark: Any = context._jsc.sc()  # noqa: SLF001 - the same number that barrier jobs are checked against
    return int(spark.maxNumConcurrentTasks(spark.resourceProfileManager().defaultResourceProfile()))


def classic_context(spark: SparkSession) -> SparkContext:
    """The Spark context of a session.

    Raises:
        ConfigError: it is a Spark Connect session, whose driver's JVM is out of reach.
    """
    try:
        return spark.sparkContext
    except AttributeError as error:
        raise ConfigError(
            "this is a Spark Connect session, which has no sparkContext: mizzle's driver works inside Spark's own. Use "
            "a classic session, mizzle.session(...) or SparkSession.builder.master(...)"
        ) from error


def default_ranks(context: SparkContext, deadline: Deadline) -> int:
    """One rank per executor; embedded Spark has only one executor, so there it is one per slot.

    Waits for the executors that the application asked for by a fixed number: they may still be starting.
    """
    if _is_embedded(context):
        return task_slots(context)
    paused = threading.Event()
    wanted = fixed_executors(context) or 1
    while (executors := num_executors(context)) < wanted and not deadline.passed:
        paused.wait(min(_LOOK_AGAIN_S, deadline.remaining_s()))
    return max(1, min(task_slots(context), executors))


def await_slots(context: SparkContext, num_ranks: int, deadline: Deadline) -> None:
    """Wait until that many tasks can run at once: executors may still be starting.

    Where no more executors can come, it does not wait.

    Raises:
        ConfigError: there are fewer slots than ranks.
    """
    embedded, fixed = _is_embedded(context), fixed_executors(context)
    paused = threading.Event()
    while True:
        # In this order: an executor brings its slots before it is counted.
        complete = embedded or (fixed is not None and num_executors(context) >= fixed)
        slots = task_slots(context)
        if slots >= num_ranks or complete or deadline.passed:
            break
        paused.wait(min(_LOOK_AGAIN_S, deadline.remaining_s()))
    if slots < num_ranks:
        remedy = "local[n] with a larger n" if embedded else "more spark.executor.instances or spark.executor.cores"
        raise ConfigError(
            f"{num_ranks} ranks need {num_ranks} task slots, but the cluster has {slots}: ask for fewer ranks, or for "
            f"{remedy}"
        )


def _is_embedded(context: SparkContext) -> bool:
    return re.fullmatch(r"local(\[.*\])?", str(context.master)) is not None


def fixed_executors(context: SparkContext) -> int | None:
    """How many executors the application will have, where that is settled."""
    embedded_cluster = re.match(r"local-cluster\[\s*(\d+)", str(context.master))
    if embedded_cluster is not None and not has_dynamic_allocation(context):
        return int(embedded_cluster[1])
    conf = context.getConf()
    asked = conf.get("spark.executor.instances")
    return None if asked is None or has_dynamic_allocation(context) else int(asked)


def has_dynamic_allocation(context: SparkContext) -> bool:
    """Whether Spark starts and ends executors as tasks wait or do not."""
    return context.getConf().get("spark.dynamicAllocation.enabled", "false") == "true"


def num_executors(context: SparkContext) -> int:
    """Executors whose task slots `task_slots` counts: not those that are starting, or being replaced."""
    if _is_embedded(context):
        return 1
    # Not Spark's list of block managers: an executor that ends is off the one before it is off the other.
    backend: Any = context._jsc.sc().schedulerBackend()  # noqa: SLF001 - PySpark offers no way to count executors
    known = backend.getExecutorIds()
    return sum(bool(backend.isExecutorActive(known.apply(index))) for index in range(known.size()))
