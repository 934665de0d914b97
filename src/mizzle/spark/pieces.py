"""Parts of something large that a rank left in its arena: read by tasks on its executor, one part each."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyspark import TaskContext

from mizzle.spark.placement import drain, here

_COPY_WAITS_S = 10.0


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of something large that a rank left: number ``number`` of what is wanted."""

    number: int
    executor: str
    path: str
    start: int
    num_bytes: int


def read_piece(pieces: Sequence[Piece], task: int, rows: Iterable[Any]) -> Iterator[tuple[int, bytes]]:
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
