"""CPU time of a rank: of the process that runs it and of its executor's JVM, which carries blocks and checksums.

What the kernel does for a packet in an interrupt is charged to whoever runs just then, or to nobody.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

_WHOLE_PROCESS = 2
"""``CPUCLOCK_SCHED`` of Linux: all threads, those that ended included, in nanoseconds."""
_JVM = "java"


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far, in user code and in the kernel; 0 when it is gone."""
    try:
        # The number of another process' clock, as clock_getcpuclockid(3) makes it; Python has no call for it.
        return time.clock_gettime((~pid << 3) | _WHOLE_PROCESS)
    except OSError:
        return 0.0


def rank_pids() -> tuple[int, ...]:
    """This process, and the JVM among its ancestors if there is one."""
    pids = [os.getpid()]
    parent = os.getppid()
    while parent > 0:
        # Its name may hold spaces and brackets: fields are counted from the last bracket on.
        name, _, rest = Path(f"/proc/{parent}/stat").read_text(encoding="utf-8").partition("(")[2].rpartition(")")
        if name == _JVM:
            return (*pids, parent)
        parent = int(rest.split()[1])
    return tuple(pids)


class RankCpu:
    """Tells how much CPU time passed between two looks."""

    def __init__(self) -> None:
        """Find the processes: they stay the same while a rank runs."""
        self._pids = rank_pids()

    def __call__(self) -> float:
        """CPU seconds of all of them so far."""
        return sum(map(cpu_s, self._pids))
