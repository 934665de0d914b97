"""The loss of every iteration, kept on the ranks and sent to the driver once, at the end of a run.

A group's result stays small whatever its size, and no loss is forgotten when a rank is rebuilt at a boundary: the log
is part of the rank's state. Every rank has the same one, because every rank computes the same loss.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mizzle.errors import ConfigError

_HEAD = struct.Struct("<QQ")
_DROPPED = struct.Struct("<QII")
_CAPACITY = 512


@dataclass(frozen=True, slots=True)
class Dropped:
    """What was dropped of one iteration, of all ranks.

    Attributes:
        iteration: of the run.
        shards: how many did not arrive.
        rows: of theirs.
    """

    iteration: int
    shards: int
    rows: int


class LossLog:
    """Loss and skipped or not, iteration after iteration without a gap; and what was dropped, where it was.

    Memory grows by doubling, 9 bytes an iteration: so the length of a state seldom changes. What is dropped takes 24
    bytes an iteration, as most iterations of most runs are whole.

    Attributes:
        first: the iteration that the log begins with; 0 in a run that was followed from its start.
        dropped: of the iterations that lack some shards, ascending.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.first = 0
        self._length = 0
        self.dropped: list[Dropped] = []
        self._losses = np.zeros(_CAPACITY, dtype=np.float64)
        self._skipped = np.zeros(_CAPACITY, dtype=np.bool_)

    def __len__(self) -> int:
        """Iterations seen."""
        return self._length

    @property
    def losses(self) -> npt.NDArray[np.float64]:
        """Mean loss of every iteration, (len,) float64: a view."""
        return self._losses[: self._length]

    @property
    def skipped(self) -> list[int]:
        """Iterations whose update was left out."""
        return [self.first + int(at) for at in np.flatnonzero(self._skipped[: self._length])]

    def append(
        self, iteration: int, loss: float, *, skipped: bool, dropped_shards: int = 0, dropped_rows: int = 0
    ) -> None:
        """Note the next iteration."""
        if not self._length:
            self.first = iteration
        assert iteration == self.first + self._length, f"iteration {iteration} after {self.first + self._length - 1}"
        if self._length == len(self._losses):
            self._losses = np.concatenate([self._losses, np.zeros_like(self._losses)])
            self._skipped = np.concatenate([self._skipped, np.zeros_like(self._skipped)])
        self._losses[self._length] = loss
        self._skipped[self._length] = skipped
        self._length += 1
        if dropped_shards:
            self.dropped.append(Dropped(iteration, dropped_shards, dropped_rows))

    def pack(self) -> bytes:
        """The bytes that travel: 8 for every iteration, and a bit, and 16 for each that lacks some shards."""
        marks = np.packbits(self._skipped[: self._length])
        dropped = b"".join(_DROPPED.pack(*astuple(one)) for one in self.dropped)
        return _HEAD.pack(self.first, self._length) + self.losses.tobytes() + marks.tobytes() + dropped

    @classmethod
    def unpack(cls, raw: bytes) -> LossLog:
        """Read what `pack` wrote.

        Raises:
            ConfigError: these are not the bytes of a log.
        """
        first, length = _HEAD.unpack_from(raw) if len(raw) >= _HEAD.size else (0, -1)
        start = _HEAD.size + 8 * length
        stop = start + -(-length // 8)
        if length < 0 or len(raw) < stop or (len(raw) - stop) % _DROPPED.size:
            raise ConfigError(f"{len(raw)} bytes given as a log of losses are not one")
        marks = np.frombuffer(raw, dtype=np.uint8, offset=start, count=stop - start)
        log = cls()
        log._fill(
            first,
            np.frombuffer(raw, dtype=np.float64, count=length, offset=_HEAD.size).copy(),
            np.unpackbits(marks, count=length).astype(np.bool_),
            length,
        )
        log.dropped = [Dropped(*one) for one in _DROPPED.iter_unpack(raw[stop:])]
        return log

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """What a rank's state keeps of it: tensors (not copied) and numbers."""
        capacity = 1 << (len(self.dropped) - 1).bit_length() if self.dropped else 0
        dropped = torch.zeros(capacity, 3, dtype=torch.int64)
        if self.dropped:
            dropped[: len(self.dropped)] = torch.tensor([astuple(one) for one in self.dropped])
        tensors = {
            "log.losses": torch.from_numpy(self._losses), "log.skipped": torch.from_numpy(self._skipped),
            "log.dropped": dropped,
        }  # fmt: skip
        return tensors, {"first": self.first, "length": self._length, "dropped": len(self.dropped)}

    def load_state(self, tensors: Mapping[str, torch.Tensor], scalars: Mapping[str, Any]) -> None:
        """Take what `state` gave; what was noted after it is forgotten."""
        losses, skipped = (tensors[name].numpy().copy() for name in ("log.losses", "log.skipped"))
        self._fill(scalars["first"], losses, skipped, scalars["length"])
        self.dropped = [Dropped(*one) for one in tensors["log.dropped"][: scalars["dropped"]].tolist()]

    def _fill(
        self, first: int, losses: npt.NDArray[np.float64], skipped: npt.NDArray[np.bool_], length: int
    ) -> None:  # fmt: skip
        self.first, self._length = first, length
        self._losses = losses if len(losses) else np.zeros(_CAPACITY, dtype=np.float64)
        self._skipped = skipped if len(skipped) else np.zeros(_CAPACITY, dtype=np.bool_)
