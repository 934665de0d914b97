"""Whether an iteration may update the weights: decided from what all ranks were told, so the same on every rank."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mizzle.collectives.wire import Wire
from mizzle.training.flat import FlatParameters
from mizzle.training.report import IterationReport, RankReport

FP16_LIMIT = 65520.0
"""From here on float16 rounds to infinity."""
_FP16_ADVICE = "65504, where float16 ends on its way: wire='bf16' goes further, and gradients are clipped later"
_SUM_LIMIT = 3.38e38
"""Below it float32 sums, and bfloat16 roundings, cannot become infinite."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why an iteration must not update the weights.

    Attributes:
        text: what is wrong, and where; the same on every rank.
        rank: that it came from; -1 where it is nobody's.
        may_raise: whether it is an error by the policy ``raise``; if not, the iteration is left out in any case.
    """

    text: str
    rank: int = -1
    may_raise: bool = True


def fault_of(
    report: IterationReport, reports: Sequence[RankReport], flat: FlatParameters, wire: Wire, *, sends_sums: bool
) -> Fault | None:
    """Judge what the ranks reported.

    Args:
        report: of all shards.
        reports: by rank.
        flat: layout of the model, for names.
        wire: of the gradients.
        sends_sums: whether sums of several ranks travel.
    """
    if not report.shards:
        return Fault("no shard was computed in time", may_raise=False)
    bad = report.first_not_finite
    if bad is None:
        return _sum_fault(report.peak, wire, sends_sums=sends_sums)
    rank = next(rank for rank, one in enumerate(reports) if bad in one.shards)
    if not math.isfinite(bad.loss_sum):
        return Fault(f"the loss of shard {bad.shard} is {bad.loss_sum}, on rank {rank}", rank)
    limit = f", or, times the shard's rows, over {_FP16_ADVICE}" if wire is Wire.FP16 else ""
    name = flat.name_at(bad.not_finite_at)
    return Fault(f"the gradient of {name!r} from shard {bad.shard} is not finite, on rank {rank}{limit}", rank)


def _sum_fault(peak: float, wire: Wire, *, sends_sums: bool) -> Fault | None:
    if wire is Wire.FP16 and sends_sums and peak >= FP16_LIMIT:
        return Fault(f"the sum of the shards' gradients may reach {peak:.3g}, over {_FP16_ADVICE}")
    if peak >= _SUM_LIMIT:
        return Fault(f"the sum of the shards' gradients may reach {peak:.3g}, which float32 cannot hold")
    return None
