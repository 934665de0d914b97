"""Gradient clipping on owned ranges: by value, and by global L2 norm without a second pass over the vector.

The norm's bits do not depend on the number of ranks: squares are added in float64 per chunk of ALIGNMENT elements,
and chunks along one binary tree over the whole vector. A rank sends the tree nodes that lie within its ranges, at most
two a level for each of them (Merkle trees are proved in parts in the same way, RFC 6962).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from mizzle.collectives.slices import ALIGNMENT, Slice
from mizzle.errors import ConfigError

_NODE = struct.Struct("<BId")
_CHUNKS_AT_ONCE = 128  # 1 MB of float64: stays in a core's cache


@dataclass(frozen=True, slots=True)
class ClipByValue:
    """Every element of the mean gradient is brought into [-limit, limit], as ``clip_grad_value_`` does."""

    limit: float

    def __post_init__(self) -> None:
        """Refuse a limit that leaves nothing."""
        if not self.limit > 0:
            raise ConfigError(f"clipping by value needs a limit above 0, not {self.limit}")


@dataclass(frozen=True, slots=True)
class ClipByNorm:
    """The mean gradient's L2 norm over all parameters is brought to at most ``max_norm``, as ``clip_grad_norm_``."""

    max_norm: float

    def __post_init__(self) -> None:
        """Refuse a norm that leaves nothing."""
        if not self.max_norm > 0:
            raise ConfigError(f"clipping by norm needs a max_norm above 0, not {self.max_norm}")

    def coefficient(self, norm: float) -> float:
        """What to multiply the gradient with; 1.0 when its norm is small enough."""
        return min(1.0, self.max_norm / (norm + 1e-6))


def norm_message(gradient: torch.Tensor, owned: Iterable[Slice], num_parameters: int) -> bytes:
    """One rank's part of the global norm: sums of squares of the tree nodes within its ranges.

    Args:
        gradient: (n,) fp32, the parameters' part of the ranges, one behind the other; whole chunks.
        owned: the ranges, ascending, starts at multiples of ALIGNMENT; what lies behind the parameters is left out.
        num_parameters: elements of the whole vector that belong to parameters, a multiple of ALIGNMENT.

    Returns:
        At most 13 bytes for two nodes a level of every range: 270 for one of a million elements.
    """
    sums = chunk_sums(gradient)
    parts = []
    for own in owned:
        count = max(0, min(own.stop, num_parameters) - own.start) // ALIGNMENT
        parts += _maximal_nodes(sums[:count], own.start // ALIGNMENT, num_parameters // ALIGNMENT)
        sums = sums[count:]
    return b"".join(_NODE.pack(*node) for node in parts)


def global_norm(messages: Iterable[bytes], num_parameters: int) -> float:
    """The L2 norm from every rank's `norm_message`: the same bits on every rank and for every number of ranks."""
    values: dict[tuple[int, int], float] = {}
    for message in messages:
        for level, index, value in _NODE.iter_unpack(message):
            values[level, index] = value
    level, width = 0, num_parameters // ALIGNMENT
    while width > 1:
        for level_, index in sorted(values):
            if level_ == level and index % 2 == 0:
                left = values.pop((level, index))
                lone = index + 1 == width
                values[level + 1, index // 2] = left if lone else left + values.pop((level, index + 1))
        level, width = level + 1, -(-width // 2)
    return math.sqrt(values[level, 0])


def chunk_sums(gradient: torch.Tensor) -> npt.NDArray[np.float64]:
    """Sums of squares per chunk of ALIGNMENT elements, in float64.

    Halved step by step, element by element, so that a chunk's bits depend on nothing but its values.
    """
    chunks = gradient.numpy().reshape(-1, ALIGNMENT)
    sums = np.empty(len(chunks), dtype=np.float64)
    # inf - inf and overflow are for the caller's policy on values that are not finite
    with np.errstate(invalid="ignore", over="ignore"):
        for first in range(0, len(chunks), _CHUNKS_AT_ONCE):
            part = chunks[first : first + _CHUNKS_AT_ONCE].astype(np.float64)
            np.multiply(part, part, out=part)
            width = ALIGNMENT
            while width > 1:
                width //= 2
                part[:, :width] += part[:, width : 2 * width]
            sums[first : first + len(part)] = part[:, 0]
    return sums


def _maximal_nodes(sums: npt.NDArray[np.float64], first: int, width: int) -> list[tuple[int, int, float]]:
    """The tree nodes (level, index, sum) that cover chunks [first, first + len(sums)) of ``width`` chunks.

    On every level neighbours 2k and 2k+1 are added; the last node of an odd level goes up as it is.
    """
    nodes: list[tuple[int, int, float]] = []
    level = 0
    while len(sums):
        if width == 1:
            nodes.append((level, 0, float(sums[0])))
            break
        if first % 2:
            nodes.append((level, first, float(sums[0])))
            sums, first = sums[1:], first + 1
        lone = sums[:0]
        if len(sums) % 2:
            last = first + len(sums) - 1
            if last == width - 1:
                lone = sums[-1:]
            else:
                nodes.append((level, last, float(sums[-1])))
            sums = sums[:-1]
        sums = np.concatenate([sums[0::2] + sums[1::2], lone])
        level, first, width = level + 1, first // 2, -(-width // 2)
    return nodes
