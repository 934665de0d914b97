"""A save that is killed, or whose system calls fail, at any of them: real calls of a real process, by strace."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mizzle.training.checkpoint import CheckpointStore
from unit.training.checkpoints import assert_loads, save

FAILED = 3
_CALL = re.compile(r"(\w+)\(")
_MARK = "getppid"
WRITING = ("write", "fsync", "renameat", "mkdir", "unlinkat", "rmdir")
"""The calls of a save that change storage: whichever fails, the save must say so."""


@dataclass(frozen=True)
class Point:
    """The ``count``-th call of its kind since the process was traced."""

    call: str
    count: int


@dataclass(frozen=True)
class Ended:
    """How a save ended: status, what it said, and its calls with their arguments, from the mark on."""

    status: int
    said: str
    calls: list[tuple[Point, str]]


class Saver:
    """Saves at a path, in a process of its own each; see `saver.py`."""

    def __init__(self, process: subprocess.Popen[str], home: Path, said: Path) -> None:
        self._process, self._home, self._said = process, home, said
        self.path = home / "run"
        self._fresh = home / "fresh"
        save(CheckpointStore(str(self._fresh)), 1)

    def run(self, fault: str | None = None) -> Ended:
        """Save iteration 2 where 1 is there, with a fault in strace's words."""
        shutil.rmtree(self.path, ignore_errors=True)
        shutil.copytree(self._fresh, self.path)
        self._said.write_text("")
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{self.path}\n")
        self._process.stdin.flush()
        number = int(self._process.stdout.readline())
        with traced(number, self._home / "trace", fault):
            os.kill(number, signal.SIGUSR1)
            status = int(self._process.stdout.readline())
        return Ended(status, self._said.read_text(), calls(self._home / "trace"))

    def check(self, what: object) -> None:
        """Whatever happened: the old one or the new one is there, and the next save leaves nothing else behind."""
        store = CheckpointStore(str(self.path))
        found = store.newest_valid()
        assert found is not None, what
        assert found[1].iteration in {1, 2}, what
        assert_loads(store, found[1])
        for one in store.listed():
            if one.committed:
                store.verify(one.name)  # none is half removed and still looks like one
        assert sum(not one.committed for one in store.listed()) <= 1, what
        store.sweep()
        name = save(store, 3)
        store.retain(1)
        assert os.listdir(self.path) == [name], what  # noqa: PTH208


@contextmanager
def saver(home: Path) -> Iterator[Saver]:
    said = home / "said"
    with said.open("a") as errors, subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("saver.py"))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
    ) as process:  # fmt: skip
        yield Saver(process, home, said)
        assert process.stdin is not None
        process.stdin.close()
        process.wait(30)


@contextmanager
def traced(number: int, trace: Path, fault: str | None) -> Iterator[None]:
    """Watch a process until it ends."""
    inject = [] if fault is None else ["-e", f"inject={fault}"]
    with subprocess.Popen(
        ["strace", "-y", "-s", "0", "-o", str(trace), *inject, "-p", str(number)],
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "attached" in line, line
        yield


def calls(trace: Path) -> list[tuple[Point, str]]:
    """Every call since the mark, with its place among those of its kind since the process was traced."""
    seen: Counter[str] = Counter()
    found: list[tuple[Point, str]] = []
    for line in trace.read_text(errors="replace").splitlines():
        call = _CALL.match(line)
        if call is None:
            continue
        seen[call[1]] += 1
        found.append((Point(call[1], seen[call[1]]), line))
    marks = [at for at, (point, _) in enumerate(found) if point.call == _MARK]
    return found[marks[0] + 1 :] if marks else []


def can_trace() -> str | None:
    """Why no process can be traced here, or None."""
    if shutil.which("strace") is None:
        return "strace is not installed: apt-get install strace"
    done = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False, text=True)
    return None if done.returncode == 0 else f"strace may not trace here: {done.stderr.strip()[:200]}"


def check_killed(saves: Saver, points: Sequence[Point]) -> int:
    """Kill a save at each of these calls, before it is done; how many were reached."""
    killed = 0
    for point in points:
        ended = saves.run(f"{point.call}:signal=KILL:when={point.count}")
        assert ended.status in {0, -signal.SIGKILL}, (point, ended.said)
        killed += ended.status != 0
        saves.check(point)
    return killed


def check_failing(saves: Saver, points: Sequence[Point], errors: Sequence[str]) -> None:
    """Let each of these calls fail; the save must say so, and where."""
    for point in points:
        for error in errors:
            ended = saves.run(f"{point.call}:error={error}:when={point.count}")
            assert ended.status == FAILED, (point, error, ended)
            assert str(saves.path) in ended.said, (point, error, ended.said)
            if error == "ENOSPC" and point.call == "write":
                assert re.search(r"no room for \d+ bytes, \d+ are free", ended.said), ended.said
            saves.check((point, error))
