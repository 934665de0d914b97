"""Spark jobs of a run: each in a thread, under the run's tag, with a description for Spark's UI.

A job tag, unlike a job group, leaves the caller's own job group in force; cancelling a run cancels exactly its jobs.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from py4j.protocol import Py4JError
from pyspark import InheritableThread, SparkContext
from pyspark.errors import PySparkException

from mizzle.errors import TaskFailed

_T = TypeVar("_T")
_CANCEL_S = 15.0
"""How long the tasks of an interrupted job have to end: Spark kills a Python worker after some 4 s."""


def job_tag(run: str) -> str:
    """The tag of a run's jobs, ``SparkContext.cancelJobsWithTag`` ends them."""
    return f"mizzle-{run}"


def run_tagged(context: SparkContext, run: str, title: str, work: Callable[[], _T]) -> _T:
    """Do something that starts Spark jobs, in a thread of its own.

    There the description and tag are not the caller's; and an interrupt meets a wait of ours, not py4j in the middle
    of an answer, so that the caller's way to the JVM stays sound.

    Args:
        context: the driver's Spark context.
        run: the run's id.
        title: what is done, for the job's description in Spark's UI: "mizzle run 3f2a: <title>".
        work: starts the jobs and waits for them.

    Raises:
        TaskFailed: Spark gave the job up.
        KeyboardInterrupt: as usual; the run's jobs, and no others, were cancelled.
    """
    found: Future[_T] = Future()

    def act() -> None:
        try:
            context.addJobTag(job_tag(run))
            context.setInterruptOnCancel(interruptOnCancel=True)
            context.setLocalProperty("spark.job.description", f"mizzle run {run[:4]}: {title}")
            found.set_result(work())
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            found.set_exception(error)

    thread = InheritableThread(target=act, name=job_tag(run), daemon=True)
    thread.start()
    try:
        return found.result()
    except (Py4JError, PySparkException) as error:
        # Without the JVM's stack, which says nothing about the cause.
        text = str(error).partition("\nDriver stacktrace:")[0]
        raise TaskFailed(f"run {run[:4]}, {title}: the job failed in Spark: {text}") from error
    except BaseException:
        if not found.done():
            context.cancelJobsWithTag(job_tag(run))
        raise
    finally:
        thread.join(_CANCEL_S)
