"""A resident that is killed is followed by a process that was there before, with everything loaded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from mizzle.blocks.deadline import Deadline
from unit.spark.ranks.fake_bridge import FakeBridge

SOON_S = 60.0


def eventually(found: Callable[[], bool]) -> bool:
    deadline, pause = Deadline.after(SOON_S), threading.Event()
    while not found() and not deadline.passed:
        pause.wait(0.02)
    return found()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def age_s(pid: int) -> float:
    begun = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return float(Path("/proc/uptime").read_text().split()[0]) - begun


def test_the_process_that_follows_a_killed_resident_was_there_before_and_ends_with_the_bridge(tmp_path: Path) -> None:
    bridge = FakeBridge(tmp_path, SOON_S)
    environment = os.environ | {"SPARK_LOCAL_DIRS": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-m", "mizzle.spark.ranks.resident"], env=environment) as first:
        assert eventually(lambda: bridge.serving == [first.pid])
        (standby,) = children(first.pid)
        assert eventually(lambda: age_s(standby) > 1.5), "who is killed at once is not followed"
        os.kill(first.pid, signal.SIGKILL)
        first.wait(SOON_S)
    assert eventually(lambda: bridge.serving == [first.pid, standby]), bridge.serving
    assert eventually(lambda: len(children(standby)) == 1), "there is a new standby"
    (last,) = children(standby)
    bridge.close()
    assert eventually(lambda: is_gone(standby))
    assert eventually(lambda: is_gone(last)), "who leaves in peace is not followed"
