"""A rank's state at a boundary, in its arena: twice, in turn, so that a group that fails leaves its boundary's alone.

The arena belongs to the executor's bridge and outlives the process that wrote it; the label says what is valid.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from mizzle.errors import Misplaced
from mizzle.spark.worker import RankContext

_REGIONS = ("state0", "state1")
_PAGE = 4096


def keep_state(
    context: RankContext, boundary: int, num_bytes: int, write: Callable[[memoryview], int], *, since: int
) -> None:
    """Leave this rank's state behind, for `find_state`.

    Args:
        context: of the rank.
        boundary: iterations that the run has done.
        num_bytes: at least as many as ``write`` needs.
        write: writes the state into memory of that size and returns its length in bytes.
        since: the boundary that the group began with: its state is the one that must not be lost.
    """
    kept = _kept(context)
    name = next(region for region in _REGIONS if kept.get(region, {}).get("boundary") != since)
    # The label of what is overwritten goes first, so that a torn state is never found.
    if kept.pop(name, None) is not None:
        context.set_label(json.dumps(kept).encode())
    region = context.arena.region(name, max(_PAGE, 1 << (num_bytes - 1).bit_length()))
    length = write(memoryview(region.buffer)[:num_bytes])
    kept[name] = {"rank": context.rank, "boundary": boundary, "bytes": length}
    context.set_label(json.dumps(kept).encode())


def find_state(context: RankContext, boundary: int) -> memoryview | None:
    """This rank's state at a boundary, in the arena's memory; None at the very start of a run.

    Raises:
        Misplaced: it is not in this arena.
    """
    if boundary == 0:
        return None
    for name, label in _kept(context).items():
        region = context.arena.find(name)
        if region is not None and (label["rank"], label["boundary"]) == (context.rank, boundary):
            return memoryview(region.buffer)[: label["bytes"]]
    raise Misplaced(
        f"rank {context.rank} was started on executor {context.executor_id}, away from its state at iteration "
        f"{boundary}"
    )


def kept_bytes(context: RankContext) -> int:
    """Memory that the states of this rank take in its arena."""
    regions = [context.arena.find(name) for name in _REGIONS]
    return sum(len(region.buffer) for region in regions if region is not None)


def _kept(context: RankContext) -> dict[str, dict[str, int]]:
    kept: dict[str, dict[str, int]] = json.loads(context.label or b"{}")
    return kept
