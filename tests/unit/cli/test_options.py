"""The command line without Spark: options, help, errors, files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mizzle.bench.all_reduce import AllReducePlan, Contender, System
from mizzle.cli import app as entry
from mizzle.cli import bench as bench_command
from mizzle.cli.listed import listed
from mizzle.cli.output import check_writable, write_json
from mizzle.errors import ConfigError, PeerLost


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(entry.app, arguments, env={"COLUMNS": "200", "TERM": "dumb"})


def test_the_version_is_that_of_the_package() -> None:
    done = invoke("--version")
    assert (done.exit_code, done.output) == (0, f"mizzle {version('mizzle')}\n")


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ((), ["demo", "doctor", "bench", "--version"]),
        (("demo",), ["--master", "--ranks", "--transport", "--group-size", "--epochs", "--require-accuracy", "--json"]),
        (("doctor",), ["--master", "--json"]),
        (("bench",), ["allreduce"]),
        (
            ("bench", "allreduce"),
            [
                "--workers",
                "--sizes",
                "--transports",
                "--systems",
                "--repeats",
                "--warmup",
                "--master",
                "--secure",
                "--json",
            ],
        ),
    ],
)
def test_help_names_every_option(command: tuple[str, ...], options: list[str]) -> None:
    done = invoke(*command, "--help")
    assert done.exit_code == 0
    plain = re.sub(r"\x1b\[[0-9;]*m", "", done.output)
    assert [option for option in options if option not in plain] == []


@pytest.mark.parametrize(
    "arguments",
    [("demo", "--ranks", "0"), ("demo", "--transport", "tcp"), ("bench", "allreduce", "--repeats", "0"), ("x",)],
)
def test_a_wrong_option_exits_with_2(arguments: tuple[str, ...]) -> None:
    assert invoke(*arguments).exit_code == 2


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        ("--sizes", "1KB,28", "'28' is no size"),
        ("--sizes", "2B", "no whole number of fp32"),
        ("--sizes", ",", "nothing to measure"),
        ("--systems", "mizzle,nccl", "'nccl' is no system"),
        ("--transports", "rdma", "'rdma' is no transport"),
        ("--transports", "", "nothing to measure"),
    ],
)
def test_bench_names_a_bad_value_before_anything_starts(option: str, value: str, complaint: str) -> None:
    extra = ("--systems", "mizzle") if option == "--transports" else ()
    with pytest.raises(ConfigError, match=complaint):
        CliRunner().invoke(entry.app, ["bench", "allreduce", option, value, *extra], catch_exceptions=False)


def test_bench_runs_one_executor_a_worker_with_room_for_the_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def plan(*sizes: int, system: System = "mizzle") -> AllReducePlan:
        return AllReducePlan(3, sizes, (Contender(system, "driver" if system == "reduce" else "shm"),), 5, 1, 3)

    assert bench_command.default_master(plan(1024)) == "local-cluster[3,1,1024]"
    assert bench_command.default_master(plan(1024, 552_000_000)) == "local-cluster[3,1,2720]"


def test_items_of_a_list_are_trimmed_and_taken_once() -> None:
    assert listed(" shm, blocks,shm,, ") == ["shm", "blocks"]


def test_an_error_of_mizzle_is_one_message_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = PeerLost(3, "its executor is gone")
    error.add_note("Spark's log is /tmp/x")

    def fail() -> None:
        raise error

    monkeypatch.setattr(entry, "app", fail)
    with pytest.raises(SystemExit) as caught:
        entry.main()
    assert caught.value.code == 1
    assert capsys.readouterr().err == "error: rank 3 is lost: its executor is gone\nSpark's log is /tmp/x\n"


def test_an_unexpected_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError("nobody expected it")

    monkeypatch.setattr(entry, "app", fail)
    with pytest.raises(ZeroDivisionError):
        entry.main()


def test_json_is_written_whole_into_a_directory_that_is_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    check_writable(path)
    write_json(path, {"a": [1, None]})
    assert json.loads(path.read_text()) == {"a": [1, None]}
    assert [entry.name for entry in path.parent.iterdir()] == ["result.json"]


def test_a_file_that_cannot_be_written_is_refused_beforehand(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "below.json"):
        with pytest.raises(ConfigError, match=re.escape(str(path))):
            check_writable(path)


def test_no_file_is_fine() -> None:
    check_writable(None)
    write_json(None, object())


def test_the_module_is_the_command() -> None:
    command = [sys.executable, "-m", "mizzle", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == f"mizzle {version('mizzle')}\n"
