"""Group jobs: N ranks as one ordinary Spark job. Not barrier mode, which refuses dynamic allocation and aborts whole.

After Drizzle (Venkataraman et al., SOSP 2017): the driver schedules once, inside the group the ranks drive themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from py4j.protocol import Py4JError
from pyspark import RDD, SparkContext, cloudpickle
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from mizzle.blocks.deadline import Deadline
from mizzle.config import Transport
from mizzle.errors import CollectiveTimeout, Fenced, MizzleError, ModelError, PeerLost, TaskFailed
from mizzle.spark.driver import DriverSide, await_slots
from mizzle.spark.worker import GroupJob, Outcome, RankContext, run_rank

DEFAULT_TIMEOUT_S = 60.0
_SYMPTOMS = (Fenced, PeerLost, CollectiveTimeout)
"""Errors that are mostly another rank's failure seen from afar, the least telling first."""


def run_job(context: SparkContext, job: GroupJob, rows: RDD[Any] | None = None) -> list[Any]:
    """Run one group and return what each rank's body returned, by rank.

    Args:
        context: the driver's Spark context.
        job: what to run.
        rows: partition i is given to task i; None: nothing is.

    Raises:
        MizzleError: the first cause of the group's failure, as the rank that saw it raised it.
        TaskFailed: user code or an executor failed.
    """
    source = context.parallelize(range(job.size), job.size) if rows is None else rows
    try:
        outcomes = source.mapPartitionsWithIndex(partial(run_rank, job)).collect()
    except (Py4JError, PySparkException) as error:
        raise TaskFailed(f"the job of group {job.group} of run {job.run[:4]} failed in Spark: {error}") from error
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if failed:
        _raise(failed)
    return [outcome.value for outcome in sorted(outcomes, key=lambda outcome: outcome.rank)]


def _raise(failed: Sequence[Outcome]) -> None:
    cause = max(failed, key=_telling)
    error = cause.error
    if isinstance(error, MizzleError):
        error.add_note(f"raised by rank {cause.rank} ({cause.where})")
        raise error
    raise TaskFailed(f"rank {cause.rank} ({cause.where}) failed: {error!r}\n{cause.trace}") from error


def _telling(outcome: Outcome) -> int:
    for weight, symptom in enumerate(_SYMPTOMS):
        if isinstance(outcome.error, symptom):
            return weight
    return len(_SYMPTOMS)


def check_shippable(thing: object, what: str) -> None:
    """Refuse what cannot be sent to the executors, before anything starts.

    Raises:
        ModelError: names it and the reason.
    """
    try:
        cloudpickle.dumps(thing)  # type: ignore[no-untyped-call]
    except Exception as error:
        # Pickling calls code of any object inside, so anything may be raised.
        raise ModelError(
            f"{what} cannot be sent to the executors ({type(error).__name__}: {error}): define it at the top of a "
            "module, and keep open files, locks, sockets and Spark objects out of it"
        ) from error


class _Body:
    """Adapts a function of the context alone."""

    def __init__(self, fn: Callable[[RankContext], Any]) -> None:
        self.fn = fn

    def __call__(self, context: RankContext, rows: Iterable[Any]) -> Any:  # noqa: ANN401 - the user's value
        for _ in rows:
            pass  # a task that leaves its input unread costs Spark the Python worker
        return self.fn(context)


def run_group(
    spark: SparkSession,
    fn: Callable[[RankContext], Any],
    *,
    ranks: int,
    transport: Transport = "auto",
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> list[Any]:
    """Run ``fn(ctx)`` on ``ranks`` executors at once, with collectives between them.

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
        TaskFailed: ``fn`` raised; the message carries rank, executor and traceback.
    """
    context = spark.sparkContext
    driver = DriverSide(context)
    check_shippable(fn, "the function")
    await_slots(context, ranks, Deadline.after(timeout_s))
    with driver.run() as run:
        job = GroupJob(run, 0, 0, ranks, transport, timeout_s, ranks_by_task=False, body=_Body(fn))
        return run_job(context, job)
