"""Group-scheduled iterations of anything: k-means, logistic regression, power iteration, your own training loop.

The driver speaks once per group of iterations; in between the ranks drive themselves by the collectives they call
(after Drizzle, Venkataraman et al., SOSP 2017, https://doi.org/10.1145/3132747.3132750).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from pyspark import RDD, SparkContext, cloudpickle
from pyspark.sql import DataFrame, SparkSession

from mizzle.blocks.deadline import Deadline
from mizzle.config import GroupSize, RunConfig, check_count
from mizzle.errors import ConfigError, TaskFailed
from mizzle.scheduling.plan import Triggers
from mizzle.scheduling.tuner import TunerConfig, sizer_for
from mizzle.spark.course import Played, play
from mizzle.spark.dealing import Dealing
from mizzle.spark.driver import DriverSide, classic_context, default_ranks
from mizzle.spark.groups import await_ranks, refuse_broadcasts, shipped
from mizzle.spark.placement import neighbours
from mizzle.spark.ranks.step import FinishSteps, StepContext, StepFunction, StepOrder, StepReport, StepWork
from mizzle.spark.runner import GroupRunner, Staff
from mizzle.spark.security import check_security
from mizzle.spark.validate import check_dataframe
from mizzle.training.columns import Columns
from mizzle.training.group_metrics import GroupMetrics
from mizzle.training.history import GroupRecord


@dataclass(frozen=True, slots=True)
class Boundary:
    """What the driver is told between two groups.

    Attributes:
        iteration: how many iterations are done.
        metrics: of the last one, means over ranks.
        group: how the group behind it was run.
    """

    iteration: int
    metrics: Mapping[str, float]
    group: GroupRecord


@dataclass(frozen=True, slots=True)
class IterationResult:
    """What `iterate` leaves behind.

    Attributes:
        values: what ``finish`` returned, by rank; Nones without it.
        metrics: every metric's series, one value an iteration, means over ranks.
        iterations: how many were done.
        stopped: whether that was fewer than asked for.
        groups: how they were scheduled, and where the time went.
    """

    values: list[Any]
    metrics: dict[str, list[float]]
    iterations: int
    stopped: bool
    groups: list[GroupRecord]


def iterate(
    data: DataFrame | RDD[Any] | None,
    step_fn: StepFunction,
    *,
    iterations: int,
    group_size: GroupSize | None = None,
    state: Any = None,  # noqa: ANN401 - the user's
    prepare: Callable[[Any], Any] | None = None,
    finish: Callable[[StepContext, Any], Any] | None = None,
    on_boundary: Callable[[Boundary], bool | None] | None = None,
    boundary_every: int | None = None,
    bad_rows: Literal["raise", "skip"] = "raise",
    ranks: int | None = None,
    run: RunConfig | None = None,
    spark: SparkSession | None = None,
) -> IterationResult:
    """Run ``step_fn(ctx, batch)`` on every rank, iteration after iteration, scheduled in groups.

    Args:
        data: a DataFrame, dealt evenly (row g to rank g mod N): ``batch`` is a pyarrow.Table, mapped from disk. Or an
            RDD: the list of elements of this rank's partitions. Or None, with ``spark``: then it is None.
        step_fn: one iteration on one rank, see `StepContext`; may return metrics, a dict of numbers.
        iterations: how many, at most.
        group_size: iterations per Spark job, or "auto" (the default): launching jobs takes about 1 % of the time.
        state: what ``ctx.state`` is at first; or a function ``state(ctx, batch)`` that makes it on each rank.
        prepare: makes ``batch`` out of the rows, once: ``prepare(table)``, numpy arrays for example.
        finish: called on every rank at the end, ``finish(ctx, batch)``; what it returns comes back.
        on_boundary: called on the driver after each group, with a `Boundary`; a true answer ends the run.
        boundary_every: `on_boundary` is called behind every so many iterations, whatever the group size.
        bad_rows: "raise" on nulls and numbers that are not finite in a DataFrame, or "skip" such rows.
        ranks: N; None: one per executor (embedded Spark: one per slot).
        run: transport, deadline and other settings; ``ranks`` and ``group_size`` above win over those in it.
        spark: the session, where ``data`` is None.

    Raises:
        ConfigError: an argument is wrong, there are more ranks than task slots, or ``run.security`` is "required" in a
            session that does not protect its blocks.
        DataError: a row of the DataFrame has a null, or a number that is not finite.
        ModelError: a function cannot be sent to the executors.
        TaskFailed: a function failed; has rank, executor and traceback. mizzle's own errors are raised as they are.
    """
    layout = _layout(run or RunConfig(), ranks, group_size)
    _check_arguments(
        iterations, boundary_every, step_fn=step_fn, prepare=prepare, finish=finish, on_boundary=on_boundary
    )
    triggers = Triggers(iterations, None, {} if boundary_every is None else {"boundary": boundary_every})
    context = _context_of(data, spark)
    functions = _shipped(context, {"step_fn": step_fn, "state": state, "prepare": prepare, "finish": finish})
    return _iterate(context, data, _Plan(functions, layout, triggers, on_boundary, bad_rows))


def _check_arguments(iterations: object, boundary_every: object, **functions: object) -> None:
    check_count("iterations", iterations)
    if boundary_every is not None:
        check_count("boundary_every", boundary_every)
    for name, function in functions.items():
        if not callable(function) and (function is not None or name == "step_fn"):
            raise ConfigError(f"{name} is {function!r}: give a function")


def _shipped(context: SparkContext, functions: Mapping[str, object]) -> bytes:
    """In one pickle, so that what they share stays shared; one by one before that, to name what cannot be sent."""
    for name, function in functions.items():
        shipped(function, name)
    packed = shipped(tuple(functions.values()), ", ".join(functions))
    refuse_broadcasts(context)
    return packed


def _layout(run: RunConfig, ranks: int | None, group_size: GroupSize | None) -> RunConfig:
    if not isinstance(run, RunConfig):
        raise ConfigError(f"run is {run!r}: give a mizzle.RunConfig")
    if run.shards is not None:
        raise ConfigError(f"run.shards is {run.shards}: iterate deals rows to ranks, give ranks")
    if isinstance(run.ranks, tuple):
        raise ConfigError(f"run.ranks is {run.ranks}: iterate deals rows to a fixed number of ranks, give one number")
    if run.trace is not None or run.overlap != "auto":
        raise ConfigError("run.trace and run.overlap are for a Trainer: iterate does not see inside your step function")
    return replace(
        run,
        ranks=run.ranks if ranks is None else ranks,
        group_size=run.group_size if group_size is None else group_size,
    )


@dataclass(frozen=True, slots=True)
class _Plan:
    """What was asked for, checked."""

    functions: bytes
    layout: RunConfig
    triggers: Triggers
    on_boundary: Callable[[Boundary], bool | None] | None
    bad_rows: Literal["raise", "skip"]


def _iterate(context: SparkContext, data: object, plan: _Plan) -> IterationResult:
    driver, layout = DriverSide(context), plan.layout
    check_security(context, driver, layout.security)
    size = _ranks(context, driver, data, layout)
    rows = neighbours(data, size) if isinstance(data, RDD) else None
    with driver.run() as run, ExitStack() as stack:
        staff, dealing = _staffed(context, driver, data, run, size, plan)
        runner = stack.enter_context(GroupRunner(context, driver, run, layout, staff, restaff=dealing, rows=rows))
        sizer = sizer_for(layout.group_size, TunerConfig(max_group_s=layout.max_group_s))
        groups = []
        for played in play(runner, plan.triggers, sizer, StepOrder, _metrics_of):
            groups.append(played.record)
            if _is_over(played, plan.triggers, plan.on_boundary):
                break
        done = groups[-1].stop
        _, (series, *values) = runner.results(
            "results", FinishSteps(), done,
            lambda left: [(0, left[0][1]), *((rank, value) for rank, (value, _) in enumerate(left))],
        )  # fmt: skip
    metrics = cloudpickle.loads(series)
    values = [cloudpickle.loads(value) for value in values]
    return IterationResult(values, metrics, done, done < plan.triggers.num_iterations, groups)


def _staffed(
    context: SparkContext, driver: DriverSide, data: object, run: str, size: int, plan: _Plan
) -> tuple[Staff, Dealing | None]:  # fmt: skip
    """The ranks, which are where their rows are; and who finds others. The elements of an RDD come only once."""
    steps = StepWork(plan.functions, (), None, has_elements=isinstance(data, RDD))
    frames = {}
    if isinstance(data, DataFrame):
        columns = Columns.of(data.columns, None, collate=_unused)
        with driver.replacing_hung():
            frames = {"shard": check_dataframe(data, columns, bad_rows=plan.bad_rows)}
        steps = replace(steps, columns=columns)
    dealing = Dealing(
        context, driver, run, frames, partial(_work_of, steps), least=size, most=size,
        one_each=plan.layout.ranks is None, timeout_s=plan.layout.timeout_s,
    )  # fmt: skip
    staff = dealing.begin([(rank,) for rank in range(size)])
    return staff, None if isinstance(data, RDD) else dealing


def _work_of(steps: StepWork, _shards: object, files: Mapping[str, Mapping[int, str]]) -> bytes:
    """Shard i is for rank i."""
    paths = tuple(path for _, path in sorted(files.get("shard", {}).items()))
    work: bytes = cloudpickle.dumps(replace(steps, paths=paths))  # type: ignore[no-untyped-call]
    return work


def _context_of(data: object, spark: SparkSession | None) -> SparkContext:
    if isinstance(data, DataFrame):
        return classic_context(data.sparkSession)
    if isinstance(data, RDD):
        return data.context
    if data is not None:
        raise ConfigError(f"iterate takes a DataFrame, an RDD or None, not {type(data).__name__}")
    if spark is None:
        raise ConfigError("iterate without data needs the session: spark=mizzle.session(...)")
    return classic_context(spark)


def _ranks(context: SparkContext, driver: DriverSide, data: object, layout: RunConfig) -> int:
    """How many, once there is a slot for each."""
    wanted = layout.ranks
    assert not isinstance(wanted, tuple), "refused before"
    size = wanted or default_ranks(context, Deadline.after(layout.timeout_s))
    if isinstance(data, RDD):
        partitions = data.getNumPartitions()
        if partitions == 0:
            raise ConfigError("the RDD has no partitions: there is nothing to iterate over")
        if wanted is not None and partitions < wanted:
            raise ConfigError(f"an RDD of {partitions} partitions cannot be spread over {wanted} ranks")
        size = min(size, partitions)
    await_ranks(context, driver, size, layout.timeout_s)
    check_security(context, driver, layout.security)  # now all executors have told where they listen
    return size


def _unused(rows: Any) -> Any:  # noqa: ANN401 - a collate function
    """Stands for a collate function: with one, columns of any type are allowed."""
    return rows


def _metrics_of(report: StepReport) -> GroupMetrics:
    return GroupMetrics.unpack(report.metrics)


def _is_over(played: Played, triggers: Triggers, on_boundary: Callable[[Boundary], bool | None] | None) -> bool:
    reports: list[StepReport] = played.results
    if len({(report.is_stopped, one.iterations) for report, one in zip(reports, played.metrics, strict=True)}) > 1:
        raise TaskFailed("ctx.stop() was called on some ranks and not on others: decide from what all ranks know")
    stopped = reports[0].is_stopped
    if on_boundary is None or (triggers.every and not stopped and not triggers.fires(played.group.stop)):
        return stopped
    boundary = Boundary(played.record.stop, reports[0].values, played.record)
    return bool(on_boundary(boundary)) or stopped
