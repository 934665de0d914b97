"""The network benchmark as one starts it: a real standalone Spark on hosts that are network namespaces, all removed."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def load_hosts() -> Any:
    spec = importlib.util.spec_from_file_location("hosts", BENCHMARKS / "hosts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["hosts"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


hosts = load_hosts()
WHY_NOT = hosts.missing()
needs_hosts = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))


def start(*options: str, out: Path) -> subprocess.Popen[bytes]:
    with out.open("wb") as stream:
        return subprocess.Popen(
            [sys.executable, str(BENCHMARKS / "network.py"), *options],
            stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True,
        )  # fmt: skip


def left_of(pid: int) -> list[str]:
    """What a benchmark of this process id has on the machine: namespaces, folders, processes."""
    prefix = f"{hosts.PREFIX}{pid}-"
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    found = [line for line in listed.splitlines() if line.startswith(prefix)]
    for folder in (Path("/etc/netns"), Path(tempfile.gettempdir())):
        found += [str(path) for path in folder.glob(f"{prefix}*")]
    return found + [line for line in command_lines() if prefix in line]


def command_lines() -> Iterator[str]:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            yield (process / "cmdline").read_text(errors="replace")
        except OSError:
            continue


@needs_hosts
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_hosts_all_reduce_over_their_links_alone_and_leave_nothing(tmp_path: Path) -> None:
    out, result = tmp_path / "out", tmp_path / "result.json"
    process = start(
        "--hosts", "2", "--rates", "100", "--sizes", "1MB", "--systems", "mizzle,mizzle_bf16,gloo,tree_reduce",
        "--repeats", "6", "--warmup", "4", "--idle", "10", "--json", str(result), out=out,
    )  # fmt: skip
    assert process.wait(360) == 0, out.read_text()
    records = json.loads(result.read_text())
    assert [(record["system"], record["wire"]) for record in records] == [
        ("mizzle", "fp32"), ("mizzle", "bf16"), ("gloo", "fp32"), ("tree_reduce", "fp32"),
    ]  # fmt: skip
    for record in records:
        assert record["verified"]
        assert (record["hosts"], record["ranks"], record["bytes"], record["rate_mbit"]) == (2, 2, 10**6, 100)
        assert record["repeats"] == 6
        assert 50 < record["goodput_mbit"] < 100, "no link carries more than its rate, and these carry most of it"
        # Half of the array goes each way, twice.
        assert record["bound_s"] == pytest.approx(8e6 / 1e6 / record["goodput_mbit"])
        assert record["ratio_to_bound"] == pytest.approx(record["median_s"] / record["bound_s"])
        assert record["host_cpu_s"] > 0
    mizzle, narrow, gloo, tree = records
    # What a token bucket lets through at once is a few percent of an array: nobody is quicker than the links.
    for record, of_bound in ((mizzle, 1.0), (narrow, 0.5), (gloo, 1.0), (tree, 1.0)):
        assert record["median_s"] > 0.9 * of_bound * record["bound_s"]
    assert mizzle["driver_bytes_per_iteration"] < 0.05 * mizzle["bytes"], "no array passes the driver"
    assert tree["driver_bytes_per_iteration"] > tree["bytes"], "every sum of plain Spark's does"
    assert left_of(process.pid) == []


@needs_hosts
@pytest.mark.timeout(200)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_benchmark_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start("--hosts", "2", "--rates", "100", out=out)
    try:
        follow = f"tail -n +1 -F '{out}' --pid={process.pid} 2>/dev/null | grep -m1 'TCP carries'"
        subprocess.run(["timeout", "150", "sh", "-c", follow], capture_output=True, check=False)
        assert left_of(process.pid), out.read_text()
        process.send_signal(number)
        assert process.wait(60) == 128 + number
    finally:
        process.kill()
    assert left_of(process.pid) == []


@needs_hosts
@pytest.mark.timeout(60)
def test_what_a_killed_benchmark_leaves_is_removed_by_clean_and_nothing_that_is_in_use(tmp_path: Path) -> None:
    program = "import sys; sys.path.insert(0, sys.argv[1]); import hosts, subprocess\n"
    program += "network = hosts.Network(1).__enter__(); host = network.hosts[0]\n"
    program += "network.start(host, ['tail', '-f', '/dev/null'], log=network.directory / 'log', env={})\n"
    program += "print('made', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program, str(BENCHMARKS), "network.py"]  # the name is how `clean` knows its own
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as used,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as killed,
    ):
        try:
            for process in (used, killed):
                assert process.stdout is not None
                assert process.stdout.readline() == b"made\n"
            killed.kill()
            killed.wait(20)
            assert left_of(killed.pid)
            with start("clean", out=tmp_path / "out") as cleaning:
                assert cleaning.wait(40) == 0
            assert left_of(killed.pid) == []
            assert f"removed {hosts.PREFIX}{killed.pid}-host0" in (tmp_path / "out").read_text()
            assert len(left_of(used.pid)) >= 3
        finally:
            used.kill()
            killed.kill()
    assert f"{hosts.PREFIX}{used.pid}-host0" in hosts.remove_stale()


def test_without_root_it_is_skipped_with_the_reason(tmp_path: Path) -> None:
    program = (
        "import os, sys; sys.argv = ['network.py']; sys.path.insert(0, sys.argv0); os.geteuid = lambda: 1000; "
        "import network; network.main()"
    ).replace("sys.argv0", repr(str(BENCHMARKS)))
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}, cwd=tmp_path,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("skipped: ")
    assert "root" in done.stdout
