"""What ranks left in their arenas for the driver, fetched by tasks on their executors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pyspark import SparkContext, TaskContext

from mizzle.errors import Misplaced
from mizzle.spark.jobs import RunJobs
from mizzle.spark.placement import drain, here, placed
from mizzle.spark.ranks.outcome import Memory
from mizzle.spark.recovery import Retries

_PIECE_BYTES = 8 * 1024 * 1024
"""Of one task's result, of which Spark makes several copies in the heaps of executor and driver."""
_PIECES_AT_ONCE = 8
_COPY_WAITS_S = 10.0


def fetched(
    context: SparkContext, jobs: RunJobs, wanted: Sequence[tuple[int, Memory]], *, executors: Sequence[str],
    locations: Callable[[Sequence[str]], list[tuple[str, str]]], timeout_s: float,
) -> list[bytes]:  # fmt: skip
    """What ranks left in their arenas, by tasks on the executor of each; however large, no heap has to hold much.

    Args:
        context: the driver's Spark context.
        jobs: of the run.
        wanted: ranks, and what of theirs.
        executors: where the ranks are, by rank.
        locations: Spark's names of hosts and executors for these executors; raises if one is gone.
        timeout_s: how long other jobs may take the slots there.

    Raises:
        Misplaced: some slot there is taken by other jobs all the time.
        PeerLost: an executor is gone, or hangs.
    """
    found = [bytearray() for _ in wanted]
    pieces = [piece for number, (rank, memory) in enumerate(wanted) for piece in _cut(number, executors[rank], memory)]
    needed = {executors[rank]: rank for rank, _ in wanted}
    for start in range(0, len(pieces), _PIECES_AT_ONCE):
        some = pieces[start : start + _PIECES_AT_ONCE]
        retries = Retries(timeout_s)
        while (parts := _read(context, jobs, some, locations([piece.executor for piece in some]), needed)) is None:
            retries.pause_or_raise(Misplaced("a task was started away from the executor where a result lies"))
        for piece, part in zip(some, parts, strict=True):
            found[piece.number] += part
    return [bytes(one) for one in found]


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of something large that a rank left: number ``number`` of what is wanted."""

    number: int
    executor: str
    path: str
    start: int
    num_bytes: int


def _cut(number: int, executor: str, memory: Memory) -> list[_Piece]:
    return [
        _Piece(number, executor, memory.path, at, min(_PIECE_BYTES, memory.num_bytes - at))
        for at in range(0, memory.num_bytes, _PIECE_BYTES)
    ]


def _read(
    context: SparkContext,
    jobs: RunJobs,
    pieces: Sequence[_Piece],
    locations: Sequence[tuple[str, str]],
    needed: Mapping[str, int],
) -> list[bytes] | None:
    """One job, with a task for each piece; None: some task ran elsewhere."""
    read = placed(context, locations).mapPartitionsWithIndex(partial(_read_memory, pieces))
    found: dict[int, bytes] = dict(jobs.run("results", read.collect, needed))
    whole = all(len(found.get(at, b"")) == piece.num_bytes for at, piece in enumerate(pieces))
    return [found[at] for at in range(len(pieces))] if whole else None


def _read_memory(pieces: Sequence[_Piece], task: int, rows: Iterable[Any]) -> Iterator[tuple[int, bytes]]:
    """Runs on an executor: a piece, or nothing on another executor than the one that holds it."""
    drain(rows)
    piece = pieces[task]
    if here() != piece.executor:
        context = TaskContext.get()
        if context is not None and context.attemptNumber() > 0:
            # A speculative copy must not win with nothing over the attempt that is at the right place: it waits to be
            # killed when that one is done.
            threading.Event().wait(_COPY_WAITS_S)
        return
    with Path(piece.path).open("rb") as file:
        file.seek(piece.start)
        yield task, file.read(piece.num_bytes)
