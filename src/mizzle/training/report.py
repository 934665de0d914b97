"""What a rank tells all others with its gradients: the small part of a contribution. Fixed binary form, no pickle.

From all ranks' reports every rank computes the same loss and takes the same decisions, without another round.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from mizzle.errors import ModelError

MAX_REPORT_BYTES = 56 * 1024
_SHARD = struct.Struct("<IIdqd")
_HEAD = struct.Struct("<IIIfH")
_OTHER = struct.Struct("<II")

FINITE = -1


@dataclass(frozen=True, slots=True)
class ShardReport:
    """One shard's part of one iteration.

    Attributes:
        shard: its number.
        rows: how many it had, > 0.
        loss_sum: mean loss times rows, summed over micro-batches in float64.
        not_finite_at: first position of the flat vector whose gradient is NaN or infinite; `FINITE` for none.
        peak: largest magnitude in its gradient: the peaks of all shards together bound every element of their sum.
    """

    shard: int
    rows: int
    loss_sum: float
    not_finite_at: int = FINITE
    peak: float = 0.0

    @property
    def finite(self) -> bool:
        """Whether loss and gradient are."""
        return math.isfinite(self.loss_sum) and self.not_finite_at == FINITE


@dataclass(frozen=True, slots=True)
class RankReport:
    """All shards of a rank that had rows.

    Attributes:
        shards: ascending; without those that were dropped.
        changed: float buffers that one of them changed.
        others: other buffers that the lowest of them changed, as bytes.
        shard_s: seconds of compute for each shard that had rows, in single precision; 0 where none had.
        dropped: how many shards were given up because the rank's time was over.
    """

    shards: tuple[ShardReport, ...]
    changed: Collection[int]
    others: Mapping[int, bytes]
    shard_s: float = 0.0
    dropped: int = 0

    def pack(self) -> bytes:
        """The bytes that travel.

        Raises:
            ModelError: buffers that change in training and are not float32 are too large to travel.
        """
        mask = sum(1 << number for number in self.changed)
        mask_bytes = mask.to_bytes((mask.bit_length() + 7) // 8, "little")
        parts = [_HEAD.pack(len(self.shards), len(mask_bytes), len(self.others), self.shard_s, self.dropped)]
        parts += [_SHARD.pack(s.shard, s.rows, s.loss_sum, s.not_finite_at, s.peak) for s in self.shards]
        parts.append(mask_bytes)
        for number, raw in self.others.items():
            parts += [_OTHER.pack(number, len(raw)), raw]
        packed = b"".join(parts)
        if len(packed) > MAX_REPORT_BYTES:
            raise ModelError(
                f"buffers that are not float32 and change in forward take {sum(map(len, self.others.values()))} bytes; "
                f"all shard reports of a rank must stay below {MAX_REPORT_BYTES}: keep such state in float32 buffers"
            )
        return packed

    @classmethod
    def unpack(cls, raw: bytes) -> RankReport:
        """Read what `pack` wrote."""
        num_shards, mask_bytes, num_others, shard_s, dropped = _HEAD.unpack_from(raw)
        at = _HEAD.size
        shards = tuple(ShardReport(*_SHARD.unpack_from(raw, at + i * _SHARD.size)) for i in range(num_shards))
        at += num_shards * _SHARD.size
        mask = int.from_bytes(raw[at : at + mask_bytes], "little")
        at += mask_bytes
        others = {}
        for _ in range(num_others):
            number, length = _OTHER.unpack_from(raw, at)
            at += _OTHER.size
            others[number] = raw[at : at + length]
            at += length
        changed = {number for number in range(mask.bit_length()) if mask >> number & 1}
        return cls(shards, changed, others, shard_s, dropped)


@dataclass(frozen=True, slots=True)
class IterationReport:
    """All shards of all ranks: the same on every rank, and for every number of ranks.

    Attributes:
        shards: ascending; those that had rows, without those that were dropped: maybe none is left.
        changed: float buffers that some shard changed.
        others: other buffers that the lowest shard changed.
        dropped: how many shards were dropped.
    """

    shards: tuple[ShardReport, ...]
    changed: frozenset[int]
    others: Mapping[int, bytes]
    dropped: int = 0

    @classmethod
    def of(cls, reports: Sequence[RankReport]) -> IterationReport:
        """Put the ranks' reports together."""
        busy = sorted((report for report in reports if report.shards), key=lambda report: report.shards[0].shard)
        shards = sorted((shard for report in busy for shard in report.shards), key=lambda shard: shard.shard)
        changed = frozenset(number for report in busy for number in report.changed)
        dropped = sum(report.dropped for report in reports)
        return cls(tuple(shards), changed, busy[0].others if busy else {}, dropped)

    @property
    def rows(self) -> int:
        """Rows of the iteration."""
        return sum(shard.rows for shard in self.shards)

    @property
    def loss(self) -> float:
        """Mean loss over all rows, summed in shard order in float64; NaN where no shard is left."""
        return sum(shard.loss_sum for shard in self.shards) / self.rows if self.shards else math.nan

    @property
    def peak(self) -> float:
        """No element of the sum over shards, nor of any part of it, is larger than this."""
        return sum(shard.peak for shard in self.shards)

    @property
    def first_not_finite(self) -> ShardReport | None:
        """The lowest shard whose loss or gradient is NaN or infinite."""
        return next((shard for shard in self.shards if not shard.finite), None)
