"""Control groups around single processes, of version 1 or 2: less memory, or a part of a processor."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest

_TOP = Path("/sys/fs/cgroup")
_PERIOD_US = 20_000
"""Short, so that a process that is held back goes on slowly and does not stop for long."""


def _parent(controller: str) -> Path:
    return _TOP if (_TOP / "cgroup.controllers").exists() else _TOP / controller


def make(controller: str, name: str) -> Path:
    """A new group, to be removed with `remove`.

    Raises:
        OSError: this user cannot make one here.
    """
    group = _parent(controller) / name
    group.mkdir(exist_ok=True)
    if not (group.parent / "cgroup.controllers").exists():
        return group
    with suppress(OSError):  # may be on already
        (group.parent / "cgroup.subtree_control").write_text(f"+{controller}")
    (group / f"{controller}.max").read_text()  # the controller is not here: skip
    return group


def remove(controller: str, name: str) -> None:
    """All groups whose names begin so, once their processes are gone."""
    for group in _parent(controller).glob(f"{name}*"):
        with suppress(OSError):
            group.rmdir()


def release(name: str) -> None:
    """Processes in groups whose names begin so are free again: they may serve what comes next."""
    for controller in ("memory", "cpu"):
        for group in _parent(controller).glob(f"{name}*"):
            for pid in (group / "cgroup.procs").read_text().split():
                with suppress(OSError):  # it has ended
                    (group.parent / "cgroup.procs").write_text(pid)
        remove(controller, name)


def limit_memory(name: str, num_bytes: int) -> None:
    """This process may take that much memory from now on; what it has is not counted."""
    group = make("memory", name)
    new = group / "memory.max"
    (new if new.exists() else group / "memory.limit_in_bytes").write_text(str(num_bytes))
    (group / "cgroup.procs").write_text(str(os.getpid()))


def limit_processor(name: str, share: float) -> None:
    """This process gets that share of one processor from now on."""
    group = make("cpu", name)
    quota = int(share * _PERIOD_US)
    if (group / "cpu.max").exists():
        (group / "cpu.max").write_text(f"{quota} {_PERIOD_US}")
    else:
        (group / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
        (group / "cpu.cfs_quota_us").write_text(str(quota))
    (group / "cgroup.procs").write_text(str(os.getpid()))


def skip_without() -> None:
    """Skip the test where control groups cannot be made."""
    for controller in ("memory", "cpu"):
        try:
            make(controller, "mizzle-try")
        except OSError as error:
            pytest.skip(f"no control group of {controller} can be made here: {error}")
        finally:
            remove(controller, "mizzle-try")
