"""Memory that ran out is called OOM, with limit and peak: in user code, by control groups' files, in Spark's words."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mizzle.errors import NotFiniteError, PeerLost
from mizzle.spark.explain import end_of, explain, raise_cause
from mizzle.spark.ranks.out_of_memory import limits, note_if_out_of_memory
from mizzle.spark.ranks.outcome import Failure, Outcome

TOO_MUCH = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))
from mizzle.spark.ranks.out_of_memory import note_if_out_of_memory
try:
    {code}
except Exception as error:
    note_if_out_of_memory(error)
    print(type(error).__name__, getattr(error, "__notes__", ""))
"""


@pytest.mark.parametrize(
    ("code", "name"),
    [("bytearray(8 << 30)", "MemoryError"), ("import torch; torch.zeros(1 << 31)", "RuntimeError")],
    ids=["python", "torch"],
)
def test_an_allocation_that_fails_is_called_oom_with_limit_and_peak(code: str, name: str) -> None:
    script = TOO_MUCH.format(limit=6 << 30, code=code)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=100)
    assert done.stdout.startswith(f"{name} "), done.stdout + done.stderr
    assert re.search(r"out of memory \(OOM\) in this rank's process: peak \d+ MiB, limit ", done.stdout)
    assert "limit 6144 MiB of address space (spark.executor.pyspark.memory)" in done.stdout
    assert "MiB of the machine" in done.stdout
    assert "accumulate" in done.stdout


def test_other_errors_are_left_alone_and_a_cause_counts() -> None:
    for error in (ValueError("boom"), RuntimeError("mat1 and mat2 shapes cannot be multiplied"), OSError("gone")):
        note_if_out_of_memory(error)
        assert not hasattr(error, "__notes__")
    outer = ValueError("collate failed")
    outer.__cause__ = MemoryError()
    note_if_out_of_memory(outer)
    assert "(OOM)" in outer.__notes__[0]
    again = Failure.of(outer)
    assert "(OOM)" in again.text, "it arrives at the driver"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize("second", [True, False], ids=["version 2", "version 1"])
def test_the_tightest_limit_of_the_groups_above_counts(tmp_path: Path, *, second: bool) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    write(proc / "self" / "cgroup", "0::/pod/rank\n" if second else "4:memory:/pod/rank\n0::/\n")
    write(proc / "meminfo", "MemTotal:       4194304 kB\nMemFree:  1 kB\n")
    top = groups if second else groups / "memory"
    name, none = ("memory.max", "max") if second else ("memory.limit_in_bytes", "9223372036854771712")
    write(top / "pod" / "rank" / name, none)
    write(top / "pod" / name, str(512 << 20))
    assert limits(proc, groups).endswith("512 MiB of control group /pod, 4096 MiB of the machine")
    write(top / "pod" / "rank" / name, str(256 << 20))
    assert "256 MiB of control group /pod/rank" in limits(proc, groups)
    assert "control group" not in limits(proc, tmp_path / "nowhere")


SAID = {
    "Command exited with code 52": "its JVM's heap was full; raise spark.executor.memory",
    "Unable to create executor due to java.lang.OutOfMemoryError: Java heap space": "its JVM's heap was full",
    "Container killed by YARN for exceeding physical memory limits. 5.5 GB of 5 GB used.": "limit of its container",
    "\nThe executor with id 3 exited with exit code 137(SIGKILL, possible container OOM).\n": "limit of its container",
    "Command exited with code 137": "It was killed: by a person or the cluster, or",
    "Executor killed by driver.": "",
    "worker lost: Not receiving heartbeat for 60 seconds": "",
    "Command exited with code 1": "",
}


@pytest.mark.parametrize("reason", SAID)
def test_what_spark_says_of_an_executors_end_is_told_and_oom_is_called_so(reason: str) -> None:
    told = end_of("3", {"3": reason}.__getitem__)
    assert told.startswith(f"Spark says of the end of executor 3: {reason.strip()}")
    assert SAID[reason] in told
    assert ("OOM)" in told) is bool(SAID[reason])
    assert end_of("3", lambda _executor: "") == ""


def test_an_error_that_ends_a_run_says_who_and_at_what() -> None:
    places = [("1", "hostA"), ("2", "hostB")]
    for error in (PeerLost(1, "gone"), NotFiniteError("iteration 4: ...", rank=1)):
        explain(error, "iterations 4-7 (epoch 0)", places)
        assert error.__notes__ == ["rank 1 was in executor 2 on hostB", "the run was at: iterations 4-7 (epoch 0)"]
    nobody = NotFiniteError("the global norm")
    explain(nobody, "iterations 4-7 (epoch 0)", places)
    assert nobody.__notes__ == ["the run was at: iterations 4-7 (epoch 0)"]
    itself = PeerLost(1, "gone")
    itself.add_note("raised by rank 1 (executor 2 on hostB)")
    explain(itself, "iterations 4-7 (epoch 0)", places)
    assert len(itself.__notes__) == 2, "nothing is said twice"
    stranger = KeyboardInterrupt()
    explain(stranger, "iterations", places)
    assert not hasattr(stranger, "__notes__")


def test_notes_of_a_rank_are_in_what_the_driver_raises() -> None:
    error = PeerLost(1, "process 7 ended")
    error.add_note("and why")
    with pytest.raises(PeerLost) as caught:
        raise_cause([Outcome(0, 1, "2", "hostB", failure=Failure.of(error))])
    assert caught.value.__notes__ == ["and why", "raised by rank 1 (executor 2 on hostB)"]
