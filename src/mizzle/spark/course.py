"""The course of a run: group after group, each as large as the plan and the tuner say, until a trigger ends it.

What was measured of a group decides on the next one's size, and is kept with the reason.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from mizzle.scheduling.plan import Group, Triggers
from mizzle.scheduling.tuner import GroupSizer, GroupTiming
from mizzle.spark.runner import GroupRunner
from mizzle.training.group_metrics import GroupMetrics
from mizzle.training.history import GroupRecord

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Played:
    """One group that was run.

    Attributes:
        group: as planned.
        results: what the ranks returned, by rank.
        metrics: of the ranks, by rank.
        record: for the history.
    """

    group: Group
    results: list[Any]
    metrics: list[GroupMetrics]
    record: GroupRecord


def play(
    runner: GroupRunner,
    triggers: Triggers,
    sizer: GroupSizer,
    order_of: Callable[[Group], object],
    metrics_of: Callable[[Any], GroupMetrics],
    largest: Callable[[], int] | None = None,
    *,
    first: int = 0,
    number: int = 0,
) -> Iterator[Played]:
    """Run groups until the last iteration, or until the caller stops asking, or the ranks stopped early.

    Args:
        runner: of the run.
        triggers: where groups end.
        sizer: says how large the next group may be.
        order_of: what the ranks are told for a group.
        metrics_of: what a rank returned -> its metrics; fewer iterations than ordered mean that the ranks stopped.
        largest: how many iterations an order can describe now; None: any number.
        first: the iteration to begin with.
        number: of the first group.

    Raises:
        MizzleError: as `GroupRunner.run_group` does.
    """
    while first < triggers.num_iterations:
        size, limit = sizer.decision.size, sizer.decision.limit
        if largest is not None and largest() < size:
            size, limit = largest(), "order size"
        group = triggers.next_group(number, first, size, limit=limit)
        done = runner.run_group(group, order_of(group))
        metrics = [
            replace(metrics_of(result), span_s=span) for result, span in zip(done.results, done.spans, strict=True)
        ]  # fmt: skip
        # The rank that started last waited for nobody: its time in iterations is what the group really took.
        working_s = min(one.iterating_s + one.evaluate_s for one in metrics)
        timing = GroupTiming(metrics[0].iterations, done.wall_s, max(0.0, done.wall_s - working_s))
        reason = sizer.observe(timing).reason
        cut = group.cut if metrics[0].iterations == group.size else "stop"
        record = GroupRecord.of(
            metrics, number=number, first=first, epoch=group.epoch, cut=cut, wall_s=done.wall_s,
            driver_cpu_s=done.driver_cpu_s, decision=reason,
        )  # fmt: skip
        _note(runner.run, record)
        yield Played(group, done.results, metrics, record)
        if record.size < group.size:
            return
        first, number = group.stop, number + 1


def _note(run: str, record: GroupRecord) -> None:
    _log.info(
        "run=%s iterations=%d-%d epoch=%d loss=%g K=%d cut=%r wall_s=%.3f launch_s=%.3f wait_s=%.3f compute_s=%.3f "
        "exchange_s=%.3f hidden_s=%.3f update_s=%.3f boundary_s=%.3f driver_cpu_s=%.3f decision=%r",
        run[:4], record.first, record.stop - 1, record.epoch, record.loss, record.size, record.cut, record.wall_s,
        record.launch_s, record.wait_s, record.compute_s, record.exchange_s, record.hidden_s, record.update_s,
        record.boundary_s, record.driver_cpu_s, record.decision,
    )  # fmt: skip
