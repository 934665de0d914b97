"""A program of its own: groups on two separate executors, measured and killed; prints one JSON object.

A process has one SparkContext at most and the tests' own is ``local[2]``, so `test_bridge.py` starts this once.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pyspark.sql import SparkSession

from mizzle.blocks.deadline import Deadline
from mizzle.errors import MizzleError
from mizzle.spark.driver import DriverSide
from mizzle.spark.groups import run_group
from mizzle.spark.session import session

_PIDFD_GETFD = 438
_TCP_INFO_BYTES, _BYTES_ACKED_AT = 256, 120
SMALL, LARGE = 256, 1 << 20
"""Elements: 1 KB and 4 MB."""
GROUPS = [(50, SMALL), (500, SMALL), (50, LARGE), (100, LARGE)]


class Meter:
    """Bytes over the TCP connections of another process, as the kernel counts them."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._pidfd = os.pidfd_open(pid)
        self._seen = self._read()

    def _read(self) -> dict[str, int]:
        counts = {}
        for fd in Path(f"/proc/{self._pid}/fd").iterdir():
            try:
                target = str(fd.readlink())
            except FileNotFoundError:
                continue
            if target.startswith("socket:"):
                counts[target] = self._bytes_of(int(fd.name))
        return counts

    def _bytes_of(self, fd: int) -> int:
        libc = ctypes.CDLL(None, use_errno=True)
        copy = libc.syscall(_PIDFD_GETFD, self._pidfd, fd, 0)
        if copy < 0:
            error = ctypes.get_errno()
            if error in (1, 38):  # EPERM, ENOSYS
                raise PermissionError(error, os.strerror(error))
            return 0  # closed meanwhile
        with socket.socket(fileno=copy) as one:
            if one.type != socket.SOCK_STREAM or one.family not in (socket.AF_INET, socket.AF_INET6):
                return 0
            info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
            acked, received = struct.unpack_from("<QQ", info, _BYTES_ACKED_AT)
            return int(acked + received)

    def since_last(self) -> int:
        """Bytes since the last call."""
        now = self._read()
        grown = sum(count - self._seen.get(name, 0) for name, count in now.items())
        self._seen = now
        return grown


def reduce_often(iterations: int, elements: int) -> Callable[[Any], dict[str, Any]]:
    """A body that all-reduces, and says what its bridge asked of the driver meanwhile."""

    def body(context: Any) -> dict[str, Any]:
        array = np.full(elements, context.rank + 1, np.float32)
        total = context.all_reduce(array)
        before = context.counters()
        for _ in range(iterations):
            total = context.all_reduce(array)
        after = context.counters()
        return {
            "executor": context.executor_id,
            "right": bool((total == 3).all()),
            "asks": after["driver_asks"] - before["driver_asks"],
            "fetched": after["blocks_fetched"] - before["blocks_fetched"],
        }

    return body


def traffic(spark: SparkSession) -> dict[str, Any]:
    """What the driver hears of groups of different length and size."""
    driver = DriverSide(spark.sparkContext)
    jvm: Any = spark.sparkContext._jvm
    try:
        meter = Meter(int(jvm.java.lang.ProcessHandle.current().pid()))
    except PermissionError as error:
        return {"skipped": f"the kernel does not let this process look at the driver's sockets: {error}"}
    run_group(spark, reduce_often(5, SMALL), ranks=2, transport="blocks")
    groups = []
    for iterations, elements in GROUPS:
        meter.since_last()
        messages = driver.messages()
        ranks = run_group(spark, reduce_often(iterations, elements), ranks=2, transport="blocks")
        groups.append(
            {
                "iterations": iterations,
                "elements": elements,
                "bytes": meter.since_last(),
                "messages": driver.messages() - messages,
                "ranks": ranks,
            }
        )
    meter.since_last()
    spark.sparkContext.parallelize([0], 1).map(lambda _: os.urandom(4_000_000)).collect()
    return {"groups": groups, "control_bytes": meter.since_last()}


def reduce_for_ever(where: str) -> Callable[[Any], None]:
    """A body that all-reduces until it fails, and writes down who it is and how it ended."""

    def body(context: Any) -> None:
        array = np.ones(SMALL, np.float32)
        for _ in range(5):
            context.all_reduce(array)
        me = {"executor": context.executor_id, "pid": os.getpid()}
        note(Path(where) / f"started-{context.rank}", me)
        try:
            while True:
                context.all_reduce(array)
        except Exception as error:
            note(Path(where) / f"ended-{context.rank}", {"at": time.time(), "error": repr(error)})
            raise

    def note(path: Path, what: dict[str, Any]) -> None:
        unfinished = path.with_suffix(".new")
        unfinished.write_text(json.dumps(what))
        unfinished.replace(path)

    return body


def await_file(path: Path, within_s: float) -> dict[str, Any]:
    """The content of a file that another process writes."""
    deadline = Deadline.after(within_s)
    pause = threading.Event()
    while not path.exists():
        deadline.check(str(path))
        pause.wait(0.01)
    return dict(json.loads(path.read_text()))


def kill_in_mid_group(
    spark: SparkSession, where: Path, transport: Any, victim: Callable[[dict[str, Any]], int]
) -> dict[str, Any]:
    """Kill a process of rank 1 while both ranks all-reduce; how rank 0 and the driver took it."""
    where.mkdir()
    raised: list[str] = []

    def run() -> None:
        try:
            run_group(spark, reduce_for_ever(str(where)), ranks=2, transport=transport, timeout_s=30)
        except MizzleError as error:
            raised.append(f"{type(error).__name__}: {error}"[:500])

    group = threading.Thread(target=run)
    group.start()
    started = [await_file(where / f"started-{rank}", 30) for rank in range(2)]
    killed_at = time.time()
    os.kill(victim(started[1]), signal.SIGKILL)
    ended = await_file(where / "ended-0", 30)
    group.join(60)
    return {"seconds": ended["at"] - killed_at, "error": ended["error"], "driver": raised}


def executor_pid(spark: SparkSession, started: dict[str, Any]) -> int:
    """The JVM of an executor, as its bridge has reported it."""
    return int(DriverSide(spark.sparkContext).told()[started["executor"]]["pid"])


def main(where: Path) -> None:
    """Everything, on one session."""
    conf = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.local.dir": str(where / "local"),
        "spark.mizzle.leasePeriod": "1h",  # the one question that is asked by the clock; test_bridge_failures has it
        "spark.executor.heartbeatInterval": "60s",
        "spark.network.timeout": "300s",
    }
    spark = session("local-cluster[2,1,1024]", app_name="mizzle peers", conf=conf)
    found: dict[str, Any] = {"traffic": traffic(spark)}
    found["worker"] = kill_in_mid_group(spark, where / "worker", "auto", lambda started: int(started["pid"]))
    found["executor"] = kill_in_mid_group(
        spark, where / "executor", "blocks", lambda started: executor_pid(spark, started)
    )
    found["after"] = run_group(spark, reduce_often(3, SMALL), ranks=2, transport="blocks")
    spark.stop()
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
