"""What a rank tells the driver of one group: a few numbers, however many iterations it had. Fixed binary form.

The loss of every iteration stays on the ranks until the run ends (`mizzle.training.loss_log`): a task's result of less
than 1 KB costs Spark the same for K = 1 and K = 1000.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from mizzle.training.evaluate import Evaluation
from mizzle.training.spec import IterationMetrics
from mizzle.training.stragglers import Straggler

_GROUP = struct.Struct("<IQddI7dIQBB")
_STRAGGLER = struct.Struct("<HIIf")
_EVALUATION = struct.Struct("<QIQdB")
_VALUE = struct.Struct("<d")
MAX_STRAGGLERS = 4
"""The slowest are told of: a task's result must stay small."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupMetrics:
    """What a rank saw of one group; times are its own, everything else is the same on every rank.

    Attributes:
        iterations: done.
        rows: of all ranks, in all of them; skipped iterations included.
        last_loss: of the last iteration.
        mean_loss: over the rows of the iterations that were not skipped; NaN when all were.
        skipped: how many iterations' update was left out.
        compute_s: seconds in reading rows, forward and backward.
        exchange_s: seconds in the exchange, waiting for slower ranks included, also for those that started later.
        update_s: seconds in clipping and the optimizer.
        hidden_s: seconds of exchange that were done during ``compute_s``, on top of ``exchange_s``.
        evaluate_s: seconds in evaluating the validation rows behind the last iteration.
        boundary_s: seconds in keeping the state for the boundary.
        span_s: seconds from receiving the group's order to its outcome.
        dropped_shards: not computed because a rank's time was over, all iterations and ranks together.
        dropped_rows: of these; they are not among ``rows``.
        stragglers: ranks that were slow, the slowest first; at most four.
        evaluation: behind the last iteration; None when there was none.
    """

    iterations: int
    rows: int
    last_loss: float
    mean_loss: float
    skipped: int
    compute_s: float
    exchange_s: float
    update_s: float
    hidden_s: float = 0.0
    evaluate_s: float = 0.0
    boundary_s: float = 0.0
    span_s: float = 0.0
    dropped_shards: int = 0
    dropped_rows: int = 0
    stragglers: tuple[Straggler, ...] = ()
    evaluation: Evaluation | None = None

    @classmethod
    def of(
        cls, metrics: Sequence[IterationMetrics], *,
        evaluate_s: float = 0.0, boundary_s: float = 0.0, span_s: float = 0.0, evaluation: Evaluation | None = None,
        stragglers: Sequence[Straggler] = (),
    ) -> GroupMetrics:  # fmt: skip
        """Add up the iterations of a group, at least one."""
        counted = [one for one in metrics if not one.skipped]
        counted_rows = sum(one.rows for one in counted)
        mean = sum(one.loss * one.rows for one in counted) / counted_rows if counted else math.nan
        return cls(
            iterations=len(metrics), rows=sum(one.rows for one in metrics), last_loss=metrics[-1].loss, mean_loss=mean,
            skipped=len(metrics) - len(counted), compute_s=sum(one.compute_s for one in metrics),
            exchange_s=sum(one.exchange_s for one in metrics), update_s=sum(one.update_s for one in metrics),
            hidden_s=sum(one.hidden_s for one in metrics),
            evaluate_s=evaluate_s, boundary_s=boundary_s, span_s=span_s, evaluation=evaluation,
            dropped_shards=sum(one.dropped_shards for one in metrics),
            dropped_rows=sum(one.dropped_rows for one in metrics), stragglers=tuple(stragglers[:MAX_STRAGGLERS]),
        )  # fmt: skip

    @property
    def iterating_s(self) -> float:
        """Seconds in iterations."""
        return self.compute_s + self.exchange_s + self.update_s

    def pack(self) -> bytes:
        """The bytes that travel: under 600 with eight metrics."""
        parts = [
            _GROUP.pack(
                self.iterations, self.rows, self.last_loss, self.mean_loss, self.skipped, self.compute_s,
                self.exchange_s, self.update_s, self.hidden_s, self.evaluate_s, self.boundary_s, self.span_s,
                self.dropped_shards, self.dropped_rows, len(self.stragglers), self.evaluation is not None,
            ),
            *(_STRAGGLER.pack(one.rank, one.since, one.iterations, one.factor) for one in self.stragglers),
        ]  # fmt: skip
        if self.evaluation is not None:
            found = self.evaluation
            parts.append(
                _EVALUATION.pack(found.iteration, found.epoch, found.rows, found.loss, len(found.metrics))
            )  # fmt: skip
            for name, value in found.metrics.items():
                raw = name.encode()
                parts += [bytes([len(raw)]), raw, _VALUE.pack(value)]
        return b"".join(parts)

    @classmethod
    def unpack(cls, raw: bytes) -> GroupMetrics:
        """Read what `pack` wrote."""
        *numbers, slow, evaluated = _GROUP.unpack_from(raw)
        names = (
            "iterations", "rows", "last_loss", "mean_loss", "skipped", "compute_s", "exchange_s", "update_s",
            "hidden_s", "evaluate_s", "boundary_s", "span_s", "dropped_shards", "dropped_rows",
        )  # fmt: skip
        stop = _GROUP.size + slow * _STRAGGLER.size
        stragglers = tuple(Straggler(*one) for one in _STRAGGLER.iter_unpack(raw[_GROUP.size : stop]))
        evaluation = _unpack_evaluation(raw, stop) if evaluated else None
        return cls(**dict(zip(names, numbers, strict=True)), stragglers=stragglers, evaluation=evaluation)


def _unpack_evaluation(raw: bytes, at: int) -> Evaluation:
    iteration, epoch, rows, loss, count = _EVALUATION.unpack_from(raw, at)
    at += _EVALUATION.size
    metrics: dict[str, float] = {}
    for _ in range(count):
        start, stop = at + 1, at + 1 + raw[at]
        (metrics[raw[start:stop].decode()],) = _VALUE.unpack_from(raw, stop)
        at = stop + _VALUE.size
    return Evaluation(iteration, epoch, rows, loss, metrics)
