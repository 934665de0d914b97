"""What `mizzle doctor` sees of a running session: bridges, executors, sockets, memory. It observes and never judges."""

from __future__ import annotations

import platform
import threading
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from pyspark import SparkContext
from pyspark.sql import SparkSession

from mizzle.blocks.deadline import Deadline
from mizzle.config import Transport
from mizzle.errors import ArenaError
from mizzle.spark.driver import DriverSide, fixed_executors, num_executors
from mizzle.spark.groups import run_group
from mizzle.spark.ranks.worker import RankContext

ARENA_BYTES = 64 * 10**6
_ELEMENTS = 100_003
_UNLIMITED = 1 << 60
"""cgroup v1 says "no limit" with a number near 2**63."""
_LOOK_AGAIN_S = 0.05


@dataclass(frozen=True, slots=True)
class ExecutorFacts:
    """One executor, as a rank on it saw it.

    Attributes:
        executor_id: Spark's name of it.
        host: its host.
        host_id: equal for executors that can share memory.
        python: version of its Python workers, "3.11.2".
        torch: version of torch there.
        mizzle: version of mizzle there.
        arena_error: why `ARENA_BYTES` of arena could not be had; empty when they could.
        memory_limit: bytes that the container may use, None without a limit.
    """

    executor_id: str
    host: str
    host_id: str
    python: str
    torch: str
    mizzle: str
    arena_error: str
    memory_limit: int | None


def driver_versions() -> dict[str, str]:
    """Versions here of what the executors must have as well."""
    return {"python": platform.python_version(), "torch": torch.__version__, "mizzle": version("mizzle")}


def await_bridges(context: SparkContext, deadline: Deadline) -> tuple[dict[str, str], int]:
    """Wait until the bridge of every executor has reported, also of those that are still to come.

    Returns:
        Description of every bridge that has, by executor id; and the number of executors that Spark knows or awaits.
    """
    driver = DriverSide(context)
    paused = threading.Event()
    while True:
        bridges, expected = driver.bridges(), max(num_executors(context), fixed_executors(context) or 1)
        if len(bridges) >= expected or deadline.passed:
            return bridges, expected
        paused.wait(min(_LOOK_AGAIN_S, deadline.remaining_s()))


def inspect_executors(spark: SparkSession, ranks: int) -> list[ExecutorFacts]:
    """Look at the executors that ``ranks`` ranks come to lie on; Spark spreads them over all."""
    seen = run_group(spark, _inspect, ranks=ranks)
    return list({facts.executor_id: facts for facts in seen}.values())


def try_all_reduce(spark: SparkSession, transport: Transport) -> bool:
    """Whether an all-reduce of two ranks over a transport gives the exact sum on both.

    Raises:
        MizzleError: it could not be done.
    """
    return all(run_group(spark, _reduces_exactly, ranks=2, transport=transport))


def _inspect(context: RankContext) -> ExecutorFacts:
    """The look of one rank."""
    facts = ExecutorFacts(
        executor_id=context.executor_id,
        host=context.host,
        host_id=context.host_id,
        arena_error=_try_arena(context),
        memory_limit=memory_limit(_read(Path("/proc/self/cgroup")), Path("/sys/fs/cgroup")),
        **driver_versions(),
    )
    context.barrier()
    return facts


def _reduces_exactly(context: RankContext) -> bool:
    ones = torch.ones(_ELEMENTS, dtype=torch.float32)
    total = context.all_reduce(ones * (context.rank + 1))
    return torch.equal(total, ones * (context.size * (context.size + 1) // 2))


def _try_arena(context: RankContext) -> str:
    try:
        context.arena.region("doctor", ARENA_BYTES).buffer[-1] = 1
    except ArenaError as error:
        return str(error)
    return ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""


def memory_limit(groups: str, root: Path) -> int | None:
    """Bytes that this process's container may use, None without a limit.

    Args:
        groups: ``/proc/self/cgroup``; lines ``number:controllers:path``.
        root: where control groups are mounted.
    """
    limits = []
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, name = root, "memory.max"
        elif "memory" in controllers.split(","):
            base, name = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        # A container often sees its own group as the root of the tree, whatever path it is told.
        own = base / path.lstrip("/")
        limits += [_read(group / name).strip() for group in (own, *own.parents) if group.is_relative_to(base)]
    known = [int(limit) for limit in limits if limit.isdigit()]
    return min((limit for limit in known if limit < _UNLIMITED), default=None)
