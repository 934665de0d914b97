"""The driver's way to run a group as a job of JVM tasks, each of which wakes the resident of its executor.

A PySpark task costs some tens of milliseconds that a JVM task does not; the residents keep everything else warm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from pyspark import SparkContext

from mizzle.blocks.frames import MAX_FRAME_BYTES, Reader
from mizzle.errors import ConfigError
from mizzle.spark.driver import DriverSide

_MAX_ORDER_BYTES = MAX_FRAME_BYTES - 4096  # the frame's other fields need less than the rest


class TaskStatus(IntEnum):
    """What became of a group's task."""

    OUTCOME = 0
    """Its resident has done the order."""
    AWAY = 1
    """Where it ran no resident of the generation was free."""
    DIED = 2
    """Its resident ended within the group."""
    FAILED = 3
    """Its resident has ended the order with a failure, and has given its rank up."""
    MISSING = 255
    """It was cancelled, because another task of the group was away, or its resident failed or died."""


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What became of one task of a group.

    Attributes:
        status: see `TaskStatus`.
        rank: the resident's rank, -1 where there is none.
        body: of OUTCOME and FAILED, the resident's outcome; otherwise what there is to say, UTF-8.
    """

    status: TaskStatus
    rank: int
    body: bytes


class JvmGroups:
    """Groups as jobs of JVM tasks, through py4j."""

    def __init__(self, context: SparkContext) -> None:
        """Find the plugin's driver half and its classes.

        Raises:
            BridgeMissing: the session was started without the plugin.
        """
        DriverSide(context)
        jvm: Any = context._jvm  # noqa: SLF001 - PySpark offers no public way to a class of one's own
        self._bridge = jvm.org.mizzle.bridge
        self._spark: Any = context._jsc.sc()  # noqa: SLF001 - see above

    def prepare(self, run: str, generation: int, locations: Sequence[tuple[str, str]]) -> object:
        """Tell Spark and the bridges where the residents of a generation are; once for all its groups.

        Args:
            run: the run's id.
            generation: membership epoch; the ones before it are over.
            locations: by rank, Spark's names of host and executor.

        Returns:
            What `run` needs.
        """
        hosts = [host for host, _ in locations]
        executors = [executor for _, executor in locations]
        return self._bridge.GroupJobs.prepare(self._spark, run, generation, hosts, executors)

    def run(self, prepared: object, group: int, order: bytes) -> list[TaskResult]:
        """Run one group. The job has the calling thread's tags and description.

        When a task is away or its resident died, the tasks that still run are cancelled, and no other job; when a
        resident failed, those that still run two seconds later are.

        Args:
            prepared: from `prepare`.
            group: its number, higher than that of every group of the generation before it.
            order: what every resident is told.

        Returns:
            What became of each task.

        Raises:
            ConfigError: the order is too large; send large things once, when the run starts.
            Py4JJavaError: the job was cancelled from elsewhere, or failed in Spark.
        """
        if len(order) > _MAX_ORDER_BYTES:
            raise ConfigError(
                f"an order of {len(order)} bytes cannot be sent with a group, at most {_MAX_ORDER_BYTES} can: send "
                "large things once, when the run starts"
            )
        return read_results(bytes(self._bridge.GroupJobs.run(prepared, group, order)))

    def cpu_s(self) -> float:
        """CPU seconds that the driver's JVM has used so far."""
        return int(self._bridge.DriverSide.current().cpuNs()) / 1e9

    def leases(self) -> int:
        """How often bridges have asked the driver which runs have ended; `DriverSide.messages` leaves these out."""
        return int(self._bridge.DriverSide.current().leases())


def read_results(raw: bytes) -> list[TaskResult]:
    """What became of each task, from what the JVM returned: u16 count, per task a blob of u8 status, i32 rank, body."""
    reader = Reader(raw)
    results = []
    for _ in range(reader.number("H")):
        blob = reader.blob()
        if not blob:
            results.append(TaskResult(TaskStatus.MISSING, -1, b""))
            continue
        one = Reader(blob)
        results.append(TaskResult(TaskStatus(one.number("B")), one.number("i"), blob[5:]))
    return results
