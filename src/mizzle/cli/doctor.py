"""`mizzle doctor`: is everything there that mizzle needs, does it work, and what to do where it does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import pyspark
import typer
from pyspark.sql import SparkSession
from rich.console import Console
from rich.table import Table

from mizzle.blocks.deadline import Deadline
from mizzle.cli import verdicts
from mizzle.cli.java import find_java
from mizzle.cli.output import JsonFile, check_writable, write_json
from mizzle.cli.quiet import quiet_session
from mizzle.cli.verdicts import Finding
from mizzle.config import Transport
from mizzle.errors import ConfigError, MizzleError
from mizzle.spark import probe
from mizzle.spark.driver import DriverSide, task_slots
from mizzle.spark.security import protection_of
from mizzle.spark.session import spark_conf

_START_S = 30.0
_MAX_RANKS = 64
_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(
    master: Annotated[str, typer.Option(help="Spark master to try.")] = "local[2]",
    json: JsonFile = None,
) -> None:
    """Check Java, Spark, bridges, memory, slots, all-reduce, security and settings; say what to do. 1 if any fails.

    The session is started as mizzle.session(MASTER) starts it, with Spark's own defaults file.
    The JSON is a list of {name, verdict, seen, remedy}; a verdict is ok, warn or fail.
    """
    check_writable(json)
    findings = list(examine(master))
    write_json(json, [asdict(finding) for finding in findings])
    Console().print(table(findings))
    failed = [finding.name for finding in findings if finding.verdict == "fail"]
    if failed:
        raise MizzleError(f"mizzle cannot work here: {', '.join(failed)}")


def examine(master: str) -> Iterator[Finding]:
    """All checks, the cheap ones first; a session is started only when these allow it."""
    early = [
        verdicts.judge_java(find_java()),
        verdicts.judge_spark(pyspark.__version__),
        _bridge_jar(),
    ]
    yield from early
    if any(finding.verdict == "fail" for finding in early):
        return
    try:
        with quiet_session(master, conf={"spark.app.name": "mizzle doctor"}, loopback=False) as spark:
            yield from _examine_session(spark)
    except MizzleError as error:
        seen = "\n".join([str(error), *getattr(error, "__notes__", [])])
        yield Finding("session", "fail", seen, "see that log")


def _bridge_jar() -> Finding:
    try:
        return verdicts.judge_jar(spark_conf()["spark.jars"])
    except ConfigError as error:
        return verdicts.judge_jar("", str(error))


def _examine_session(spark: SparkSession) -> Iterator[Finding]:
    context = spark.sparkContext
    DriverSide(context).is_first_warning()  # the table says it
    bridges, expected = probe.await_bridges(context, Deadline.after(_START_S))
    yield verdicts.judge_bridges(list(bridges), expected)
    slots = task_slots(context)
    yield verdicts.judge_slots(slots)
    if not bridges or not slots:
        return
    executors = probe.inspect_executors(spark, min(slots, max(2, len(bridges)), _MAX_RANKS))
    yield verdicts.judge_arena(executors)
    yield from verdicts.judge_versions(probe.driver_versions(), executors)
    if slots >= 2:
        one_host = len({facts.host_id for facts in executors}) == 1
        yield _try_transport(spark, "shm", one_host=one_host)
        yield _try_transport(spark, "blocks", one_host=one_host)
    conf = context.getConf().get
    yield verdicts.judge_protection(protection_of(context, DriverSide(context)))
    yield verdicts.judge_speculation(conf)
    yield verdicts.judge_locality(conf)
    yield verdicts.judge_dynamic_allocation(conf)


def _try_transport(spark: SparkSession, transport: Transport, *, one_host: bool) -> Finding:
    try:
        exact = probe.try_all_reduce(spark, transport)
    except MizzleError as error:
        return verdicts.judge_all_reduce(transport, exact=False, error=str(error), one_host=one_host)
    return verdicts.judge_all_reduce(transport, exact=exact)


def table(findings: list[Finding]) -> Table:
    """The findings for people."""
    shown = Table(show_lines=False)
    for name in ("check", "verdict", "seen, and what to do"):
        shown.add_column(name, overflow="fold")
    for finding in findings:
        style = _STYLES[finding.verdict]
        told = finding.seen + (f"\n-> {finding.remedy}" if finding.remedy else "")
        shown.add_row(finding.name, f"[{style}]{finding.verdict}[/{style}]", told.replace("[", "\\["))
    return shown
