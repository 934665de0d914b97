"""What an application's runs leave behind on this machine: processes, memory, blocks, files, descriptors.

An executor's idle residents with their standbys are meant to stay for the next run; nothing else of a run is.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mizzle.blocks.bridge import BridgeClient
from mizzle.blocks.card import CARD, find_bridge
from mizzle.blocks.deadline import Deadline
from mizzle.errors import MizzleError

WITHIN_S = 10.0
_LOOK_AGAIN_S = 0.25
_SHARED = Path("/dev/shm")  # noqa: S108 - nothing is written there
_RESIDENT = b"mizzle.spark.ranks.resident"


@dataclass(frozen=True)
class Process:
    """One process, as /proc tells.

    Attributes:
        pid: its number.
        parent: that of its parent.
        words: the command line.
        directory: the executor's that it is, or works for.
        is_executor: whether it is a JVM.
        is_stopped: by a signal, and not gone on since.
    """

    pid: int
    parent: int
    words: tuple[bytes, ...]
    directory: str
    is_executor: bool
    is_stopped: bool

    @property
    def is_resident(self) -> bool:
        """Whether it may be a rank, or a standby."""
        return _RESIDENT in self.words

    def memory(self) -> set[str]:
        """Regions of arenas that it holds open or mapped."""
        entry = Path(f"/proc/{self.pid}")
        found: set[str] = set()
        try:
            for fd in (entry / "fd").iterdir():
                found |= _region(str(fd.readlink()))
            for line in (entry / "maps").read_text().splitlines():
                found |= _region(line.partition("/")[2] and f"/{line.partition('/')[2]}")
        except OSError:
            pass  # it has ended meanwhile
        return found


def _region(target: str) -> set[str]:
    return {target.removesuffix(" (deleted)")} if target.startswith("/memfd:mizzle-") else set()


def processes(home: Path | str) -> list[Process]:
    """Executors of the application whose ``spark.local.dir`` is there, and what works for them, now or in the past.

    Args:
        home: that directory; of an executor, for this one and what works for it.
    """
    return [one for one in everybody() if one.directory.startswith(str(home))]


def everybody() -> list[Process]:
    """All processes of this user that are an executor, or work for one."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = tuple((entry / "cmdline").read_bytes().split(b"\0"))
            settings = dict(one.partition(b"=")[::2] for one in (entry / "environ").read_bytes().split(b"\0"))
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue  # it has ended, or is another user's
        is_executor = b"--executor-id" in words
        at = settings.get(b"SPARK_EXECUTOR_DIRS" if is_executor else b"SPARK_LOCAL_DIRS", b"").decode().split(",")[0]
        if at:
            found.append(Process(int(entry.name), int(parent), words, at, is_executor, is_stopped=state == "T"))
    return found


def residents(home: Path) -> list[Process]:
    """The resident processes, without the standbys behind them."""
    found = [one for one in processes(home) if one.is_resident]
    pids = {one.pid for one in found}
    return [one for one in found if one.parent not in pids]


def executor_of(one: Process, among: list[Process]) -> Process | None:
    """The executor that a process works for, if it lives."""
    return next((other for other in among if other.is_executor and one.directory.startswith(other.directory)), None)


def named(home: Path, name: str) -> Iterator[Path]:
    """Files of that name, while folders come and go: `Path.rglob` would raise where one goes as it looks into it."""
    return (Path(folder, name) for folder, _, files in os.walk(home) if name in files)


class Inventory:
    """Of one application on this machine.

    Args:
        home: its ``spark.local.dir``.
        slots: of an executor: so many residents may be idle in it, and one that was started ahead of its rank. A rank
            that is killed is followed by a standby and by a new resident; what is too much ends a minute later.
    """

    def __init__(self, home: Path, slots: int = 1) -> None:
        self._home, self._slots = home, slots
        self._names = set(_SHARED.iterdir())

    def left(self, kills: int = 0) -> list[str]:
        """What of past runs is still there, ten seconds from now; at once when there is nothing.

        Args:
            kills: ranks that were killed in the last run.
        """
        deadline, paused = Deadline.after(WITHIN_S), threading.Event()
        while (found := self.now(kills)) and not deadline.passed:
            paused.wait(_LOOK_AGAIN_S)
        return found

    def now(self, kills: int = 0) -> list[str]:
        """What of runs is there."""
        return [*self._of_processes(self._slots + 1 + kills), *self._names_left(), *self._of_bridges()]

    def _of_processes(self, most: int) -> Iterator[str]:
        all_ = processes(self._home)
        for one in all_:
            if not one.is_executor and executor_of(one, all_) is None:
                yield f"process {one.pid} of an executor that is gone: {b' '.join(one.words).decode()[:80]}"
            yield from (f"{region} in process {one.pid}" for region in sorted(one.memory()))
        pids = {one.pid for one in all_ if one.is_resident}
        for executor in (one for one in all_ if one.is_executor):
            idle = [one.pid for one in all_ if one.is_resident and one.parent not in pids
                    and one.directory.startswith(executor.directory)]  # fmt: skip
            if len(idle) > most:
                yield f"more than {most} residents in executor process {executor.pid}: {idle}"

    def _names_left(self) -> Iterator[str]:
        yield from (str(path) for path in set(_SHARED.iterdir()) - self._names if "mizzle" in path.name)

    def _of_bridges(self) -> Iterator[str]:
        # One that is stopped is being replaced, and takes with it what it has.
        alive = Counter(one.directory for one in processes(self._home) if one.is_executor and not one.is_stopped)
        for directory, executors in alive.items():
            yield from _in_bridges(directory, executors)


def _in_bridges(directory: str, executors: int) -> Iterator[str]:
    """A worker's executors share its directory, one after the other: cards of those that were killed lie there too."""
    silent, heard = ["no card"], 0
    for card in named(Path(directory), CARD):
        try:
            with BridgeClient(*find_bridge(str(card.parent)), Deadline.after(5)) as client:
                blocks = client.count_blocks("test_mizzle")
        except (MizzleError, OSError) as error:
            silent.append(str(error))
            continue
        heard += 1
        if blocks:
            yield f"{blocks} blocks in executor {client.executor_id}"
        yield from (f"the folder {folder}" for folder in card.parent.glob("mizzle-*") if folder.is_dir())
    if heard < executors:
        yield f"{executors} executors have the directory {directory}, and {heard} of them say what they hold: {silent}"


def fds(pid: int) -> int:
    """How many descriptors a process has open."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def resident_kb(pid: int) -> int:
    """How much memory of its own a process has: anonymous pages, in KB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
