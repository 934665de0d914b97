"""`mizzle bench allreduce`: the all-reduce measured beside gloo and Spark's own reduce, on the same executors."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from mizzle.bench.all_reduce import SYSTEMS, AllReducePlan, AllReduceRecord, System, bench_all_reduce, contenders
from mizzle.cli.bench_recovery import recovery
from mizzle.cli.bench_scheduling import scheduling
from mizzle.cli.bench_training import training
from mizzle.cli.listed import listed, one_of
from mizzle.cli.output import JsonFile, check_writable, write_json
from mizzle.cli.profiles import Profile, secure_conf
from mizzle.cli.quiet import quiet_session
from mizzle.cli.sizes import format_size, parse_size
from mizzle.cli.telling import telling
from mizzle.errors import MizzleError

_TRANSPORTS = ("shm", "blocks")
_SIZES_HELP = "Comma-separated sizes of a rank's array: B, KB (1024 bytes), MB (10^6), GB (10^9)."
_TRANSPORTS_HELP = "mizzle's transports to measure, comma-separated: shm, blocks."
_SYSTEMS_HELP = f"Who takes part, comma-separated: {', '.join(SYSTEMS)}."
_SECURE_HELP = "Authenticate and encrypt Spark's connections: AES/GCM, or TLS. gloo's stay as they are, in the clear."
_ROUNDS = 3
_MB = 10**6

bench = typer.Typer(no_args_is_help=True, help="Measure mizzle beside others.")
bench.command()(scheduling)
bench.command()(training)
bench.command()(recovery)


@bench.command()
def allreduce(
    *,
    workers: Annotated[int, typer.Option(min=1, max=500, help="Ranks, each an executor process.")] = 2,
    sizes: Annotated[str, typer.Option(help=_SIZES_HELP)] = "1KB,1MB,28MB",
    transports: Annotated[str, typer.Option(help=_TRANSPORTS_HELP)] = "shm,blocks",
    systems: Annotated[str, typer.Option(help=_SYSTEMS_HELP)] = "mizzle,gloo",
    repeats: Annotated[int, typer.Option(min=1, help="Timed all-reduces of each at each size.")] = 30,
    warmup: Annotated[int, typer.Option(min=0, help="Untimed ones before them, in every round.")] = 10,
    master: Annotated[
        str | None, typer.Option(help="Spark master.", show_default="local-cluster[WORKERS,1,MEMORY]")
    ] = None,
    secure: Annotated[Profile, typer.Option(help=_SECURE_HELP)] = "none",
    json: JsonFile = None,
) -> None:
    """Time the all-reduce (sum) of fp32 arrays, one array a rank, one torch thread a rank.

    All take turns in three rounds, in one Spark application; each result is verified against the exact sum, outside
    the timed part. An iteration takes as long as its slowest rank, from a barrier before it.
    mizzle: the exchange that trainings use: the array lies in the arena, the sum where all ranks of a host read it.
    mizzle_copy: ctx.all_reduce on a tensor, which includes copying it into the arena and the result out of it.
    gloo: torch.distributed's all-reduce in place, over TCP.
    reduce, tree_reduce: RDD.reduce and RDD.treeReduce of numpy arrays plus a broadcast of the sum to all executors,
    timed at the driver, with mizzle's Spark settings; making the arrays is included.

    The JSON is a list of {system, transport, workers, bytes, median_s, p95_s, min_s, repeats, verified, host_cpu_s}.
    """
    check_writable(json)
    plan = AllReducePlan(
        workers=workers,
        sizes=tuple(parse_size(size) for size in listed(sizes)),
        contenders=contenders(
            [_system(name) for name in listed(systems)],
            [one_of(name, _TRANSPORTS, "transport") for name in listed(transports)],
        ),
        repeats=repeats,
        warmup=warmup,
        rounds=_ROUNDS,
    )
    console = Console()
    with tempfile.TemporaryDirectory(prefix="mizzle-keys-") as keys, ExitStack() as stack:
        conf = _conf(plan) | secure_conf(secure, Path(keys))
        spark = stack.enter_context(quiet_session(master or default_master(plan), conf=conf))
        records = bench_all_reduce(spark, plan, stack.enter_context(telling(console)))
    write_json(json, [record.as_dict() for record in records])
    console.print(table(records))
    wrong = [f"{r.system} ({r.transport}) at {format_size(r.bytes)}" for r in records if not r.verified]
    if wrong:
        raise MizzleError(f"results were not the exact sum: {', '.join(wrong)}; do not use these figures")


def _system(name: str) -> System:
    return one_of(name, SYSTEMS, "system")


def default_master(plan: AllReducePlan) -> str:
    """Separate executor processes of one slot each, so that every rank has its own."""
    return f"local-cluster[{plan.workers},1,{executor_mb(plan)}]"


def executor_mb(plan: AllReducePlan) -> int:
    """Heap of an executor: mizzle's arrays lie outside it, but arrays of an RDD pass through it, more than once."""
    return max(1024, 512 + 4 * math.ceil(max(plan.sizes) / _MB))


def _conf(plan: AllReducePlan) -> dict[str, str]:
    conf = {"spark.app.name": "mizzle bench"}
    if any(contender.transport == "driver" for contender in plan.contenders):
        # All arrays meet in the driver: the limit of 1 GB is there to refuse just that.
        heap_mb = 1024 + 2 * (plan.workers + 1) * math.ceil(max(plan.sizes) / _MB)
        conf |= {"spark.driver.maxResultSize": "0", "spark.driver.memory": f"{heap_mb}m"}
    return conf


def table(records: Sequence[AllReduceRecord]) -> Table:
    """The records for people: milliseconds, and how many times gloo's median each median is."""
    gloo = {record.bytes: record.median_s for record in records if record.system == "gloo"}
    shown = Table(title=f"all-reduce of fp32, {records[0].workers} workers, ms")
    for name in ("bytes", "system", "median", "p95", "min", "/ gloo", "exact"):
        shown.add_column(name, justify="left" if name == "system" else "right")
    for record in records:
        shown.add_row(
            format_size(record.bytes),
            f"{record.system} ({record.transport})",
            *(f"{1e3 * seconds:.2f}" for seconds in (record.median_s, record.p95_s, record.min_s)),
            f"{record.median_s / gloo[record.bytes]:.2f}" if record.bytes in gloo else "-",
            "yes" if record.verified else "NO",
        )
    return shown
