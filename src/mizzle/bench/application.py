"""A Spark application in a process of its own, which runs series for a benchmark, one at a time, when it is told to.

So applications with different settings can be held open side by side and take turns. Nothing but ids and numbers
passes between the processes, over a socket that only they have.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from mizzle.bench.driver_traffic import DriverTraffic
from mizzle.bench.scheduling_plain import GroupSamples, GroupSeries, plain_series
from mizzle.blocks.deadline import Deadline
from mizzle.errors import MizzleError
from mizzle.spark.driver import await_slots
from mizzle.spark.session import spark_conf

_START_S = 120.0
_SERIES_S = 3600.0
"""Only so that a Spark that hangs is noticed some time: nobody knows how long a series takes."""
_STOP_S = 60.0
_LOOPBACK = "127.0.0.1"
_QUIET = {"spark.app.name": "mizzle bench", "spark.ui.enabled": "false", "spark.ui.showConsoleProgress": "false"}
_DEFAULTS = {"spark.python.unix.domain.socket.enabled": "false", "spark.locality.wait": "3s"}
"""Spark's own, of what mizzle's settings change: said here, so that no file of defaults says otherwise."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Of an application.

    Attributes:
        workers: executors, of one task slot each.
        with_mizzle: whether it has mizzle's settings, or Spark's defaults and no plugin.
        executor_mb: heap of an executor.
        driver_mb: heap of the driver.
    """

    workers: int
    with_mizzle: bool
    executor_mb: int = 1024
    driver_mb: int = 1024

    @property
    def master(self) -> str:
        """Executors are processes of their own."""
        return f"local-cluster[{self.workers},1,{self.executor_mb}]"

    @property
    def conf(self) -> dict[str, str]:
        """Spark's settings."""
        given = {
            "spark.driver.host": _LOOPBACK, "spark.driver.bindAddress": _LOOPBACK,
            "spark.executor.memory": f"{self.executor_mb}m", "spark.driver.memory": f"{self.driver_mb}m",
            # Executors of a local-cluster work in a directory named after time and application, below Spark's own: two
            # that start in the same second would share it.
            "spark.deploy.appIdPattern": f"app-%s-%04d-{os.getpid()}",
        }  # fmt: skip
        return spark_conf(_QUIET | given) if self.with_mizzle else _QUIET | given | _DEFAULTS


class Application:
    """The benchmark's side of a running application."""

    def __init__(self, connection: Connection, log: Path) -> None:
        self._connection = connection
        self._log = log

    def run(self, series: GroupSeries) -> GroupSamples:
        """Have it run a series, and wait.

        Raises:
            MizzleError: it failed, or its process has ended; names the log.
        """
        samples: GroupSamples = self.ask(series, within_s=_SERIES_S)
        return samples

    def ask(self, question: object, *, within_s: float) -> Any:  # noqa: ANN401 - whatever the answer is
        """Send one object and wait for the one that comes back."""
        try:
            self._connection.send(question)
            answered = self._connection.poll(within_s)
            answer = self._connection.recv() if answered else f"it did not answer within {within_s:g} s"
        except (EOFError, ConnectionError):
            answer = "its process has ended"
        if isinstance(answer, str):
            raise MizzleError(f"the benchmark's Spark application failed: {answer}. Its log is {self._log}")
        return answer


@contextmanager
def open_application(settings: Settings) -> Iterator[Application]:
    """Start an application, wait for its executors, stop it at the end.

    Raises:
        MizzleError: it does not start; names the log, which is kept after a failure only.
    """
    directory = Path(tempfile.mkdtemp(prefix="mizzle-log-"))
    here, there = socket.socketpair()
    connection = Connection(here.detach())
    with there, (directory / "spark.log").open("ab") as stream:
        process = subprocess.Popen(  # noqa: S603 - this module
            [sys.executable, "-m", __name__, str(there.fileno())],
            stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
            env=_environment(os.environ, directory), pass_fds=[there.fileno()],
        )  # fmt: skip
    try:
        application = Application(connection, directory / "spark.log")
        application.ask(settings, within_s=_START_S)
        yield application
    finally:
        connection.close()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_STOP_S)
    shutil.rmtree(directory)


def _environment(base: Mapping[str, str], directory: Path) -> dict[str, str]:
    """Of the process: workers run this Python; executors bind to loopback, for which Spark has no setting.

    What torch's launcher leaves in the directory of temporary files goes with the log.
    """
    given = {"SPARK_LOCAL_HOSTNAME": _LOOPBACK, "TMPDIR": str(directory)}
    return {"PYSPARK_PYTHON": sys.executable} | dict(base) | given


def serve(connection: Connection) -> None:
    """The process's side: settings first, then one series after the other; ends with the connection."""
    settings: Settings = connection.recv()
    builder = SparkSession.builder.master(settings.master).config(map=dict(settings.conf))
    spark = builder.getOrCreate()
    left = left_behind(spark)
    try:
        traffic = DriverTraffic.of(spark.sparkContext, os.getpid())
        await_slots(spark.sparkContext, settings.workers, Deadline.after(_START_S))
        connection.send(settings)
        while True:
            connection.send(_run(spark, connection.recv(), traffic))
    except (EOFError, ConnectionError):
        pass
    finally:
        spark.stop()
        shutil.rmtree(left, ignore_errors=True)


def _run(spark: SparkSession, series: GroupSeries | Callable[[SparkSession], Any], traffic: DriverTraffic) -> Any:  # noqa: ANN401 - whatever the series returns
    """A `GroupSeries`, or anything else that runs when it is called with the session."""
    try:
        if not isinstance(series, GroupSeries):
            return series(spark)
        if series.system != "mizzle":
            return plain_series(spark.sparkContext, series, traffic)
        from mizzle.bench.scheduling_groups import mizzle_series  # noqa: PLC0415 - the baselines' driver loads no torch

        return mizzle_series(spark, series, traffic)
    except MizzleError as error:
        return f"{type(error).__name__}: {error}"


def left_behind(spark: SparkSession) -> Path:
    """Where the executors of a local-cluster keep their output: Spark leaves it below its own installation."""
    context = spark.sparkContext
    jvm: Any = context._jvm  # noqa: SLF001 - py4j's view of the driver
    return Path(jvm.System.getenv("SPARK_HOME"), "work", str(context.applicationId))


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
