"""Group-scheduled iterations of anything, on a real Spark: state, metrics, triggers, failures, two runs at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyspark import cloudpickle
from pyspark.sql import SparkSession

from chaos.inventory import everybody
from cluster.trainings import put_away_once
from mizzle.config import RunConfig
from mizzle.errors import (
    CollectiveMismatch,
    CollectiveTimeout,
    ConfigError,
    DataError,
    MizzleError,
    ModelError,
    PeerLost,
    TaskFailed,
)
from mizzle.spark.driver import DriverSide
from mizzle.spark.iterate import Boundary, IterationResult, iterate
from mizzle.spark.ranks.step import StepContext

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]


def add_up(ctx: StepContext, _batch: object) -> dict[str, float]:
    """Mixes state of all ranks with the iteration's number, so that any slip shows in the bits."""
    mine = ctx.state * 0.9 + np.float32(ctx.rank + ctx.iteration)
    ctx.state = ctx.all_reduce(mine) / ctx.size
    return {"first": float(ctx.state[0]), "rank": ctx.rank}


def final_state(ctx: StepContext, _batch: object) -> Any:
    return ctx.state


def run_add_up(spark: SparkSession, **how: Any) -> IterationResult:
    options: dict[str, Any] = {"iterations": 23, "group_size": 7, "ranks": 2, "spark": spark}
    options |= {"state": np.ones(5, np.float32), "finish": final_state}
    return iterate(None, add_up, **{**options, **how})


def expected_first(iterations: int) -> list[float]:
    """The same on one machine."""
    state, found = 1.0, []
    for iteration in range(iterations):
        state = state * 0.9 + iteration + 0.5
        found.append(state)
    return found


def test_state_metrics_and_values_come_through_groups_of_any_size(spark_local: SparkSession) -> None:
    results = {size: run_add_up(spark_local, group_size=size) for size in (1, 7, 100, "auto")}
    assert [group.size for group in results[7].groups] == [7, 7, 7, 2]
    assert [group.size for group in results[100].groups] == [23]
    for result in results.values():
        assert result.iterations == 23
        assert result.metrics["first"] == pytest.approx(expected_first(23), rel=1e-6)
        assert result.metrics["rank"] == [0.5] * 23
        assert result.metrics == results[1].metrics
        assert all(np.array_equal(value, results[1].values[0]) for value in result.values)
    assert sum(group.size for group in results["auto"].groups) == 23
    assert all(group.decision for group in results["auto"].groups)


def test_a_group_is_one_job_of_the_run_with_a_description_and_small_results(spark_local: SparkSession) -> None:
    context = spark_local.sparkContext
    seen: list[Boundary] = []
    before = {int(job.jobId()) for job in _jobs(spark_local)}
    context.setJobGroup("mine", "my own job group")
    result = run_add_up(spark_local, on_boundary=seen.append)
    assert context.getLocalProperty("spark.jobGroup.id") == "mine"
    jobs = [job for job in _jobs(spark_local) if int(job.jobId()) not in before]
    described = [job.description().get() for job in jobs if "iterations" in job.description().get()]
    assert sorted(text.split(": ", 1)[1] for text in described) == [
        "iterations 0-6 (epoch 0)", "iterations 14-20 (epoch 0)", "iterations 21-22 (epoch 0)",
        "iterations 7-13 (epoch 0)",
    ]  # fmt: skip
    assert {text.split(":")[0] for text in described} == {jobs[0].description().get().split(":")[0]}
    assert [boundary.iteration for boundary in seen] == [7, 14, 21, 23] == [group.stop for group in result.groups]
    assert seen[-1].metrics["first"] == result.metrics["first"][-1]


def _jobs(spark: SparkSession) -> list[Any]:
    store = spark.sparkContext._jsc.sc().statusStore()
    jobs = store.jobsList(None)
    return [jobs.apply(at) for at in range(jobs.size())]


def test_inside_a_generation_no_rank_asks_the_driver_anything(spark_local: SparkSession) -> None:
    driver = DriverSide(spark_local.sparkContext)
    asked: list[int] = []
    run_add_up(spark_local, iterations=300, group_size=100, on_boundary=lambda _: asked.append(driver.messages()))
    assert asked[0] == asked[1] == asked[2]


def pids(ctx: StepContext, _batch: object) -> None:
    ctx.state = [*ctx.state, os.getpid()]


def test_a_rank_keeps_its_process_through_a_run_and_the_next_run_finds_it(spark_local: SparkSession) -> None:
    how: dict[str, Any] = {"iterations": 6, "group_size": 2, "ranks": 2, "spark": spark_local}
    how |= {"state": [], "finish": final_state}
    first = iterate(None, pids, **how)
    there = {one.pid for one in everybody() if one.is_resident}
    second = iterate(None, pids, **how)
    for result in (first, second):
        assert all(len(set(value)) == 1 for value in result.values)
        assert len({value[0] for value in result.values}) == 2
        assert {value[0] for value in result.values} <= there, "nobody was started for the second run"


def many_bytes(ctx: StepContext, _batch: object) -> Any:
    return np.arange(3000 * (1 + ctx.rank), dtype=np.uint16)


def test_a_large_value_comes_in_pieces_and_jobs(spark_local: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mizzle.spark.fetching._PIECE_BYTES", 1000)
    result = run_add_up(spark_local, iterations=2, finish=many_bytes)
    assert [value.tolist() for value in result.values] == [list(range(3000)), list(range(6000))]


def two_metrics(ctx: StepContext, _batch: object) -> dict[str, float]:
    return {"a": 1.0, "b": 10.0} if ctx.rank else {"b": 30.0, "a": 3.0}


def test_metrics_are_averaged_by_their_names(spark_local: SparkSession) -> None:
    result = iterate(None, two_metrics, iterations=3, ranks=2, spark=spark_local)
    assert result.metrics == {"a": [2.0] * 3, "b": [20.0] * 3}


def import_added(_ctx: StepContext, _batch: object) -> dict[str, float]:
    import added_later  # type: ignore[import-not-found]

    return {"value": added_later.VALUE}


def test_a_module_that_was_added_to_the_application_later_is_found(spark_local: SparkSession, tmp_path: Path) -> None:
    run_add_up(spark_local, iterations=2)  # residents are there
    module = tmp_path / "added_later.py"
    module.write_text("VALUE = 7.0\n")
    spark_local.sparkContext.addPyFile(str(module))
    assert iterate(None, import_added, iterations=1, ranks=2, spark=spark_local).metrics == {"value": [7.0]}


def hang_on_rank_one(ctx: StepContext, _batch: object) -> None:
    if ctx.rank == 1 and ctx.iteration == 3:
        threading.Event().wait(100)
    ctx.barrier()


def test_a_rank_that_hangs_ends_the_run_soon_after_its_peers_deadline(spark_local: SparkSession) -> None:
    with pytest.raises(CollectiveTimeout, match="1"):
        iterate(
            None, hang_on_rank_one, iterations=9, group_size=9, ranks=2, spark=spark_local, run=RunConfig(timeout_s=3)
        )
    assert run_add_up(spark_local, iterations=3).iterations == 3


def total_of_column(ctx: StepContext, batch: pa.Table) -> dict[str, float]:
    values = batch.column("value").to_numpy()
    (total,) = ctx.all_reduce(np.array([values.sum()]))
    return {"total": float(total), "rows": float(len(values))}


def test_a_dataframe_is_dealt_evenly_and_mapped(spark_local: SparkSession) -> None:
    df = spark_local.range(101).selectExpr("cast(id as double) as value", "cast(id as string) as name")
    result = iterate(df, total_of_column, iterations=3, group_size=2, ranks=2)
    assert result.metrics == {"total": [5050.0] * 3, "rows": [50.5] * 3}
    with pytest.raises(DataError, match="value"):
        iterate(df.selectExpr("nullif(value, 7) as value"), total_of_column, iterations=3, ranks=2)


def count_elements(ctx: StepContext, batch: list[int]) -> dict[str, float]:
    return {"mine": float(sum(batch)), "first": float(ctx.all_gather(np.array(batch))[0][0])}


def test_the_elements_of_an_rdd_are_a_ranks_batch(spark_local: SparkSession) -> None:
    rdd = spark_local.sparkContext.parallelize(range(10), 4)
    result = iterate(rdd, count_elements, iterations=2, ranks=2)
    assert result.metrics == {"mine": [22.5] * 2, "first": [0.0] * 2}
    with pytest.raises(ConfigError, match="4 partitions cannot be spread over 5 ranks"):
        iterate(rdd, count_elements, iterations=2, ranks=5)


def add_elements(ctx: StepContext, batch: list[int]) -> dict[str, float]:
    ctx.state = ctx.state * 0.5 + float(ctx.all_reduce(np.array([sum(batch) * (ctx.iteration + ctx.rank)]))[0])
    return {"state": ctx.state}


def test_ranks_that_settle_anew_find_their_elements_and_state(
    spark_local: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    rdd = spark_local.sparkContext.parallelize(range(10), 4)
    how: dict[str, Any] = {"iterations": 9, "group_size": 2, "ranks": 2, "state": 1.0, "finish": final_state}
    undisturbed = iterate(rdd, add_elements, **how)
    put_away_once(monkeypatch, (0, 3, 4, 8), done=(3, 4))
    assert iterate(rdd, add_elements, **how).metrics == undisturbed.metrics


def stop_at_twelve(ctx: StepContext, _batch: object) -> dict[str, float]:
    if ctx.iteration == 12:
        ctx.stop()
    return {"at": ctx.iteration}


@pytest.mark.parametrize("size", [1, 5, 13, 100])
def test_ranks_stop_at_the_same_iteration_whatever_the_group_size(spark_local: SparkSession, size: int) -> None:
    result = iterate(None, stop_at_twelve, iterations=50, group_size=size, ranks=2, spark=spark_local)
    assert result.iterations == 13
    assert result.metrics["at"] == list(range(13))


def test_the_driver_stops_a_run_at_a_boundary_that_no_group_crosses(spark_local: SparkSession) -> None:
    seen: list[int] = []

    def look(boundary: Boundary) -> bool:
        seen.append(boundary.iteration)
        return boundary.iteration == 8

    result = run_add_up(spark_local, group_size=3, boundary_every=4, on_boundary=look)
    assert seen == [4, 8]
    assert result.iterations == 8
    assert [group.size for group in result.groups] == [3, 1, 3, 1]
    assert [group.cut for group in result.groups] == ["group size", "boundary"] * 2


def fail_on_rank_one(ctx: StepContext, _batch: object) -> None:
    if ctx.rank == 1 and ctx.iteration == 9:
        raise ValueError("boom in iteration 9")
    ctx.barrier()


def disagree(ctx: StepContext, _batch: object) -> None:
    ctx.all_reduce(np.ones(3 + ctx.rank))


def stop_alone(ctx: StepContext, _batch: object) -> None:
    if ctx.rank == 1:
        ctx.stop()


def differing_metrics(ctx: StepContext, _batch: object) -> dict[str, float]:
    return {"loss" if ctx.rank else "accuracy": 1.0}


def enormous_error(_ctx: StepContext, _batch: object) -> None:
    raise ValueError("the real reason " + "x" * 3_000_000)


def metric_array(_ctx: StepContext, _batch: object) -> dict[str, Any]:
    return {"weights": np.ones(3)}


def state_with_a_lock(ctx: StepContext, _batch: object) -> None:
    ctx.state = threading.Lock()


def many_metrics(_ctx: StepContext, _batch: object) -> dict[str, float]:
    return {f"a name of twenty letters {at}": 1.0 for at in range(17)}


def changing_metrics(ctx: StepContext, _batch: object) -> dict[str, float]:
    return {f"name {ctx.iteration}": 1.0}


@pytest.mark.parametrize(
    ("step", "error", "message"),
    [
        (fail_on_rank_one, TaskFailed, "(?s)rank 1 .*boom in iteration 9.*in iteration 9 of the run"),
        (disagree, CollectiveMismatch, "rank"),
        (stop_alone, TaskFailed, r"ctx.stop\(\) was called on some ranks"),
        (differing_metrics, TaskFailed, "different metrics on different ranks.*accuracy.*loss"),
        (enormous_error, TaskFailed, "the real reason"),
        (metric_array, ConfigError, "a ndarray as metric 'weights': return a number"),
        (state_with_a_lock, TaskFailed, "ctx.state .* cannot be kept"),
        (many_metrics, ConfigError, "at most 16 numbers"),
        (changing_metrics, TaskFailed, "return the same"),
    ],
)
def test_what_a_step_does_wrong_is_told_and_the_next_run_works(
    spark_local: SparkSession, step: Any, error: type[MizzleError], message: str
) -> None:
    with pytest.raises(error, match=message):
        iterate(None, step, iterations=20, group_size=4, ranks=2, spark=spark_local)
    assert run_add_up(spark_local, iterations=3).iterations == 3


def wrong_arguments(spark: SparkSession, **wrong: Any) -> None:
    arguments: dict[str, Any] = {"step_fn": add_up, "iterations": 1, "spark": spark}
    iterate(None, **{**arguments, **wrong})


def test_wrong_arguments_are_refused_before_anything_starts(spark_local: SparkSession) -> None:
    with pytest.raises(ConfigError, match="DataFrame, an RDD or None, not list"):
        iterate([1, 2], add_up, iterations=1)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="needs the session"):
        iterate(None, add_up, iterations=1)
    with pytest.raises(ConfigError, match="iterations is 0"):
        run_add_up(spark_local, iterations=0)
    for name in ("step_fn", "prepare", "on_boundary"):
        with pytest.raises(ConfigError, match=f"{name} is 3: give a function"):
            wrong_arguments(spark_local, **{name: 3})
    with pytest.raises(ModelError, match="state cannot be sent"):
        run_add_up(spark_local, state=threading.Lock())
    shared = spark_local.sparkContext.broadcast(7)
    with pytest.raises(ModelError, match="broadcast variable"):
        run_add_up(spark_local, prepare=lambda _: shared.value)
    with pytest.raises(ConfigError, match="shards is 4"):
        run_add_up(spark_local, run=RunConfig(shards=4))
    with pytest.raises(ConfigError, match="group_size is 0"):
        run_add_up(spark_local, group_size=0)
    with pytest.raises(ConfigError, match="100 ranks need 100 task slots"):
        run_add_up(spark_local, ranks=100, run=RunConfig(timeout_s=2))


def test_two_runs_at_a_time_do_not_disturb_each_other(spark_local: SparkSession) -> None:
    alone = run_add_up(spark_local)
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: run_add_up(spark_local), range(2)))
    for result in both:
        assert result.metrics == alone.metrics


def kill_a_process(ctx: StepContext, _batch: object) -> None:
    if ctx.rank == 1 and ctx.iteration == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    ctx.barrier()


def test_a_rank_whose_process_is_killed_ends_the_run_with_its_name(spark_local: SparkSession) -> None:
    with pytest.raises(PeerLost, match="1"):
        iterate(None, kill_a_process, iterations=20, group_size=10, ranks=2, spark=spark_local)
    assert run_add_up(spark_local, iterations=3).iterations == 3


def endless(ctx: StepContext, _batch: object) -> None:
    ctx.barrier()


def test_cancelling_a_runs_tag_ends_it_and_no_other(spark_local: SparkSession) -> None:
    context = spark_local.sparkContext
    started = threading.Event()
    tags: list[str] = []

    def note(boundary: Boundary) -> None:
        if boundary.iteration == 50:
            tags.append(_tag_of_last_job(spark_local))
            started.set()

    with ThreadPoolExecutor(2) as pool:
        run = pool.submit(
            iterate, None, endless, iterations=10**9, group_size=50, ranks=2, spark=spark_local, on_boundary=note
        )
        assert started.wait(60)
        other = pool.submit(run_add_up, spark_local, iterations=40, group_size=1)
        while not run.done():  # between two groups there is no job to cancel
            context.cancelJobsWithTag(tags[0])
            wait([run], timeout=0.02)
        with pytest.raises(TaskFailed, match="cancel"):
            run.result(0)
        assert other.result(60).iterations == 40


def _tag_of_last_job(spark: SparkSession) -> str:
    last = max(_jobs(spark), key=lambda job: int(job.jobId()))
    found = last.jobTags()
    (tag,) = (tag for tag in (str(found.apply(at)) for at in range(found.size())) if tag.startswith("mizzle-"))
    return tag
