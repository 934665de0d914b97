"""The Trainer: a DataFrame and a PyTorch model in, a trained model out. Runs on the driver, which sees no tensor.

It checks everything it can before anything starts, then schedules group after group (``docs/architecture.md``).
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

import safetensors.torch
import torch
from py4j.protocol import Py4JError
from pyspark import RDD, Broadcast, SparkContext, cloudpickle
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame

from mizzle.blocks.deadline import Deadline
from mizzle.collectives.wire import Wire
from mizzle.config import RunConfig
from mizzle.errors import ConfigError, Misplaced, ModelError
from mizzle.scheduling.plan import plan_groups, spread
from mizzle.spark.data import first_rows, shard_dataframe
from mizzle.spark.driver import DriverSide, await_slots, classic_context, default_ranks
from mizzle.spark.groups import run_job, shipped
from mizzle.spark.placement import here, placed
from mizzle.spark.progress import TrainingProgress
from mizzle.spark.train_task import GroupReport, RunPlan, TrainGroup
from mizzle.spark.validate import CheckedFrame, check_dataframe
from mizzle.spark.worker import GroupJob
from mizzle.training.clipping import ClipByNorm, ClipByValue
from mizzle.training.columns import Columns
from mizzle.training.flat import FlatParameters
from mizzle.training.groups import OptimizerFactory, groups_of
from mizzle.training.history import TrainingHistory
from mizzle.training.rehearsal import fewest_rows, rehearse
from mizzle.training.schedule import HyperSchedule, SchedulerFactory
from mizzle.training.spec import Loss, TrainingSpec

_log = logging.getLogger(__name__)
_PLACEMENTS = 5
"""How often a group is started again because a busy cluster put a rank away from its state."""
_REHEARSED_ROWS = 8


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a fit leaves behind.

    Attributes:
        model: the trained model, in eval mode, on the driver; a copy, the one given to the Trainer is untouched.
        history: loss of every iteration, epochs, where the time went.
        report: how it was run: ranks, shards, rows, iterations, group size, transport, wall seconds.
    """

    model: torch.nn.Module
    history: TrainingHistory
    report: Mapping[str, Any]


class Trainer:
    """Synchronous data-parallel training of a PyTorch model on a Spark DataFrame.

    The result depends on model, data, seed and ``shards``: not on the number of ranks, the group size, the transport
    or timing (with ``wire="fp32"``).

    Args:
        model: on the CPU, parameters in float32; is copied. Parameters that do not require grad stay as they are.
            Float buffers (batch norm's statistics) become the mean over the shards after every iteration.
        loss: ``loss(output, target)``, the mean over its mini-batch (not the sum), a scalar.
        optimizer: builds a torch optimizer from parameter groups, ``lambda p: torch.optim.AdamW(p, 1e-3)``.
            Elementwise ones are sharded over the ranks, others run whole on every rank (``docs/architecture.md``).
        global_batch_size: rows per iteration over all ranks; any number.
        max_epochs: passes over the data, every row once in each.
        max_iterations: stop earlier, after that many iterations.
        seed: of the order of rows and of the model's random numbers.
        parameter_groups: ``lambda model: [{"params": ..., "lr": ...}, ...]`` as torch takes them.
        scheduler: ``lambda optimizer: torch.optim.lr_scheduler...``, stepped after every iteration.
        clip: limit of the mean gradient, `ClipByNorm` or `ClipByValue`.
        accumulate: micro-batches that a shard's part of an iteration is cut into, to save memory.
        autocast: run forward and loss in bfloat16 where torch thinks it safe.
        not_finite: "raise" on a NaN or infinite loss or gradient, or "skip" that update.
        wire: element type of gradients on their way: "fp32", "bf16" or "fp16"; sums are fp32 always.
        threads: torch threads per rank. Fixed, because kernels may add in another order with more.
        run: layout on the cluster.
        progress: whether to draw a progress bar; None: on a terminal.

    Raises:
        ConfigError: an argument is wrong; the message names it.
        ModelError: model, optimizer or scheduler cannot be trained or sent to the executors.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        loss: Loss,
        optimizer: OptimizerFactory,
        *,
        global_batch_size: int,
        max_epochs: int = 1,
        max_iterations: int | None = None,
        seed: int = 0,
        parameter_groups: Callable[[torch.nn.Module], Iterable[Mapping[str, Any]]] | None = None,
        scheduler: SchedulerFactory | None = None,
        clip: ClipByNorm | ClipByValue | None = None,
        accumulate: int = 1,
        autocast: bool = False,
        not_finite: Literal["raise", "skip"] = "raise",
        wire: Literal["fp32", "bf16", "fp16"] = "fp32",
        threads: int = 1,
        run: RunConfig | None = None,
        progress: bool | None = None,
    ) -> None:
        """See the class."""
        if not isinstance(model, torch.nn.Module):
            raise ModelError(f"model is {model!r}: give an instance of torch.nn.Module")
        if run is not None and not isinstance(run, RunConfig):
            raise ConfigError(f"run is {run!r}: give a mizzle.RunConfig")
        for name, value in (("max_epochs", max_epochs), ("max_iterations", max_iterations)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}: give at least 1")
        shipped(loss, "the loss")
        shipped(optimizer, "the optimizer's factory")
        # Copied together: a loss that reaches into the model must reach into the copy.
        self._model, loss, optimizer = cloudpickle.loads(shipped((model, loss, optimizer), "the model"))
        groups = None if parameter_groups is None else groups_of(self._model, parameter_groups(self._model))
        # Rows and shards are known when there is data: 1 stands for them until then.
        self._spec = TrainingSpec(
            loss=loss, optimizer=optimizer, num_rows=1, num_shards=1, global_batch_size=global_batch_size,
            groups=groups, clipping=clip, accumulate=accumulate, autocast=autocast, seed=seed,
            not_finite=not_finite, wire=Wire.of(wire), threads=threads,
        )  # fmt: skip
        self._scheduler = scheduler
        self._schedule()
        self._max_epochs = max_epochs
        self._max_iterations = max_iterations
        self._run = run or RunConfig()
        self._progress = progress

    def fit(
        self,
        df: DataFrame,
        *,
        features: str | Sequence[str],
        label: str | None,
        shape: Sequence[int] | None = None,
        num_classes: int | None = None,
        collate: Callable[[Any], Any] | None = None,
        bad_rows: Literal["raise", "skip"] = "raise",
    ) -> TrainingResult:
        """Train on all rows of a DataFrame. May be called again; every fit starts from the given model.

        Args:
            df: computed twice (checked, then dealt to the executors' disks): cache what is dear to compute.
            features: one column of arrays or vectors, or several numeric columns, which are stacked: the model gets
                one float32 tensor of shape (n, columns).
            label: the target's column: whole numbers become int64 of shape (n,), fractions float32 of shape (n,),
                arrays float32 of shape (n, length). A regression model must return (n,) as well: ``.squeeze(-1)``.
                None: the loss gets None as target.
            shape: shape of one row's input, ``(1, 8, 8)``; None leaves arrays flat.
            num_classes: labels must be whole numbers in [0, num_classes).
            collate: ``collate(batch) -> (inputs, targets)`` with a pyarrow.RecordBatch of the selected columns; for
                columns that are not numeric, or models that take several tensors.
            bad_rows: "raise" on nulls, NaN, ragged arrays or labels out of range, or "skip" and count them.

        Raises:
            DataError: names column, partition and row; nothing was started.
            ModelError: the model or loss fails on the first rows; nothing was started.
            ConfigError: more ranks than task slots, or a session without mizzle's plugin.
            NotFiniteError: names the iteration, and shard and parameter.
            PeerLost: an executor died; the run is over (what it learnt is lost).
        """
        if not isinstance(df, DataFrame):
            raise ConfigError(f"fit takes a Spark DataFrame, not {type(df).__name__}: use spark.createDataFrame")
        context = classic_context(df.sparkSession)
        driver = DriverSide(context)
        begun = time.monotonic()
        columns = Columns.of(features, label, shape=shape, collate=collate)
        shipped(collate, "collate")
        checked = check_dataframe(df, columns, num_classes=num_classes, bad_rows=bad_rows)
        ranks, num_shards = self._layout(context)
        spec = self._spec.on(checked.num_rows, num_shards)
        packed = self._rehearsed(spec, checked)
        with driver.run() as run, _Fit(context, driver, self._run, run, spread(num_shards, ranks)) as fit:
            model, history = self._train(fit, fit.ship(packed, checked), spec)
        report = self._report(run, checked, (ranks, num_shards), len(history.losses))
        return TrainingResult(model, history, report | {"wall_s": time.monotonic() - begun})

    def _report(self, run: str, checked: CheckedFrame, layout: tuple[int, int], iterations: int) -> dict[str, Any]:
        ranks, shards = layout
        return {
            "run": run, "ranks": ranks, "shards": shards, "rows": checked.num_rows,
            "skipped_rows": checked.num_skipped, "iterations": iterations,
            "group_size": self._run.group_size, "transport": self._run.transport,
        }  # fmt: skip

    def _rehearsed(self, spec: TrainingSpec, checked: CheckedFrame) -> bytes:
        """What the executors get, after one iteration on the driver with a copy of exactly that."""
        packed = shipped((self._model, spec, checked.columns), "model, loss, optimizer and collate together")
        copied: tuple[torch.nn.Module, TrainingSpec, Columns] = cloudpickle.loads(packed)
        rehearse(*copied, first_rows(checked, min(_REHEARSED_ROWS, fewest_rows(spec, self._num_iterations(spec)))))
        return packed

    def _layout(self, context: SparkContext) -> tuple[int, int]:
        """Ranks and shards, once there is a slot for every rank."""
        deadline = Deadline.after(self._run.timeout_s)
        ranks = self._run.ranks
        if ranks is None:
            ranks = default_ranks(context, deadline)
            ranks = min(ranks, self._run.shards or ranks)
        await_slots(context, ranks, deadline)
        return ranks, self._run.shards or ranks

    def _num_iterations(self, spec: TrainingSpec) -> int:
        total = spec.order().iterations_per_epoch * self._max_epochs
        return min(total, self._max_iterations or total)

    def _schedule(self) -> HyperSchedule:
        return HyperSchedule(FlatParameters(self._model, self._spec.groups), self._spec.optimizer, self._scheduler)

    def _train(
        self, fit: _Fit, plan: Broadcast[RunPlan], spec: TrainingSpec
    ) -> tuple[torch.nn.Module, TrainingHistory]:
        total = self._num_iterations(spec)
        schedule, history = self._schedule(), TrainingHistory()
        model = copy.deepcopy(self._model)
        with TrainingProgress(total, enabled=self._progress) as progress:
            for group in plan_groups(spec.order().iterations_per_epoch, total, self._run.group_size):
                begun = time.monotonic()
                body = TrainGroup(plan, group, tuple(schedule.ahead(group.size)), last=group.stop == total)
                reports = fit.run_group(body)
                wall_s = time.monotonic() - begun
                history.add_group(body.iterations(), [report.metrics for report in reports], wall_s)
                progress.update(history, sum(one.rows for one in reports[0].metrics), wall_s)
                _log.info("run=%s iterations=%d-%d epoch=%d loss=%g wall_s=%.3f", fit.run[:4], group.first,
                          group.stop - 1, group.epoch, history.losses[-1], wall_s)  # fmt: skip
                if reports[0].model is not None:
                    model.load_state_dict(safetensors.torch.load(reports[0].model))
        return model.eval(), history


class _Fit:
    """One fit under way: where its shards and ranks are."""

    def __init__(
        self, context: SparkContext, driver: DriverSide, layout: RunConfig, run: str,
        shards_of_rank: tuple[tuple[int, ...], ...],
    ) -> None:  # fmt: skip
        self.context, self.driver, self.layout, self.run = context, driver, layout, run
        self.shards_of_rank = shards_of_rank
        self.plan: Broadcast[RunPlan] | None = None
        self._tasks: RDD[int] | None = None
        self._executors: tuple[str, ...] = ()
        self._jobs = 0

    def ship(self, packed: bytes, checked: CheckedFrame) -> Broadcast[RunPlan]:
        """Deal the rows to the executors, and send them what every group needs."""
        num_shards = sum(map(len, self.shards_of_rank))
        infos = shard_dataframe(
            checked, run=self.run, num_shards=num_shards, shards_of_rank=self.shards_of_rank, locate=here
        )
        at = {info.shard: info for info in infos}
        paths = {info.shard: info.path for info in infos}
        self.plan = self.context.broadcast(RunPlan(packed, self.shards_of_rank, paths))
        self._place(tuple(at[shards[0]].executor_id for shards in self.shards_of_rank))
        return self.plan

    def run_group(self, body: TrainGroup) -> list[GroupReport]:
        """Run one group, each rank where its state is; again if Spark put one elsewhere.

        Raises:
            Misplaced: some slot there is taken by other jobs all the time.
        """
        group = body.group
        title = f"iterations {group.first}-{group.stop - 1} (epoch {group.epoch})"
        for attempt in range(_PLACEMENTS):
            job = GroupJob(
                self.run, 0, self._jobs, len(self.shards_of_rank), self.layout.transport, self.layout.timeout_s,
                ranks_by_task=False, body=body,
            )  # fmt: skip
            self._jobs += 1
            try:
                reports: list[GroupReport] = run_job(self.context, job, self._tasks, title=title)
            except Misplaced as error:
                if attempt == _PLACEMENTS - 1:
                    raise
                _log.info("run=%s group=%d is started again: %s", self.run[:4], group.number, error)
                continue
            self._place(tuple(report.executor_id for report in reports))
            return reports
        raise AssertionError(f"{_PLACEMENTS} placements and no end")

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drop the broadcast. The bridges drop the rest when the run ends."""
        try:
            if self.plan is not None:
                self.plan.destroy()
        except (Py4JError, PySparkException) as error:
            _log.warning("run=%s left its broadcast behind: %s", self.run[:4], error)

    def _place(self, executors: tuple[str, ...]) -> None:
        if executors != self._executors:
            self._executors = executors
            self._tasks = placed(self.context, self._locations(executors))

    def _locations(self, executors: tuple[str, ...]) -> list[tuple[str, str]]:
        hosts = self.driver.hosts()
        return [(hosts[executor], executor) for executor in executors]
