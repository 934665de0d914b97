"""Spark jobs of a run: in a thread of their own, under the run's tag, each with a description for Spark's UI.

A job tag, unlike a job group, leaves the caller's own job group in force; cancelling a run cancels exactly its jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from functools import partial
from queue import SimpleQueue
from types import MappingProxyType, TracebackType
from typing import Any, Self, TypeVar

from py4j.protocol import Py4JError
from pyspark import InheritableThread, SparkContext
from pyspark.errors import PySparkException

from mizzle.errors import PeerLost, TaskFailed

_T = TypeVar("_T")
_ANYWHERE: Mapping[str, int] = MappingProxyType({})
_CANCEL_S = 15.0
"""How long the tasks of an interrupted job have to end: Spark kills a Python worker after some 4 s."""


class RunJobs:
    """The thread that a run's jobs are started from. A context manager.

    There description and tag are not the caller's; and an interrupt meets a wait of ours, not py4j in the middle of an
    answer, so that the caller's way to the JVM stays sound. One thread for all jobs of a run, because py4j makes a
    connection and a thread in the JVM for each.
    """

    def __init__(self, context: SparkContext, run: str) -> None:
        """Start it.

        Args:
            context: the driver's Spark context.
            run: the run's id.
        """
        self._context, self._run = context, run
        self._tag = f"mizzle-{run}"
        self._orders: SimpleQueue[tuple[str, Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        self._thread = InheritableThread(target=self._serve, name=self._tag, daemon=True)
        self._thread.start()

    def run(self, title: str, work: Callable[[], _T], executors: Mapping[str, int] | None = _ANYWHERE) -> _T:
        """Do something that starts Spark jobs, and wait for it.

        Args:
            title: what is done, for the jobs' description in Spark's UI: "mizzle run 3f2a: <title>".
            work: starts the jobs and waits for them.
            executors: those that the jobs need, with a rank of each; empty: tasks may be anywhere; None: the work
                watches over them itself.

        Raises:
            PeerLost: one of these executors hangs or is gone, or, where tasks may be anywhere, any one hangs: the jobs
                were cancelled.
            TaskFailed: Spark gave the job up.
            KeyboardInterrupt: as usual; the run's jobs, and no others, were cancelled.
        """
        found: Future[_T] = Future()
        watched = work if executors is None else partial(self._watched, work, executors)
        self._orders.put((title, watched, found))
        try:
            return found.result()
        except (Py4JError, PySparkException) as error:
            # Without the JVM's stack, which says nothing about the cause.
            text = str(error).partition("\nDriver stacktrace:")[0]
            raise TaskFailed(f"run {self._run[:4]}, {title}: the job failed in Spark: {text}") from error
        except BaseException:
            if not found.done():
                self._context.cancelJobsWithTag(self._tag)
                wait([found], _CANCEL_S)
            raise

    def _watched(self, work: Callable[[], _T], executors: Mapping[str, int]) -> _T:
        """Do it as long as the executors that it needs are heard of: Spark would wait minutes for one that hangs."""
        spark: Any = self._context._jsc.sc()  # noqa: SLF001 - PySpark offers no public way to a class of one's own
        watch: Any = self._context._jvm.org.mizzle.bridge.JobWatch.begin(spark, self._tag, list(executors))  # type: ignore[union-attr] # noqa: SLF001
        try:
            return work()
        except (Py4JError, PySparkException) as error:
            lost = [str(executor) for executor in watch.lost()]
            if not lost:
                raise
            raise PeerLost(
                executors.get(lost[0], -1), f"executor {lost[0]} is gone, or hangs: nothing is heard of it"
            ) from error
        finally:
            watch.close()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """End the thread."""
        self._orders.put(None)
        self._thread.join(_CANCEL_S)

    def _serve(self) -> None:
        context = self._context
        prepared = False
        while (order := self._orders.get()) is not None:
            title, work, found = order
            try:
                if not prepared:
                    context.addJobTag(self._tag)
                    context.setInterruptOnCancel(interruptOnCancel=True)
                    prepared = True
                context.setLocalProperty("spark.job.description", f"mizzle run {self._run[:4]}: {title}")
                found.set_result(work())
            except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
                found.set_exception(error)
