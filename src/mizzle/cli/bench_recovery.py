"""`mizzle bench recovery`: what a fault costs a training."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from mizzle.bench.recovery import FAULTS, Fault, RecoveryPlan, RecoveryRecord, bench_recovery
from mizzle.cli.listed import listed, one_of
from mizzle.cli.output import JsonFile, check_writable, write_json
from mizzle.cli.quiet import quiet_session
from mizzle.cli.telling import telling
from mizzle.errors import MizzleError

_FAULTS_HELP = f"What happens, comma-separated: {', '.join(FAULTS)}."


def recovery(
    *,
    faults: Annotated[str, typer.Option(help=_FAULTS_HELP)] = ",".join(FAULTS),
    workers: Annotated[int, typer.Option(min=2, help="Ranks, each an executor process.")] = 4,
    repeats: Annotated[int, typer.Option(min=1, help="Trainings struck by each fault.")] = 10,
    group_size: Annotated[int, typer.Option(min=1, help="Iterations of a group (K).")] = 10,
    iterations: Annotated[int, typer.Option(min=1, help="Of each training.")] = 200,
    json: JsonFile = None,
) -> None:
    """Strike trainings with signals while they run, and time how they go on.

    executor_kill: SIGKILL of an executor; the run waits for the one that Spark starts in its place.
    executor_kill_spare: the same, and the run may go on with one rank less.
    executor_stop: SIGSTOP of an executor, which says nothing any more and keeps its connections open.
    rank_kill: SIGKILL of a rank's Python process; its executor lives.

    detect_s is the time from the signal until the driver knows, resume_s until the first group after it is done;
    losses and weights are compared with those of a training without a fault, bit for bit. A small model (0.3 million
    parameters, Adam), in one application of local-cluster[WORKERS,1,1024].

    The JSON is a list of {fault, repeats, detect_s, resume_s, resume_p95_s, iterations_recomputed, bit_equal}; times
    are medians, and iterations_recomputed those of the group that was run again, so at most K.
    """
    check_writable(json)
    plan = RecoveryPlan(tuple(_fault(name) for name in listed(faults)), workers, repeats, group_size, iterations)
    console = Console()
    with tempfile.TemporaryDirectory(prefix="mizzle-bench-") as home:
        conf = {"spark.app.name": "mizzle bench", "spark.local.dir": home}
        with quiet_session(f"local-cluster[{workers},1,1024]", conf=conf) as spark, telling(console) as tell:
            records = bench_recovery(spark, plan, tell)
    write_json(json, [record.as_dict() for record in records])
    console.print(table(records))
    wrong = [record.fault for record in records if not record.bit_equal]
    if wrong:
        raise MizzleError(f"results differ from those without a fault: {', '.join(wrong)}")


def _fault(name: str) -> Fault:
    return one_of(name, FAULTS, "fault")


def table(records: Sequence[RecoveryRecord]) -> Table:
    """The records for people, in seconds."""
    shown = Table(title="faults of a training; s")
    for name in ("fault", "repeats", "known", "resumed", "p95", "iterations again", "bits"):
        shown.add_column(name, justify="left" if name == "fault" else "right")
    for record in records:
        shown.add_row(
            record.fault, str(record.repeats), f"{record.detect_s:.2f}", f"{record.resume_s:.2f}",
            f"{record.resume_p95_s:.2f}", f"<= {record.iterations_recomputed}",
            "equal" if record.bit_equal else "DIFFER",
        )  # fmt: skip
    return shown
