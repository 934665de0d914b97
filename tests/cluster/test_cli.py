"""The commands as a user starts them: processes of their own, each with its own Spark, output in files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

TIMEOUT_S = 200.0
pytestmark = pytest.mark.timeout(240)


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str
    json: Any


def mizzle(home: Path, *arguments: str, **environment: str) -> Done:
    """Run ``mizzle ... --json`` with files for its output: a pipe would be held open by what it starts."""
    out, err, result = home / "out", home / "err", home / "result.json"
    command = [sys.executable, "-c", "from mizzle.cli import main; main()", *arguments, "--json", str(result)]
    # Its temporary files are looked at afterwards; a terminal's width would break lines.
    env = os.environ | {"TMPDIR": str(home), "COLUMNS": "200"} | environment
    with out.open("wb") as out_stream, err.open("wb") as err_stream:
        done = subprocess.run(
            command, cwd=home, env=env, stdin=subprocess.DEVNULL, stdout=out_stream, stderr=err_stream,
            timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
    written = json.loads(result.read_text()) if result.exists() else None
    return Done(done.returncode, out.read_text(), err.read_text(), written)


def logs(home: Path) -> list[Path]:
    """What a command leaves of Spark's log."""
    return list(home.glob("mizzle-log-*"))


def test_demo_trains_prints_a_line_an_epoch_and_writes_its_report(tmp_path: Path) -> None:
    done = mizzle(
        tmp_path, "demo", "--epochs", "2", "--group-size", "15", "--require-accuracy", "0", "--trace", "trace.json"
    )  # fmt: skip
    assert done.code == 0, done.err
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert {event["pid"] for event in events} == {0, 1}
    assert sum(event["name"] == "backward" for event in events) == 40 * 4
    assert sorted(done.json) == sorted(
        ["accuracy", "iterations", "ranks", "transport", "group_size", "losses", "wall_s", "time_split"]
    )
    assert (done.json["iterations"], done.json["ranks"], done.json["group_size"]) == (40, 2, 15)
    assert len(done.json["losses"]) == 40
    assert done.json["losses"][-1] < 0.8 * done.json["losses"][0]
    assert 0.1 < done.json["accuracy"] <= 1
    assert sorted(done.json["time_split"]) == ["compute", "exchange", "scheduling", "update"]
    assert all(seconds > 0 for seconds in done.json["time_split"].values())
    lines = [line.split() for line in done.out.splitlines()]
    assert [line[:4] for line in lines if line[0] == "epoch"] == [
        ["epoch", "1", "iteration", "20"], ["epoch", "2", "iteration", "40"],
    ]  # fmt: skip
    assert "WARN" not in done.out + done.err, "Spark's log belongs in its file"
    assert logs(tmp_path) == []


def test_bench_measures_verifies_and_records_every_system_on_separate_executors(tmp_path: Path) -> None:
    done = mizzle(
        tmp_path, "bench", "allreduce", "--workers", "2", "--sizes", "1KB", "--repeats", "3", "--warmup", "1",
        "--systems", "mizzle,gloo,reduce,tree_reduce",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert [(record["system"], record["transport"]) for record in done.json] == [
        ("mizzle", "shm"), ("mizzle", "blocks"), ("gloo", "tcp"), ("reduce", "driver"), ("tree_reduce", "driver"),
    ]  # fmt: skip
    for record in done.json:
        assert list(record) == [
            "system", "transport", "workers", "bytes", "median_s", "p95_s", "min_s", "repeats", "verified",
            "host_cpu_s",
        ]  # fmt: skip
        assert (record["workers"], record["bytes"], record["repeats"], record["verified"]) == (2, 1024, 3, True)
        assert 0 < record["min_s"] <= record["median_s"] <= record["p95_s"]
    assert "/ gloo" in done.out
    assert logs(tmp_path) == []


def test_doctor_finds_nothing_failing_on_separate_executors(tmp_path: Path) -> None:
    done = mizzle(tmp_path, "doctor", "--master", "local-cluster[2,1,1024]")
    assert done.code == 0, done.out + done.err
    found = {finding["name"]: finding for finding in done.json}
    for name in ("java", "spark", "bridge jar", "bridges", "slots", "arena", "python version", "torch version",
                 "mizzle version", "all-reduce over shm", "all-reduce over blocks", "speculation", "locality wait",
                 "dynamic allocation"):  # fmt: skip
        assert found[name]["verdict"] == "ok", found[name]
    assert found["bridges"]["seen"] == "2 of 2 executors reported: 0, 1"
    assert found["security"]["verdict"] in ("ok", "warn")
    assert "listen on" in found["security"]["seen"]
    assert "unknown" not in found["security"]["seen"]


def test_without_java_doctor_and_demo_say_what_to_install_and_show_no_traceback(tmp_path: Path) -> None:
    doctor = mizzle(tmp_path, "doctor", JAVA_HOME=str(tmp_path / "no"))
    assert doctor.code == 1
    assert [(finding["name"], finding["verdict"]) for finding in doctor.json] == [
        ("java", "fail"), ("spark", "ok"), ("bridge jar", "ok"),
    ]  # fmt: skip
    assert "openjdk-17-jre-headless" in doctor.json[0]["remedy"]
    demo = mizzle(tmp_path, "demo", JAVA_HOME=str(tmp_path / "no"))
    assert demo.code == 1
    assert demo.err.startswith("error: no Java")
    assert "Traceback" not in doctor.err + demo.err
