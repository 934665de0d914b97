"""What launching costs: where a job's time goes, and how it grows with the number of tasks.

    python benchmarks/launch_cost.py anatomy --workers 2,8 --json anatomy.json
    python benchmarks/launch_cost.py fit --executors 2 --json fit.json

``anatomy``: a no-op job of JVM tasks, a plain PySpark job (Spark's defaults, no plugin), and a group of mizzle's with
one iteration, each in a Spark of its own. Phases are from Spark's event log, CPU is per thread of the driver. Writing
the log costs the driver something too; it does so in all three.

``fit``: no-op jobs of JVM tasks, N = 2..256, on executors with far more slots than there are CPUs, give a + b * N
seconds; that predicts N = 512, 1024, 2048, which are measured as well; 4096 is modelled only.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from job_anatomy import ThreadTap, of_a_task, phases, read_jobs
from pyspark.sql import SparkSession

from mizzle.bench.application import Settings, left_behind
from mizzle.bench.scheduling_groups import mizzle_series
from mizzle.bench.scheduling_plain import GroupSamples, GroupSeries, plain_series
from mizzle.blocks.deadline import Deadline
from mizzle.scheduling.cost import fit_launch
from mizzle.spark.driver import await_slots

KINDS = ("jvm no-op", "spark", "mizzle")
FIT_TASKS = (2, 4, 8, 16, 32, 64, 128, 256)
PREDICTED_TASKS = (512, 1024, 2048)
MODELLED_TASKS = 4096
_START_S = 120.0
_PART_S = 3600.0


@contextmanager
def spark_session(master: str, conf: Mapping[str, str]) -> Iterator[SparkSession]:
    """Start Spark with just these settings; a process does so once."""
    spark = SparkSession.builder.master(master).config(map=dict(conf)).getOrCreate()
    left = left_behind(spark)
    try:
        yield spark
    finally:
        spark.stop()
        shutil.rmtree(left, ignore_errors=True)


def noop_series(spark: SparkSession, series: GroupSeries, tap: ThreadTap) -> GroupSamples:
    """The same number of tasks, none of them with any Python."""
    seconds = []
    count = noop_job(spark, series.ranks)
    for job in range(series.warmup + series.repeats):
        if job == series.warmup:
            tap.since_last()
        begun = time.perf_counter()
        count.count()
        seconds.append(time.perf_counter() - begun)
    tap.since_last()
    return GroupSamples(seconds[series.warmup :], None, verified=True)


def noop_job(spark: SparkSession, tasks: int) -> Any:  # noqa: ANN401 - a JavaRDD; its ``count`` is the job
    """One small element for each of so many JVM tasks."""
    java: Any = spark.sparkContext._jsc  # noqa: SLF001 - PySpark's own RDDs run Python
    jvm: Any = spark.sparkContext._jvm  # noqa: SLF001 - likewise
    return java.parallelize(jvm.java.util.Collections.nCopies(tasks, 1), tasks)


def anatomy_of(kind: str, workers: int, repeats: int, warmup: int) -> dict[str, Any]:
    """Run one kind of job and take it apart."""
    settings = Settings(workers, with_mizzle=kind != "spark")
    series = GroupSeries("spark" if kind == "spark" else "mizzle", workers, 1, 0.0, warmup, repeats)
    with tempfile.TemporaryDirectory(prefix="mizzle-events-") as events:
        log = {
            "spark.eventLog.enabled": "true", "spark.eventLog.dir": Path(events).as_uri(),
            "spark.eventLog.rolling.enabled": "false", "spark.eventLog.compress": "false",
        }  # fmt: skip
        with spark_session(settings.master, settings.conf | log) as spark:
            await_slots(spark.sparkContext, workers, Deadline.after(_START_S))
            tap = ThreadTap(spark.sparkContext)
            if kind == "jvm no-op":
                samples = noop_series(spark, series, tap)
            elif kind == "spark":
                samples = plain_series(spark.sparkContext, series, tap)
            else:
                samples = mizzle_series(spark, series, tap)
            threads = tap.busiest(repeats)
        (written,) = Path(events).iterdir()
        with written.open() as lines:
            jobs = read_jobs(lines)
    # Around the groups of a run are the jobs that start its ranks and fetch its results.
    timed = [job for job in jobs if kind != "mizzle" or ": iterations " in job.description][-repeats:]
    return {
        "kind": kind, "workers": workers, "repeats": repeats, "warmup": warmup, "verified": samples.verified,
        "median_ms": 1e3 * statistics.median(samples.seconds), "phases_ms": phases(timed, samples.seconds),
        "task_ms": of_a_task(timed), "driver_cpu_ms": threads,
    }  # fmt: skip


def measure_launches(executors: int, tasks: Sequence[int], repeats: int, rounds: int) -> dict[int, list[float]]:
    """Seconds of no-op jobs by their number of tasks; sizes take turns, the order reversed from round to round."""
    slots = -(-max(tasks) // executors)
    conf = Settings(executors, with_mizzle=False).conf | {"spark.executor.extraJavaOptions": "-Xss512k"}
    seconds: dict[int, list[float]] = {count: [] for count in tasks}
    with spark_session(f"local-cluster[{executors},{slots},1024]", conf) as spark:
        await_slots(spark.sparkContext, max(tasks), Deadline.after(_START_S))
        jobs = {count: noop_job(spark, count) for count in tasks}
        warm_up(jobs)
        for number in range(rounds):
            for count in tasks if number % 2 == 0 else tasks[::-1]:
                for _ in range(-(-repeats // rounds)):
                    begun = time.perf_counter()
                    jobs[count].count()
                    seconds[count].append(time.perf_counter() - begun)
    return seconds


def warm_up(jobs: Mapping[int, Any]) -> None:
    """Compilers and thread pools, before the clock counts: some 20,000 tasks, then every size once and small jobs."""
    largest = max(jobs)
    for count in [largest] * max(2, 20_000 // largest) + sorted(jobs, reverse=True) + [min(jobs)] * 50:
        jobs[count].count()


def fit_of(executors: int, repeats: int, rounds: int) -> dict[str, Any]:
    """Fit the small jobs, predict the large ones, and compare."""
    seconds = measure_launches(executors, [*FIT_TASKS, *PREDICTED_TASKS], repeats, rounds)
    median = {count: statistics.median(of_count) for count, of_count in seconds.items()}
    cost = fit_launch([(count, median[count]) for count in FIT_TASKS])

    def row(count: int) -> dict[str, Any]:
        predicted = cost.seconds(count)
        measured = median.get(count)
        return {
            "tasks": count,
            "measured_s": measured,
            "predicted_s": predicted,
            "relative_error": None if measured is None else predicted / measured - 1,
            "what": "fitted" if count in FIT_TASKS else "modelled" if measured is None else "predicted",
        }

    rows = [row(count) for count in (*FIT_TASKS, *PREDICTED_TASKS, MODELLED_TASKS)]
    fitted = {"a_s": cost.a_s, "b_s": cost.b_s, "residual": cost.residual}
    return {"executors": executors, "repeats": repeats, **fitted, "rows": rows}


def in_a_process(*arguments: str) -> Any:  # noqa: ANN401 - JSON
    """Run one part of this program in a process, and Spark, of its own; its noise goes to a file."""
    with tempfile.TemporaryDirectory(prefix="mizzle-part-") as directory:
        result, log = Path(directory, "result.json"), Path(directory, "log")
        environment = {"PYSPARK_PYTHON": sys.executable} | os.environ | {"SPARK_LOCAL_HOSTNAME": "127.0.0.1"}
        with log.open("wb") as stream:
            done = subprocess.run(
                [sys.executable, __file__, *arguments, "--here", "--json", str(result)],
                stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=environment, timeout=_PART_S, check=False,
            )  # fmt: skip
        if done.returncode != 0:
            sys.exit(f"{' '.join(arguments)} failed:\n{log.read_text(errors='replace')[-4000:]}")
        return json.loads(result.read_text())


def show_anatomy(found: Mapping[str, Any]) -> None:
    """Print one kind's figures."""
    print(f"\n{found['kind']}, {found['workers']} executors: median {found['median_ms']:.1f} ms of {found['repeats']}")
    for title, key in (
        ("job, ms", "phases_ms"),
        ("a task, ms", "task_ms"),
        ("driver's CPU, ms a job", "driver_cpu_ms"),
    ):
        print(f"  {title}")
        for name, value in found[key].items():
            print(f"    {name:<44} {value:9.2f}")


def show_fit(found: Mapping[str, Any]) -> None:
    """Print fit and predictions."""
    print(
        f"\n{found['executors']} executors: {1e3 * found['a_s']:.1f} ms + {1e3 * found['b_s']:.3f} ms a task, "
        f"fitted to {100 * found['residual']:.0f} %"
    )
    print(f"  {'tasks':>6} {'measured ms':>12} {'a + b N ms':>12} {'error':>8}")
    for row in found["rows"]:
        measured = "-" if row["measured_s"] is None else f"{1e3 * row['measured_s']:.1f}"
        error = "-" if row["relative_error"] is None else f"{100 * row['relative_error']:+.1f} %"
        print(f"  {row['tasks']:>6} {measured:>12} {1e3 * row['predicted_s']:>12.1f} {error:>8}  {row['what']}")


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("anatomy", "fit"))
    parser.add_argument("--workers", default="2,8", help="anatomy: numbers of executors")
    parser.add_argument("--kinds", default=",".join(KINDS), help="anatomy: which kinds of job")
    parser.add_argument("--executors", default="2,4", help="fit: numbers of executors that share the tasks")
    parser.add_argument("--repeats", type=int, default=100, help="timed jobs of each")
    parser.add_argument("--warmup", type=int, default=100, help="anatomy: untimed jobs before them")
    parser.add_argument("--rounds", type=int, default=5, help="fit: how often the sizes take turns")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def part(asked: argparse.Namespace) -> Any:  # noqa: ANN401 - JSON
    """What one process does: one kind with one number of executors, or one fit."""
    if asked.what == "anatomy":
        return anatomy_of(asked.kinds, int(asked.workers), asked.repeats, asked.warmup)
    return fit_of(int(asked.executors), asked.repeats, asked.rounds)


def main() -> None:
    """Run the parts one after the other, print, and write the file."""
    asked = parsed()
    found: Any = []
    if asked.here:
        found = part(asked)
    elif asked.what == "anatomy":
        for workers in asked.workers.split(","):
            for kind in asked.kinds.split(","):
                options = ["--repeats", str(asked.repeats), "--warmup", str(asked.warmup)]
                found.append(in_a_process("anatomy", "--workers", workers, "--kinds", kind, *options))
                show_anatomy(found[-1])
    else:
        for executors in asked.executors.split(","):
            options = ["--repeats", str(asked.repeats), "--rounds", str(asked.rounds)]
            found.append(in_a_process("fit", "--executors", executors, *options))
            show_fit(found[-1])
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
