"""Memory that ran out in user code, said with what limits it and how far the process had come."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from pathlib import Path

_UNLIMITED = 1 << 60
_SAYINGS = ("can't allocate memory", "not enough memory", "cannot allocate memory", "out of memory")
"""Of torch's allocators and the C library; their exceptions are plain RuntimeErrors and OSErrors."""


def note_if_out_of_memory(error: BaseException) -> None:
    """Call it OOM, with limit and peak, if that is what an exception of this process is about."""
    if any(_is_out_of_memory(one) for one in _chain(error)):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        error.add_note(
            f"out of memory (OOM) in this rank's process: peak {_size(peak)}, {limits()}. Raise the limit, or give "
            "ranks less to hold: a smaller global_batch_size, accumulate, or more ranks"
        )


def limits(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> str:
    """What limits the memory of this process: its own limit, its control group's, the machine's."""
    told = []
    of_process = resource.getrlimit(resource.RLIMIT_AS)[0]
    if of_process != resource.RLIM_INFINITY:
        told.append(f"{_size(of_process)} of address space (spark.executor.pyspark.memory)")
    told += [f"{_size(limit)} of control group {name}" for name, limit in _group_limits(proc, groups)]
    told += [f"{_size(total)} of the machine" for total in _machine(proc)]
    return "limit " + ", ".join(told) if told else "no limit is known"


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        yield at
        at = at.__cause__ or at.__context__


def _is_out_of_memory(error: BaseException) -> bool:
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError | OSError) and any(saying in str(error).lower() for saying in _SAYINGS)


def _group_limits(proc: Path, groups: Path) -> Iterator[tuple[str, int]]:
    """The tightest limit among the process's control group and those above it, version 2 or 1."""
    found = []
    for line in _lines(proc / "self" / "cgroup"):
        _, controllers, name = line.split(":", 2)
        if controllers in {"", "memory"}:
            top = groups / controllers
            limit_file = "memory.limit_in_bytes" if controllers else "memory.max"
            own = top / name.lstrip("/")
            above = [group for group in (own, *own.parents) if group.is_relative_to(top)]
            limits_there = [(_number(group / limit_file), group.relative_to(top)) for group in above]
            found += [(limit, f"/{group}") for limit, group in limits_there if limit is not None and limit < _UNLIMITED]
    if found:
        limit, name = min(found)
        yield name, limit


def _machine(proc: Path) -> Iterator[int]:
    yield from (int(line.split()[1]) * 1024 for line in _lines(proc / "meminfo") if line.startswith("MemTotal:"))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # not there, or "max"
        return None


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.0f} MiB"
