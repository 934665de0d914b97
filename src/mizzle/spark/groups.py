"""Group jobs: N ranks as one ordinary Spark job. Not barrier mode, which refuses dynamic allocation and aborts whole.

After Drizzle (Venkataraman et al., SOSP 2017): the driver schedules once, inside the group the ranks drive themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from py4j.protocol import Py4JError
from pyspark import RDD, InheritableThread, SparkContext, cloudpickle
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from mizzle.blocks.deadline import Deadline
from mizzle.config import Transport
from mizzle.errors import CollectiveTimeout, ConfigError, Fenced, MizzleError, ModelError, PeerLost, TaskFailed
from mizzle.spark.driver import DriverSide, await_slots, classic_context
from mizzle.spark.worker import GroupJob, Outcome, RankContext, run_rank

DEFAULT_TIMEOUT_S = 60.0
_CANCEL_S = 15.0
"""How long the tasks of an interrupted group have to end: Spark kills a Python worker after some 4 s."""


def run_job(context: SparkContext, job: GroupJob, rows: RDD[Any] | None = None, *, title: str = "") -> list[Any]:
    """Run one group and return what each rank's body returned, by rank.

    Args:
        context: the driver's Spark context.
        job: what to run.
        rows: partition i is given to task i; None: nothing is.
        title: what the group does, for the job's description in Spark's UI.

    Raises:
        MizzleError: the first cause of the group's failure, as the rank that saw it raised it.
        TaskFailed: user code or an executor failed.
        KeyboardInterrupt: as usual; the group's job, and no other, was cancelled.
    """
    source = context.parallelize(range(job.size), job.size) if rows is None else rows
    ranks = source.mapPartitionsWithIndex(partial(run_rank, job))
    try:
        outcomes = _collect(context, ranks, f"mizzle-{job.run}", f"mizzle run {job.run[:4]}: {title or 'group'}")
    except (Py4JError, PySparkException) as error:
        # Without the JVM's stack, which says nothing about the cause.
        text = str(error).partition("\nDriver stacktrace:")[0]
        raise TaskFailed(f"the job of group {job.group} of run {job.run[:4]} failed in Spark: {text}") from error
    failed = [outcome for outcome in outcomes if outcome.failure is not None]
    if failed:
        _raise(failed)
    return [cloudpickle.loads(outcome.value) for outcome in sorted(outcomes, key=lambda outcome: outcome.rank)]


def _collect(context: SparkContext, ranks: RDD[Outcome], tag: str, description: str) -> list[Outcome]:
    """Run the job in a thread of its own.

    There the description and tag are not the caller's, whose own job group stays in force; and an interrupt meets a
    wait of ours, not py4j in the middle of an answer, so that the caller's way to the JVM stays sound.
    """
    found: Future[list[Outcome]] = Future()

    def collect() -> None:
        try:
            context.addJobTag(tag)
            context.setInterruptOnCancel(interruptOnCancel=True)
            context.setLocalProperty("spark.job.description", description)
            found.set_result(ranks.collect())
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            found.set_exception(error)

    thread = InheritableThread(target=collect, name=tag, daemon=True)
    thread.start()
    try:
        return found.result()
    except BaseException:
        if not found.done():
            context.cancelJobsWithTag(tag)
        raise
    finally:
        thread.join(_CANCEL_S)


def _raise(failed: Sequence[Outcome]) -> None:
    cause = root_cause(failed)
    failure = cause.failure
    assert failure is not None, cause
    error = failure.error()
    if isinstance(error, MizzleError):
        error.add_note(f"raised by rank {cause.rank} ({cause.where})")
        raise error
    hint = ""
    if isinstance(error, ModuleNotFoundError):
        hint = (
            f"; the executors cannot import {error.name!r}: send it with SparkContext.addPyFile, or call "
            "pyspark.cloudpickle.register_pickle_by_value(module) first"
        )
    raise TaskFailed(f"rank {cause.rank} ({cause.where}) failed: {failure.text}{hint}\n{failure.trace}") from error


def root_cause(failed: Sequence[Outcome]) -> Outcome:
    """Of all failures of a group the one that explains the others.

    A rank that fails takes its peers with it: they report a lost peer, or their own timeout. Of several lost peers the
    one that is named but reported nothing itself was lost first.
    """
    reported = {outcome.rank for outcome in failed}

    def telling(outcome: Outcome) -> int:
        error = outcome.failure.error() if outcome.failure is not None else None
        if isinstance(error, Fenced):
            return 0
        if isinstance(error, PeerLost):
            return 1 if error.rank in reported else 2
        return 3 if isinstance(error, CollectiveTimeout) else 4

    return max(sorted(failed, key=lambda outcome: outcome.rank), key=telling)


def shipped(thing: object, what: str) -> bytes:
    """Pickle what is sent to the executors; classes and functions of ``__main__`` and notebooks go by value.

    Raises:
        ModelError: it cannot be pickled; names it and the reason.
    """
    try:
        pickled: bytes = cloudpickle.dumps(thing)  # type: ignore[no-untyped-call]
    except Exception as error:
        # Pickling calls code of any object inside, so anything may be raised.
        raise ModelError(
            f"{what} cannot be sent to the executors ({type(error).__name__}: {error}): define it at the top of a "
            "module, and keep open files, locks, sockets and Spark objects out of it"
        ) from error
    return pickled


class _Body:
    """Adapts a function of the context alone. The rank unpickles it, so that a failure to do so is reported too."""

    def __init__(self, fn: Callable[[RankContext], Any]) -> None:
        self.pickled = shipped(fn, "the function")

    def __call__(self, context: RankContext, rows: Iterable[Any]) -> Any:  # noqa: ANN401 - the user's value
        for _ in rows:
            pass  # a task that leaves its input unread costs Spark the Python worker
        return cloudpickle.loads(self.pickled)(context)


def run_group(
    spark: SparkSession,
    fn: Callable[[RankContext], Any],
    *,
    ranks: int,
    transport: Transport = "auto",
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> list[Any]:
    """Run ``fn(ctx)`` in ``ranks`` tasks at once, with collectives between them.

    Args:
        spark: a session with mizzle's settings.
        fn: called on every rank; `RankContext` has ``rank``, ``size``, ``all_reduce``, ``reduce_scatter``,
            ``all_gather``, ``broadcast`` and ``barrier``.
        ranks: how many, at most the cluster's task slots.
        transport: "auto", "shm" or "blocks".
        timeout_s: deadline of each collective.

    Returns:
        What ``fn`` returned, by rank.

    Raises:
        ConfigError: more ranks than task slots.
        ModelError: ``fn`` cannot be sent to the executors.
        TaskFailed: ``fn`` raised; the message carries rank, executor and traceback. An error of mizzle's own that
            ``fn`` did not catch (`CollectiveMismatch`, ...) is raised as it is.
    """
    if ranks < 1:
        raise ConfigError(f"ranks is {ranks}: give at least 1")
    context = classic_context(spark)
    driver = DriverSide(context)
    body = _Body(fn)
    await_slots(context, ranks, Deadline.after(timeout_s))
    with driver.run() as run:
        job = GroupJob(run, 0, 0, ranks, transport, timeout_s, ranks_by_task=False, body=body)
        return run_job(context, job)
