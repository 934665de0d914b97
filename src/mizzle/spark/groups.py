"""Groups that are one job of Python tasks: N ranks come together, do one thing, and part.

An ordinary job, not barrier mode, which refuses dynamic allocation and aborts whole. Runs of many groups keep their
ranks instead (`mizzle.spark.runner`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from pyspark import RDD, SparkContext, cloudpickle
from pyspark.sql import SparkSession

from mizzle.blocks.deadline import Deadline
from mizzle.config import Security, Transport
from mizzle.errors import CollectiveTimeout, ConfigError, ModelError
from mizzle.spark.driver import DriverSide, await_slots, classic_context, has_dynamic_allocation, task_slots
from mizzle.spark.explain import raise_cause
from mizzle.spark.jobs import RunJobs
from mizzle.spark.placement import drain
from mizzle.spark.ranks.orders import JoinTerms
from mizzle.spark.ranks.outcome import Outcome
from mizzle.spark.ranks.worker import GroupJob, RankContext, run_rank
from mizzle.spark.security import check_security

DEFAULT_TIMEOUT_S = 60.0


def run_job(context: SparkContext, job: GroupJob, rows: RDD[Any] | None = None, *, title: str = "group") -> list[Any]:
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
    size = job.terms.size
    source = context.parallelize(range(size), size) if rows is None else rows
    ranks: RDD[Outcome] = source.mapPartitionsWithIndex(partial(run_rank, job))
    with RunJobs(context, job.terms.run) as jobs:
        outcomes = jobs.run(title, ranks.collect)
    raise_cause(outcomes)
    return [outcome.result() for outcome in sorted(outcomes, key=lambda outcome: outcome.rank)]


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


def refuse_broadcasts(context: SparkContext) -> None:
    """Refuse what was pickled just now if it refers to a broadcast variable: only Spark's own tasks can read these.

    Raises:
        ModelError: says what to do instead.
    """
    registry: Any = context._pickled_broadcast_vars  # noqa: SLF001 - where PySpark notes what a job needs
    count = len(list(registry))
    registry.clear()
    if count:
        raise ModelError(
            "a function refers to a broadcast variable of Spark, which ranks cannot read: let it refer to the value "
            "itself (variable.value taken outside of the function), which is sent to each executor once"
        )


class _Body:
    """Adapts a function of the context alone. The rank unpickles it, so that a failure to do so is reported too."""

    def __init__(self, fn: Callable[[RankContext], Any]) -> None:
        self.pickled = shipped(fn, "the function")

    def __call__(self, context: RankContext, rows: Iterable[Any]) -> Any:  # noqa: ANN401 - the user's value
        drain(rows)
        return cloudpickle.loads(self.pickled)(context)


def _nothing(_context: RankContext, rows: Iterable[Any]) -> None:
    drain(rows)


def await_ranks(context: SparkContext, driver: DriverSide, ranks: int, timeout_s: float) -> None:
    """Wait until that many tasks can run at once.

    With dynamic allocation Spark starts executors for tasks that wait: so there a job of that many tasks waits until
    all of them run.

    Raises:
        ConfigError: there are fewer slots than ranks.
    """
    if not has_dynamic_allocation(context) or task_slots(context) >= ranks:
        await_slots(context, ranks, Deadline.after(timeout_s))
        return
    with driver.run() as run:
        job = GroupJob(JoinTerms(run, 0, 0, ranks, "auto", timeout_s), ranks_by_task=False, body=_nothing)
        try:
            run_job(context, job, title=f"waits for {ranks} task slots")
        except CollectiveTimeout as error:
            raise ConfigError(
                f"{ranks} ranks need {ranks} task slots, but dynamic allocation brought {task_slots(context)} in "
                f"{timeout_s:g} s: raise spark.dynamicAllocation.maxExecutors or spark.executor.cores, or ask for "
                "fewer ranks"
            ) from error


def run_group(
    spark: SparkSession,
    fn: Callable[[RankContext], Any],
    *,
    ranks: int,
    transport: Transport = "auto",
    timeout_s: float = DEFAULT_TIMEOUT_S,
    security: Security = "auto",
) -> list[Any]:
    """Run ``fn(ctx)`` in ``ranks`` tasks at once, with collectives between them.

    Args:
        spark: a session with mizzle's settings.
        fn: called on every rank; `RankContext` has ``rank``, ``size``, ``all_reduce``, ``reduce_scatter``,
            ``all_gather``, ``broadcast`` and ``barrier``.
        ranks: how many, at most the cluster's task slots.
        transport: "auto", "shm" or "blocks".
        timeout_s: deadline of each collective.
        security: as in `mizzle.RunConfig`.

    Returns:
        What ``fn`` returned, by rank.

    Raises:
        ConfigError: more ranks than task slots, or the session does not protect its blocks and security is "required".
        ModelError: ``fn`` cannot be sent to the executors.
        TaskFailed: ``fn`` raised; the message carries rank, executor and traceback. An error of mizzle's own that
            ``fn`` did not catch (`CollectiveMismatch`, ...) is raised as it is.
    """
    if ranks < 1:
        raise ConfigError(f"ranks is {ranks}: give at least 1")
    context = classic_context(spark)
    driver = DriverSide(context)
    check_security(context, driver, security)
    body = _Body(fn)
    await_ranks(context, driver, ranks, timeout_s)
    with driver.run() as run:
        job = GroupJob(JoinTerms(run, 0, 0, ranks, transport, timeout_s), ranks_by_task=False, body=body)
        return run_job(context, job)
