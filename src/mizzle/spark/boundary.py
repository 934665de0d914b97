"""A rank's state at a boundary, in its arena: twice, in turn, so that a group that fails leaves its boundary's alone.

The arena belongs to the executor's bridge and outlives the process that wrote it; the label says what is valid.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from mizzle.errors import Misplaced
from mizzle.spark.worker import RankContext


def keep_state(context: RankContext, boundary: int, num_bytes: int, write: Callable[[memoryview], int]) -> None:
    """Leave this rank's state behind, for `find_state`.

    Args:
        context: of the rank.
        boundary: iterations that the run has done.
        num_bytes: at least as many as ``write`` needs.
        write: writes the state into memory of that size and returns its length in bytes.
    """
    last = json.loads(context.label or b"{}")
    name = "state1" if last.get("region") == "state0" else "state0"
    region = context.arena.region(name, num_bytes)
    length = write(memoryview(region.buffer)[:num_bytes])
    label = json.dumps({"rank": context.rank, "boundary": boundary, "region": name, "bytes": length}).encode()
    context.set_label(label)


def find_state(context: RankContext, boundary: int) -> memoryview | None:
    """This rank's state at a boundary, in the arena's memory; None at the very start of a run.

    Raises:
        Misplaced: it is not in this arena.
    """
    if boundary == 0:
        return None
    label = json.loads(context.label or b"{}")
    region = context.arena.find(label.get("region", ""))
    if region is None or (label["rank"], label["boundary"]) != (context.rank, boundary):
        raise Misplaced(
            f"rank {context.rank} was started on executor {context.executor_id}, away from its state at iteration "
            f"{boundary}"
        )
    return memoryview(region.buffer)[: label["bytes"]]
