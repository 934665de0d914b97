"""The loss of every iteration, kept on the ranks and sent to the driver once, at the end of a run.

A group's result stays small whatever its size, and no loss is forgotten when a rank is rebuilt at a boundary: the log
is part of the rank's state. Every rank has the same one, because every rank computes the same loss.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mizzle.errors import ConfigError

_HEAD = struct.Struct("<QQ")
_CAPACITY = 512


class LossLog:
    """Loss and skipped or not, iteration after iteration without a gap.

    Memory grows by doubling, 9 bytes an iteration: so the length of a state seldom changes.

    Attributes:
        first: the iteration that the log begins with; 0 in a run that was followed from its start.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.first = 0
        self._length = 0
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

    def append(self, iteration: int, loss: float, *, skipped: bool) -> None:
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

    def pack(self) -> bytes:
        """The bytes that travel: 8 for every iteration, and a bit."""
        marks = np.packbits(self._skipped[: self._length])
        return _HEAD.pack(self.first, self._length) + self.losses.tobytes() + marks.tobytes()

    @classmethod
    def unpack(cls, raw: bytes) -> LossLog:
        """Read what `pack` wrote.

        Raises:
            ConfigError: these are not the bytes of a log.
        """
        first, length = _HEAD.unpack_from(raw) if len(raw) >= _HEAD.size else (0, -1)
        if len(raw) != _HEAD.size + 8 * length + -(-length // 8):
            raise ConfigError(f"{len(raw)} bytes given as a log of losses are not one")
        marks = np.frombuffer(raw, dtype=np.uint8, offset=_HEAD.size + 8 * length)
        log = cls()
        log._fill(
            first,
            np.frombuffer(raw, dtype=np.float64, count=length, offset=_HEAD.size).copy(),
            np.unpackbits(marks, count=length).astype(np.bool_),
            length,
        )
        return log

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """What a rank's state keeps of it: tensors (not copied) and numbers."""
        tensors = {"log.losses": torch.from_numpy(self._losses), "log.skipped": torch.from_numpy(self._skipped)}
        return tensors, {"first": self.first, "length": self._length}

    def load_state(self, tensors: Mapping[str, torch.Tensor], scalars: Mapping[str, Any]) -> None:
        """Take what `state` gave; what was noted after it is forgotten."""
        losses, skipped = (tensors[name].numpy().copy() for name in ("log.losses", "log.skipped"))
        self._fill(scalars["first"], losses, skipped, scalars["length"])

    def _fill(
        self, first: int, losses: npt.NDArray[np.float64], skipped: npt.NDArray[np.bool_], length: int
    ) -> None:  # fmt: skip
        self.first, self._length = first, length
        self._losses = losses if len(losses) else np.zeros(_CAPACITY, dtype=np.float64)
        self._skipped = skipped if len(skipped) else np.zeros(_CAPACITY, dtype=np.bool_)
