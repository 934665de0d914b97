"""The options and the table of `mizzle bench scheduling`."""

from __future__ import annotations

import re

import pytest
from rich.console import Console
from typer.testing import CliRunner

from mizzle.bench.scheduling import SchedulingRecord
from mizzle.cli import app as entry
from mizzle.cli.bench_scheduling import parse_body, table
from mizzle.cli.listed import numbers
from mizzle.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "seconds"), [("noop", 0.0), ("sleep:0.02", 0.02), ("sleep:1", 1.0), ("sleep:.5", 0.5)]
)
def test_a_body_is_a_noop_or_sleeps_so_many_seconds(text: str, seconds: float) -> None:
    assert parse_body(text) == seconds


@pytest.mark.parametrize("text", ["", "sleep", "sleep:", "sleep:-1", "sleep:1s", "nap:1", "sleep:nan"])
def test_any_other_body_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no body"):
        parse_body(text)


def test_numbers_are_whole_and_positive_and_taken_once() -> None:
    assert numbers("2, 8,4,2", "number") == [2, 8, 4]
    for text in ("0", "2,x", "1.5", "-1"):
        with pytest.raises(ConfigError, match="is no group size"):
            numbers(text, "group size")


def test_the_table_compares_overheads_with_those_of_plain_spark_on_as_many_workers() -> None:
    def record(system: str, workers: int, group_size: int, overhead_s: float) -> SchedulingRecord:
        return SchedulingRecord(system, workers, group_size, 0.02, 0.02 + overhead_s, overhead_s, None, 30)

    records = [
        record("spark", 2, 1, 0.1), record("spark2", 2, 1, 0.3), record("mizzle", 2, 100, 0.002),
        record("mizzle", 8, 100, 0.004),
    ]  # fmt: skip
    console = Console(width=80)
    with console.capture() as shown:
        console.print(table(records))
    lines = [line.replace("│", " ").split() for line in shown.get().splitlines() if "mizzle" in line]
    assert "overhead" in shown.get()
    assert lines == [
        ["2", "mizzle", "100", "22.00", "2.00", "50.0", "150.0", "-"],
        ["8", "mizzle", "100", "24.00", "4.00", "-", "-", "-"],
    ]


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        ("--workers", "2,x", "'x' is no number of workers"),
        ("--workers", ",", "nothing to measure"),
        ("--group-sizes", "0", "'0' is no group size"),
        ("--body", "nap:1", "'nap:1' is no body"),
        ("--systems", "mizzle,flink", "'flink' is no system"),
        ("--systems", "", "nothing to measure"),
    ],
)
def test_a_bad_value_is_named_before_anything_starts(option: str, value: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        CliRunner().invoke(entry.app, ["bench", "scheduling", option, value], catch_exceptions=False)


def test_help_names_every_option_and_what_is_measured() -> None:
    done = CliRunner().invoke(entry.app, ["bench", "scheduling", "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert done.exit_code == 0
    wanted = [
        "--workers",
        "--group-sizes",
        "--body",
        "--systems",
        "--repeats",
        "--warmup",
        "--settle",
        "--json",
        "heartbeats",
    ]
    plain = re.sub(r"\x1b\[[0-9;]*m", "", done.output)
    assert [text for text in wanted if text not in plain] == []
