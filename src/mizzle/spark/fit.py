"""One fit under way, seen from the driver: deal the rows, settle the ranks, play group after group, fetch the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import safetensors.torch
import torch
from pyspark import SparkContext, cloudpickle

from mizzle.config import RunConfig
from mizzle.scheduling.plan import EPOCH_END, Group, Triggers
from mizzle.scheduling.tuner import TunerConfig, sizer_for
from mizzle.spark.course import play
from mizzle.spark.dealing import Dealing
from mizzle.spark.driver import DriverSide
from mizzle.spark.progress import TrainingProgress
from mizzle.spark.runner import GroupRunner, Memory
from mizzle.spark.slow import note_stragglers
from mizzle.spark.train_task import Finished, FinishOrder, TrainOrder, TrainWork
from mizzle.spark.validate import CheckedFrame
from mizzle.training.group_metrics import GroupMetrics
from mizzle.training.history import TrainingHistory
from mizzle.training.loss_log import LossLog
from mizzle.training.schedule import HyperSchedule
from mizzle.training.spec import TrainingSpec
from mizzle.training.stopping import EarlyStopping, StoppingState
from mizzle.training.trace import RankTrace, read_trace

_ORDER_BYTES = 512 * 1024
"""Of hyper-parameters in one group's order: the bridge takes 1 MiB."""


@dataclass(frozen=True, slots=True)
class FitPlan:
    """All that is settled before anything starts.

    Attributes:
        spec: of the training, on its rows and shards.
        packed: initial model, spec and columns, pickled together.
        rows: the training rows.
        held_out: the validation rows, or None.
        shards_of_rank: by rank, at the start.
        least_ranks: without which the run waits for executors.
        most_ranks: that are wanted.
        triggers: where groups end.
        layout: of the run.
        stop: when to stop early, or None.
    """

    spec: TrainingSpec
    packed: bytes
    rows: CheckedFrame
    held_out: CheckedFrame | None
    shards_of_rank: tuple[tuple[int, ...], ...]
    least_ranks: int
    most_ranks: int
    triggers: Triggers
    layout: RunConfig
    stop: EarlyStopping | None

    def validates(self, group: Group) -> bool:
        """Whether the validation rows are evaluated behind a group."""
        fired = self.triggers.fires(group.stop)
        # Without a period of its own, validation comes with every epoch.
        return self.held_out is not None and any(name != EPOCH_END or not self.triggers.every for name in fired)


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a fit ended with.

    Attributes:
        model: the trained model's ``state_dict()``.
        history: of the run.
        memory_bytes: by purpose, of the rank that held most.
        traces: by rank; empty where none was wanted.
    """

    model: dict[str, torch.Tensor]
    history: TrainingHistory
    memory_bytes: Mapping[str, int]
    traces: Mapping[int, RankTrace]


def run_fit(
    context: SparkContext, driver: DriverSide, run: str, plan: FitPlan, schedule: HyperSchedule,
    progress: TrainingProgress,
) -> Fitted:  # fmt: skip
    """Train.

    Args:
        context: the driver's Spark context.
        driver: its half of the plugin.
        run: the run's id, begun.
        plan: of the fit.
        schedule: at its start.
        progress: is shown every group.
    """
    frames = {"shard": plan.rows} | ({} if plan.held_out is None else {"validation": plan.held_out})
    dealing = Dealing(
        context, driver, run, frames, partial(_work_of, plan.packed), least=plan.least_ranks, most=plan.most_ranks,
        one_each=plan.layout.ranks is None, timeout_s=plan.layout.timeout_s,
    )  # fmt: skip
    staff = dealing.begin(plan.shards_of_rank)
    history, stopping = TrainingHistory(), plan.stop and StoppingState(plan.stop)
    sizer = sizer_for(plan.layout.group_size, TunerConfig(max_group_s=plan.layout.max_group_s))

    def order_of(group: Group) -> TrainOrder:
        return TrainOrder(group, tuple(schedule.ahead(group.size)), evaluate=plan.validates(group))

    largest = partial(schedule.fits, _ORDER_BYTES)
    with GroupRunner(context, driver, run, plan.layout, staff, restaff=dealing) as runner:
        for played in play(runner, plan.triggers, sizer, order_of, GroupMetrics.unpack, largest):
            history.add_group(played.record, played.metrics)
            note_stragglers(run, history, played.metrics[0].stragglers, runner.where)
            progress.update(history, played.record.rows, played.record.wall_s)
            evaluation = played.metrics[0].evaluation
            if stopping and evaluation is not None and stopping.observe(stopping.rule.value(evaluation)):
                break
        finished: list[Finished]
        finished, (model, log, *traces) = runner.results(
            "the trained model", FinishOrder(), history.iterations, _left_behind
        )
    history.faults.extend(runner.faults)
    history.complete(LossLog.unpack(log), plan.spec.order())
    most = max((one.memory_bytes for one in finished), key=lambda held: sum(held.values()))
    return Fitted(safetensors.torch.load(model), history, most, dict(enumerate(map(read_trace, traces))))


def _left_behind(finished: Sequence[Finished]) -> list[tuple[int, Memory]]:
    """What the driver fetches of what the ranks left: model and log of one, the traces of all."""
    wanted = [(0, finished[0].model), (0, finished[0].log), *((rank, one.trace) for rank, one in enumerate(finished))]
    return [(rank, memory) for rank, memory in wanted if memory is not None]


def _work_of(
    packed: bytes, shards_of_rank: tuple[tuple[int, ...], ...], files: Mapping[str, Mapping[int, str]]
) -> bytes:
    work = TrainWork(packed, shards_of_rank, files["shard"], files.get("validation", {}))
    pickled: bytes = cloudpickle.dumps(work)  # type: ignore[no-untyped-call]
    return pickled
