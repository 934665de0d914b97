"""One fit under way, seen from the driver: deal the rows, settle the ranks, play group after group, fetch the model.

Where the states of a boundary are lost, it goes back to the newest checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import safetensors.torch
import torch
from pyspark import SparkContext, cloudpickle

from mizzle.config import RunConfig
from mizzle.errors import CheckpointError, MizzleError, StateLost
from mizzle.scheduling.plan import END, EPOCH_END, Group, Triggers
from mizzle.scheduling.tuner import TunerConfig, sizer_for
from mizzle.spark.course import Played, play
from mizzle.spark.dealing import Dealing
from mizzle.spark.driver import DriverSide
from mizzle.spark.origin import Origin
from mizzle.spark.progress import TrainingProgress
from mizzle.spark.ranks.outcome import Memory
from mizzle.spark.ranks.part_writer import Told
from mizzle.spark.ranks.train_task import Finished, FinishOrder, SaveOrder, TrainOrder, TrainWork
from mizzle.spark.runner import GroupRunner
from mizzle.spark.saving import Saving
from mizzle.spark.slow import note_stragglers
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
_MOST_RETURNS = 3
"""To the same checkpoint: what comes behind it takes all copies of a state with it."""
_MOST_LAST_SAVES = 3
VALIDATION = "validation"
"""Name of the trigger of a period in iterations."""


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
        origin: where it begins or goes on.
        saving: of checkpoints, or None.
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
    origin: Origin
    saving: Saving | None

    def validates(self, group: Group) -> bool:
        """Whether the validation rows are evaluated behind a group."""
        # Without a period of its own, validation comes with every epoch.
        usual = VALIDATION if VALIDATION in self.triggers.every else EPOCH_END
        return self.held_out is not None and bool({usual, END} & set(self.triggers.fires(group.stop)))


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
    context: SparkContext, driver: DriverSide, run: str, plan: FitPlan, schedule_of: Callable[[], HyperSchedule],
    progress: TrainingProgress,
) -> Fitted:  # fmt: skip
    """Train.

    Args:
        context: the driver's Spark context.
        driver: its half of the plugin.
        run: the run's id, begun.
        plan: of the fit.
        schedule_of: makes the schedule as it is at the start.
        progress: is shown every group.
    """
    frames = {"shard": plan.rows} | ({} if plan.held_out is None else {"validation": plan.held_out})
    dealing = Dealing(
        context, driver, run, frames, partial(_work_of, plan), least=plan.least_ranks, most=plan.most_ranks,
        one_each=plan.layout.ranks is None, timeout_s=plan.layout.timeout_s,
    )  # fmt: skip
    staff, since = dealing.begin(plan.shards_of_rank), plan.origin.boundary
    with GroupRunner(context, driver, run, plan.layout, staff, restaff=dealing, since=since) as runner:
        return _Fit(plan, runner, schedule_of, progress).train()


class _Fit:
    """A fit whose ranks can be ordered about."""

    def __init__(
        self, plan: FitPlan, runner: GroupRunner, schedule_of: Callable[[], HyperSchedule], progress: TrainingProgress
    ) -> None:  # fmt: skip
        self._plan, self._runner, self._schedule_of = plan, runner, schedule_of
        self._saving, self._progress = plan.saving, progress
        self._history = TrainingHistory()
        self._returns = 0

    def train(self) -> Fitted:
        """From the plan's origin to the end, with as many returns to checkpoints as help."""
        origin = self._plan.origin
        while True:
            try:
                self._train_from(origin)
                return self._finish()
            except (StateLost, CheckpointError) as error:
                origin = self._return(origin, error)

    def _return(self, origin: Origin, error: MizzleError) -> Origin:
        """Where to go on when states are lost, or the checkpoint to go on from is damaged; else ``error`` is raised."""
        saving = self._saving
        if saving is None:
            raise error
        if isinstance(error, CheckpointError):
            if not self._runner.is_restoring:
                raise error
            saving.refuse(origin.checkpoint, error)
        saving.abandon()
        found = saving.newest()
        if isinstance(error, StateLost):  # what is refused is not offered again, so that others need no limit
            self._returns = self._returns + 1 if found and found.iteration <= origin.iteration else 1
        if found is None or self._returns > _MOST_RETURNS:
            raise error
        self._runner.go_back(found.boundary, f"the run goes back to checkpoint {found.checkpoint}: {error}")
        return found

    def _train_from(self, origin: Origin) -> None:
        plan, history, saving = self._plan, self._history, self._saving
        schedule = self._schedule_of()
        schedule.skip(origin.iteration)
        history.resume(origin.iteration, origin.evaluations)
        stopping = None if plan.stop is None else StoppingState.of(plan.stop, origin.stopping)

        def order_of(group: Group) -> TrainOrder:
            due = None
            if saving is not None:
                due = saving.due(self._origin(group.first, origin, stopping), self._runner.generation)
            return TrainOrder(group, tuple(schedule.ahead(group.size)), plan.validates(group), due)

        if not (stopping and stopping.is_over):
            self._play(origin, schedule, order_of, stopping)
        if saving is not None:
            self._save_the_end(saving, self._origin(history.iterations, origin, stopping))

    def _play(
        self, origin: Origin, schedule: HyperSchedule, order_of: Callable[[Group], TrainOrder],
        stopping: StoppingState | None,
    ) -> None:  # fmt: skip
        sizer = sizer_for(self._plan.layout.group_size, TunerConfig(max_group_s=self._plan.layout.max_group_s))
        for played in play(
            self._runner, self._plan.triggers, sizer, order_of, _metrics_of, partial(schedule.fits, _ORDER_BYTES),
            first=origin.iteration, number=origin.groups,
        ):  # fmt: skip
            self._note(played)
            evaluation = played.metrics[0].evaluation
            if stopping and evaluation is not None and stopping.observe(stopping.rule.value(evaluation)):
                break

    def _origin(self, iteration: int, since: Origin, stopping: StoppingState | None) -> Origin:
        """What a checkpoint of this boundary says of the training."""
        groups = self._history.groups
        return Origin(
            iteration, groups[-1].number + 1 if groups else since.groups,
            evaluations=tuple(self._history.evaluations), stopping=None if stopping is None else stopping.as_dict(),
        )  # fmt: skip

    def _note(self, played: Played) -> None:
        self._history.add_group(played.record, played.metrics)
        note_stragglers(self._runner.run, self._history, played.metrics[0].stragglers, self._runner.where)
        self._progress.update(self._history, played.record.rows, played.record.wall_s)
        if self._saving is not None:
            told = [Told.unpack(result[1]) for result in played.results]
            self._saving.take(told, self._runner.generation)

    def _save_the_end(self, saving: Saving, origin: Origin) -> None:
        """The last boundary is saved before the model is fetched. If it cannot be, the result is there all the same."""
        for _ in range(_MOST_LAST_SAVES):
            wanted = saving.wanted_at_the_end(origin, self._runner.generation)
            if wanted is None:
                break
            order = SaveOrder(origin.iteration, *wanted, saving.timeout_s)
            told = self._runner.order("the last checkpoint", order, origin.iteration).results
            saving.take([Told.unpack(one) for one in told], self._runner.generation)
        saving.await_commit()

    def _finish(self) -> Fitted:
        plan, history = self._plan, self._history
        finished: list[Finished]
        finished, (model, log, *traces) = self._runner.results(
            "the trained model", FinishOrder(), history.iterations, _left_behind
        )
        history.faults.extend(self._runner.faults)
        if self._saving is not None:
            history.checkpoints.extend(self._saving.records)
        history.complete(LossLog.unpack(log), plan.spec.order())
        most = max((one.memory_bytes for one in finished), key=lambda held: sum(held.values()))
        return Fitted(safetensors.torch.load(model), history, most, dict(enumerate(map(read_trace, traces))))


def _metrics_of(result: tuple[bytes, bytes]) -> GroupMetrics:
    return GroupMetrics.unpack(result[0])


def _left_behind(finished: Sequence[Finished]) -> list[tuple[int, Memory]]:
    """What the driver fetches of what the ranks left: model and log of one, the traces of all."""
    wanted = [(0, finished[0].model), (0, finished[0].log), *((rank, one.trace) for rank, one in enumerate(finished))]
    return [(rank, memory) for rank, memory in wanted if memory is not None]


def _work_of(
    plan: FitPlan, shards_of_rank: tuple[tuple[int, ...], ...], files: Mapping[str, Mapping[int, str]]
) -> bytes:
    store = None if plan.saving is None else plan.saving.store
    work = TrainWork(plan.packed, shards_of_rank, files["shard"], files.get("validation", {}), store)
    pickled: bytes = cloudpickle.dumps(work)  # type: ignore[no-untyped-call]
    return pickled
