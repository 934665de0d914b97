"""What a training leaves behind for its user: losses, epochs, where the time went. Plain numbers, JSON-able.

Filled by the driver, group by group, from the ranks' metrics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from mizzle.training.spec import IterationMetrics, IterationPlan


@dataclass(slots=True)
class EpochSummary:
    """One epoch.

    Attributes:
        epoch: 0-based.
        rows: seen so far.
        loss: mean over these rows, each at the weights of its iteration; skipped iterations are left out, NaN when
            all were skipped.
        iterations: done so far.
    """

    epoch: int
    rows: int = 0
    loss: float = math.nan
    iterations: int = 0


@dataclass(slots=True)
class TimeSplit:
    """Seconds of wall clock within the groups, mean over ranks; checking and dealing the rows come on top.

    Attributes:
        compute_s: forward, backward and reading rows.
        exchange_s: gradients and weights between ranks, waiting for slower ranks included.
        update_s: clipping and optimizer.
        scheduling_s: the rest: launching the group's job and its end.
    """

    compute_s: float = 0.0
    exchange_s: float = 0.0
    update_s: float = 0.0
    scheduling_s: float = 0.0


@dataclass(slots=True)
class TrainingHistory:
    """A training, iteration by iteration.

    Attributes:
        losses: mean loss of every iteration, NaN and infinite ones of skipped iterations included.
        skipped: iterations whose update was left out.
        epochs: one for each epoch begun.
        time: where the time went.
    """

    losses: list[float] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    epochs: list[EpochSummary] = field(default_factory=list)
    time: TimeSplit = field(default_factory=TimeSplit)

    def add_group(
        self, plans: Sequence[IterationPlan], metrics: Sequence[Sequence[IterationMetrics]], wall_s: float
    ) -> None:
        """Take in one group.

        Args:
            plans: its iterations.
            metrics: of every rank, for each of these iterations; at least one rank.
            wall_s: seconds from launching the group to its end, as the driver saw it.
        """
        for plan, seen in zip(plans, zip(*metrics, strict=True), strict=True):
            assert len({repr(one.loss) for one in seen}) == 1, f"ranks differ in iteration {plan.iteration}: {seen}"
            self._add(plan, seen[0])
        ranks = len(metrics)
        before = self.time.compute_s + self.time.exchange_s + self.time.update_s
        self.time.compute_s += sum(one.compute_s for rank in metrics for one in rank) / ranks
        self.time.exchange_s += sum(one.exchange_s for rank in metrics for one in rank) / ranks
        self.time.update_s += sum(one.update_s for rank in metrics for one in rank) / ranks
        inside = self.time.compute_s + self.time.exchange_s + self.time.update_s - before
        self.time.scheduling_s += max(0.0, wall_s - inside)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: a loss that is not finite becomes None, which JSON can hold."""
        found = asdict(self)
        found["losses"] = [loss if math.isfinite(loss) else None for loss in self.losses]
        for epoch in found["epochs"]:
            epoch["loss"] = epoch["loss"] if math.isfinite(epoch["loss"]) else None
        return found

    def _add(self, plan: IterationPlan, seen: IterationMetrics) -> None:
        self.losses.append(seen.loss)
        if not self.epochs or self.epochs[-1].epoch != plan.epoch:
            self.epochs.append(EpochSummary(plan.epoch))
        epoch = self.epochs[-1]
        epoch.iterations += 1
        if seen.skipped:
            self.skipped.append(plan.iteration)
            return
        before = epoch.loss * epoch.rows if epoch.rows else 0.0
        epoch.rows += seen.rows
        epoch.loss = (before + seen.loss * seen.rows) / epoch.rows
