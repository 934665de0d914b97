"""CPU time of a rank, as the benchmark sees it."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from mizzle.bench.cpu import RankCpu, cpu_s, rank_pids


def test_cpu_time_is_what_the_kernel_charged_this_process() -> None:
    before, seen = time.process_time(), cpu_s(os.getpid())
    assert before <= seen <= time.process_time()


def test_cpu_time_grows_with_work_alone() -> None:
    cpu = RankCpu()
    begun = cpu()
    while cpu() - begun < 0.01:
        pass
    assert cpu() - begun >= 0.01


def test_a_process_that_is_gone_has_no_cpu_time() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(30)
    assert cpu_s(process.pid) == 0.0


def test_a_rank_counts_its_own_process_first() -> None:
    assert rank_pids()[0] == os.getpid()


def test_a_jvm_among_the_ancestors_counts_too_whatever_stands_between() -> None:
    # A process named java, a child whose name would confuse a careless reader of /proc, and the rank below both.
    rank = "from mizzle.bench.cpu import rank_pids; print(*rank_pids())"
    between = "import ctypes, subprocess, sys; ctypes.CDLL(None).prctl(15, b'odd) (name', 0, 0, 0); "
    between += f"subprocess.run([sys.executable, '-c', {rank!r}], check=True)"
    jvm = "import ctypes, os, subprocess, sys; ctypes.CDLL(None).prctl(15, b'java', 0, 0, 0); print(os.getpid()); "
    jvm += f"sys.stdout.flush(); subprocess.run([sys.executable, '-c', {between!r}], check=True)"
    done = subprocess.run([sys.executable, "-c", jvm], capture_output=True, text=True, check=True)
    java, seen = done.stdout.splitlines()
    assert seen.split()[1:] == [java]
