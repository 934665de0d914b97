"""How many TCP data segments pass between Spark's driver and its executors, as the kernel counts them.

The same measure for every way to schedule: it sees whatever Spark sends, launches, results, heartbeats and leases
alike. What stays on the driver's side is left out: py4j between Python and JVM, and the connections of a JVM to itself.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from pyspark import SparkContext

_SS = ("ss", "-HtinpO", "state", "established")
_ANSWER_S = 30.0
_PID = re.compile(r"\bpid=(\d+)")
_SEGMENTS = re.compile(r"\bdata_segs_(?:in|out):(\d+)")
_MAPPED = "[::ffff:"


@dataclass(frozen=True, slots=True)
class Connection:
    """One end of an established TCP connection.

    Attributes:
        local: address and port of this end.
        peer: of the other end.
        pids: processes that hold it.
        segments: with data, in and out, since it was made.
    """

    local: str
    peer: str
    pids: frozenset[int]
    segments: int


def parse_connections(text: str) -> list[Connection]:
    """Read what ``ss -HtinpO state established`` says, one connection a line."""
    return [_parsed(line) for line in text.splitlines() if len(line.split()) >= 4]


def _parsed(line: str) -> Connection:
    # With a state asked for, ss leaves the column of states out: two queues come first.
    local, peer = line.split()[2:4]
    return Connection(
        _address(local),
        _address(peer),
        frozenset(int(pid) for pid in _PID.findall(line)),
        sum(int(count) for count in _SEGMENTS.findall(line)),
    )


def _address(text: str) -> str:
    """The same for both ends: Java's sockets show IPv4 addresses mapped into IPv6."""
    return text.replace(_MAPPED, "").replace("]", "") if text.startswith(_MAPPED) else text


def outward_segments(
    connections: Collection[Connection], driver: int, own: Collection[int]
) -> dict[tuple[str, str], int]:
    """Segments of the driver's connections, by their two ends, but for those to ``own`` processes.

    Args:
        connections: of this machine.
        driver: the process whose connections are wanted.
        own: processes that count as the driver's side.
    """
    inward = {(there.peer, there.local) for there in connections if there.pids & frozenset(own)}
    return {
        (here.local, here.peer): here.segments
        for here in connections
        if driver in here.pids and (here.local, here.peer) not in inward
    }


def grown(before: Mapping[tuple[str, str], int], after: Mapping[tuple[str, str], int]) -> int:
    """Segments that came between two looks. What a connection that is closed by now carried is not known."""
    return sum(count - before.get(ends, 0) for ends, count in after.items())


@dataclass(slots=True)
class DriverTraffic:
    """Counts segments between looks.

    Attributes:
        driver: process id of the driver's JVM.
        own: processes of the driver's side: that JVM, and the Python process which drives it.
    """

    driver: int
    own: frozenset[int]
    _seen: dict[tuple[str, str], int] | None = field(default=None, init=False)

    @classmethod
    def of(cls, context: SparkContext, own_pid: int) -> DriverTraffic:
        """For a running driver; ``own_pid`` is the Python process that holds ``context``."""
        jvm: Any = context._jvm  # noqa: SLF001 - py4j's view of the driver
        driver = int(jvm.java.lang.ProcessHandle.current().pid())
        return cls(driver, frozenset((driver, own_pid)))

    def since_last(self) -> int | None:
        """Segments since the last call; None at the first one, and where ``ss`` (of iproute2) cannot be asked."""
        before, self._seen = self._seen, self._look()
        return None if before is None or self._seen is None else grown(before, self._seen)

    def _look(self) -> dict[tuple[str, str], int] | None:
        if shutil.which(_SS[0]) is None:
            return None
        done = subprocess.run(_SS, capture_output=True, text=True, timeout=_ANSWER_S, check=False)  # noqa: S603 - fixed
        if done.returncode != 0:
            return None
        return outward_segments(parse_connections(done.stdout), self.driver, self.own)
