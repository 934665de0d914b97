"""`mizzle bench scheduling`: an iteration of plain Spark jobs measured beside iterations in groups."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from mizzle.bench.application import open_application
from mizzle.bench.scheduling import SchedulingPlan, SchedulingRecord, bench_scheduling
from mizzle.bench.scheduling_plain import SYSTEMS, System
from mizzle.cli.java import require_java
from mizzle.cli.listed import listed, numbers, one_of
from mizzle.cli.output import JsonFile, check_writable, write_json
from mizzle.cli.telling import telling
from mizzle.errors import ConfigError, MizzleError

_WORKERS_HELP = "Numbers of ranks, comma-separated; each rank has an executor process."
_SIZES_HELP = "Iterations of mizzle's groups, comma-separated."
_BODY_HELP = "What a rank computes in an iteration: noop, or sleep:SECONDS."
_SYSTEMS_HELP = f"Who takes part, comma-separated: {', '.join(SYSTEMS)}."
_WARMUP_HELP = "Untimed iterations before them, in every round: whole groups, at least 2."
_SETTLE_HELP = "Untimed jobs of one iteration in each application before all rounds: until then JVMs mostly compile."
_ROUNDS = 3


def scheduling(
    *,
    workers: Annotated[str, typer.Option(help=_WORKERS_HELP)] = "2",
    group_sizes: Annotated[str, typer.Option(help=_SIZES_HELP)] = "1,10,50,100",
    body: Annotated[str, typer.Option(help=_BODY_HELP)] = "noop",
    systems: Annotated[str, typer.Option(help=_SYSTEMS_HELP)] = ",".join(SYSTEMS),
    repeats: Annotated[int, typer.Option(min=1, help="Timed groups of each; a plain iteration counts as one.")] = 30,
    warmup: Annotated[int, typer.Option(min=0, help=_WARMUP_HELP)] = 50,
    settle: Annotated[int, typer.Option(min=0, help=_SETTLE_HELP)] = 300,
    json: JsonFile = None,
) -> None:
    """Time one iteration: every rank computes, and an fp32 array of 4 KB is summed over the ranks for the next one.

    spark: one job; the tasks return their arrays, the driver adds them and sends the sum with the next job's tasks.
    spark2: two jobs, as BigDL trains; the second fetches and adds one slice in each task.
    mizzle: groups of K iterations as one job, the sum by one all-reduce in each iteration.

    Plain Spark runs without mizzle's plugin at Spark's default settings, mizzle with mizzle's: two applications of
    local-cluster[WORKERS,1,1024], both open, one at work at a time; all take turns in three rounds. Times are taken at
    the driver, per group, and are medians. The last state of every series is verified, outside the timed part.
    Messages are data segments over the TCP connections of the driver's JVM, as ss counts them; heartbeats and leases
    are in it.

    The JSON is a list of {system, workers, group_size, body_s, iteration_s, overhead_s, driver_messages_per_iteration,
    repeats}; messages are null where there is no ss.
    """
    check_writable(json)
    require_java()
    plan = SchedulingPlan(
        workers=tuple(numbers(workers, "number of workers")),
        group_sizes=tuple(numbers(group_sizes, "group size")),
        systems=tuple(_systems(systems)),
        body_s=parse_body(body),
        repeats=repeats,
        warmup=warmup,
        rounds=_ROUNDS,
        settle=settle,
    )
    console = Console()
    with telling(console) as tell:
        result = bench_scheduling(plan, open_application, tell)
    if result.wrong:
        raise MizzleError(f"the sums were wrong: {', '.join(result.wrong)}; nothing was written")
    write_json(json, [record.as_dict() for record in result.records])
    console.print(table(result.records))
    if any(record.driver_messages_per_iteration is None for record in result.records):
        console.print("Messages were not counted: there is no ss, install iproute2.")


def _systems(text: str) -> list[System]:
    return [one_of(name, SYSTEMS, "system") for name in listed(text)]


def parse_body(text: str) -> float:
    """Seconds of ``noop`` or ``sleep:0.02``.

    Raises:
        ConfigError: it is neither.
    """
    if text == "noop":
        return 0.0
    found = re.fullmatch(r"sleep:(\d+(?:\.\d*)?|\.\d+)", text)
    if found is None:
        raise ConfigError(f"{text!r} is no body: write noop, or sleep: and seconds, as in sleep:0.02")
    return float(found[1])


def table(records: Sequence[SchedulingRecord]) -> Table:
    """The records for people: milliseconds, and how many times smaller each overhead is than plain Spark's.

    Fits into the 80 columns that a file or a pipe is taken to have.
    """
    overhead = {(record.system, record.workers): record.overhead_s for record in records if record.group_size == 1}
    shown = Table(title=f"one iteration, {1e3 * records[0].body_s:g} ms of it computing; ms")
    for name in ("ranks", "system", "K", "iteration", "overhead", "spark /", "spark2 /", "messages"):
        shown.add_column(name, justify="left" if name == "system" else "right")
    for record in records:
        ratios = [_ratio(overhead.get((system, record.workers)), record.overhead_s) for system in ("spark", "spark2")]
        messages = record.driver_messages_per_iteration
        shown.add_row(
            str(record.workers),
            record.system,
            str(record.group_size),
            f"{1e3 * record.iteration_s:.2f}",
            f"{1e3 * record.overhead_s:.2f}",
            *ratios,
            "-" if messages is None else f"{messages:.2f}",
        )
    return shown


def _ratio(plain_s: float | None, overhead_s: float) -> str:
    """How often an overhead fits into plain Spark's; a dash where there is nothing to compare."""
    return "-" if plain_s is None or overhead_s <= 0 else f"{plain_s / overhead_s:.1f}"
