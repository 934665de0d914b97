"""A rank's part of a checkpoint, written beside the training from memory that nobody changes meanwhile."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from mizzle.blocks.deadline import Deadline
from mizzle.collectives.slices import Slice
from mizzle.errors import CheckpointError
from mizzle.training.checkpoint import CheckpointStore

_TOLD = struct.Struct("<qBQ32s")
_WHY_BYTES = 100
"""Of a message: it is part of a group's result, which is small."""
_STOP_S = 1.0
"""For a part that was broken off: it ends with the next piece, where storage does not hang."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A checkpoint that ranks are to write.

    Attributes:
        name: of its folder.
        generation: of the ranks that may write it. Those of another one do not: a rank that should be dead may still be
            writing a file of that name, and not every storage refuses to write one twice.
    """

    name: str
    generation: int


class Progress(IntEnum):
    """How far a part is."""

    NOTHING = 0
    """There is none for this rank to write: another one holds the same."""
    UNDER_WAY = 1
    WRITTEN = 2
    FAILED = 3


@dataclass(frozen=True, slots=True)
class Told:
    """What a rank tells of the newest part that it was to write.

    Attributes:
        iteration: of the checkpoint's boundary; -1 where no part was wanted so far.
        progress: of it.
        num_bytes: written.
        sha256: of these.
        why: it failed.
    """

    iteration: int = -1
    progress: Progress = Progress.NOTHING
    num_bytes: int = 0
    sha256: bytes = bytes(32)
    why: str = ""

    def pack(self) -> bytes:
        """The bytes that travel: under 150."""
        head = _TOLD.pack(self.iteration, self.progress, self.num_bytes, self.sha256)
        return head + self.why.encode()[:_WHY_BYTES]

    @classmethod
    def unpack(cls, raw: bytes) -> Told:
        """Read what `pack` wrote."""
        iteration, progress, num_bytes, sha256 = _TOLD.unpack_from(raw)
        return cls(iteration, Progress(progress), num_bytes, sha256, raw[_TOLD.size :].decode(errors="replace"))


class PartWriter:
    """Writes a rank's parts one after the other, in a thread of its own each.

    A file is never written twice: after a fault the driver gives the checkpoint up.

    Args:
        store: where to.
        rank: that leaves the states.
    """

    def __init__(self, store: CheckpointStore, rank: int) -> None:
        """See the class."""
        self._store, self._rank = store, rank
        self._told = Told()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    @property
    def told(self) -> Told:
        """Of the newest part."""
        return self._told

    def break_off(self) -> None:
        """Have what is under way end; nobody waits for its part any more."""
        self._stop.set()

    def refuse(self, iteration: int, why: str) -> None:
        """Tell that there will be no part of this rank."""
        self._told = Told(iteration, Progress.FAILED, why=why)

    def begin(
        self, checkpoint: str, iteration: int, state: memoryview | None, owned: Sequence[Slice],
        done: Callable[[], None],
    ) -> None:  # fmt: skip
        """Write this rank's part of a checkpoint; the one before is done, or was broken off.

        Args:
            checkpoint: its name.
            iteration: of its boundary.
            state: stays as it is until ``done`` is called; None: this rank has nothing to write.
            owned: the ranges that the state holds.
            done: called once, maybe from another thread.
        """
        if state is None:
            self._told = Told(iteration)
            return
        if self._thread is not None:
            self._thread.join(_STOP_S)
        if self._is_writing:
            self.refuse(iteration, "storage hangs: the part before is still being written")
            done()
            return
        self._stop.clear()
        self._told = Told(iteration, Progress.UNDER_WAY)
        self._thread = threading.Thread(
            target=self._write, args=(checkpoint, iteration, state, owned, done), name="checkpoint", daemon=True
        )  # fmt: skip
        self._thread.start()

    def wait(self, deadline: Deadline) -> Told:
        """What came of the newest part, once it is written, or when time is up: then it is broken off."""
        if self._thread is not None:
            self._thread.join(deadline.remaining_s())
        if self._is_writing:
            self.break_off()
            why = "still being written: raise Checkpoints(timeout_s=...), or give it faster storage"
            return Told(self._told.iteration, Progress.FAILED, why=why)
        return self._told

    @property
    def _is_writing(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _write(
        self, checkpoint: str, iteration: int, state: memoryview, owned: Sequence[Slice], done: Callable[[], None]
    ) -> None:
        ranges = [(own.start, own.stop) for own in owned]
        try:
            part = self._store.write_part(checkpoint, self._rank, state, ranges, watch=self._watch)
            # Read again: older checkpoints are deleted when this one is there.
            self._store.check_part(checkpoint, part, watch=self._watch)
            self._told = Told(iteration, Progress.WRITTEN, part.num_bytes, bytes.fromhex(part.sha256))
        except Exception as error:  # noqa: BLE001 - the outermost frame of a thread
            self._told = Told(iteration, Progress.FAILED, why=f"{type(error).__name__}: {error}")
        finally:
            state.release()
            done()

    def _watch(self) -> None:
        if self._stop.is_set():
            raise CheckpointError(f"rank {self._rank} broke off its part: the run goes on without it")
