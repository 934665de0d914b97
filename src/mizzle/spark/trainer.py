"""The Trainer: a DataFrame and a PyTorch model in, a trained model out. Runs on the driver, which sees no tensor.

It checks everything it can before anything starts, then schedules group after group (``docs/architecture.md``).
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import safetensors.torch
import torch
from pyspark import SparkContext, cloudpickle
from pyspark.sql import DataFrame

from mizzle.blocks.deadline import Deadline
from mizzle.collectives.wire import Wire
from mizzle.config import RunConfig, spread
from mizzle.errors import ConfigError, Misplaced
from mizzle.scheduling.plan import plan_groups
from mizzle.spark.data import first_rows, shard_dataframe
from mizzle.spark.driver import DriverSide, await_slots, default_ranks
from mizzle.spark.groups import check_shippable, run_job
from mizzle.spark.placement import placed
from mizzle.spark.progress import TrainingProgress
from mizzle.spark.train_task import GroupReport, RunPlan, TrainGroup, here
from mizzle.spark.validate import CheckedFrame, check_dataframe
from mizzle.spark.worker import GroupJob
from mizzle.training.clipping import ClipByNorm, ClipByValue
from mizzle.training.columns import Columns
from mizzle.training.flat import FlatParameters
from mizzle.training.groups import OptimizerFactory, groups_of
from mizzle.training.history import TrainingHistory
from mizzle.training.order import EpochOrder
from mizzle.training.rehearsal import rehearse
from mizzle.training.schedule import HyperSchedule, SchedulerFactory
from mizzle.training.spec import Loss, TrainingSpec

_log = logging.getLogger(__name__)
_PLACEMENTS = 5
"""How often a group is started again because a busy cluster put a rank away from its state."""


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
        loss: ``loss(output, target)``, the mean over its mini-batch, a scalar.
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
        for name, value in (("max_epochs", max_epochs), ("max_iterations", max_iterations)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}: give at least 1")
        self._model = copy.deepcopy(model)
        groups = None if parameter_groups is None else groups_of(self._model, parameter_groups(self._model))
        # Rows and shards are known when there is data: 1 stands for them until then.
        self._spec = TrainingSpec(
            loss=loss, optimizer=optimizer, num_rows=1, num_shards=1, global_batch_size=global_batch_size,
            groups=groups, clipping=clip, accumulate=accumulate, autocast=autocast, seed=seed,
            not_finite=not_finite, wire=Wire.of(wire), threads=threads,
        )  # fmt: skip
        self._scheduler = scheduler
        self._schedule()
        for thing, what in ((self._model, "the model"), (loss, "the loss"), (optimizer, "the optimizer's factory")):
            check_shippable(thing, what)
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
            features: one column of arrays or vectors, or several numeric columns.
            label: the target's column: whole numbers become int64, fractions float32, arrays float32 rows.
                None: the loss gets None as target.
            shape: shape of one row's input, ``(1, 8, 8)``; None leaves arrays flat.
            num_classes: labels must be whole numbers in [0, num_classes).
            collate: ``collate(record_batch) -> (inputs, targets)``, for columns that are not numeric.
            bad_rows: "raise" on nulls, NaN, ragged arrays or labels out of range, or "skip" and count them.

        Raises:
            DataError: names column, partition and row; nothing was started.
            ModelError: the model or loss fails on the first rows; nothing was started.
            ConfigError: more ranks than task slots, or a session without mizzle's plugin.
            NotFiniteError: names the iteration, and shard and parameter.
            PeerLost: an executor died; the run is over (what it learnt is lost).
        """
        context = df.sparkSession.sparkContext
        driver = DriverSide(context)
        begun = time.monotonic()
        columns = Columns.of(features, label, shape=shape, collate=collate)
        checked = check_dataframe(df, columns, num_classes=num_classes, bad_rows=bad_rows)
        ranks = self._run.ranks or default_ranks(context, driver)
        num_shards = self._run.shards or ranks
        await_slots(context, ranks, Deadline.after(self._run.timeout_s))
        spec = self._spec.on(checked.num_rows, num_shards)
        rehearse(self._model, spec, columns, first_rows(checked, 8))
        with driver.run() as run:
            fit = _Fit(context, driver, self._run, spec, run, spread(num_shards, ranks))
            fit.ship(self._model, checked)
            model, history = self._train(fit)
        report = {
            "run": run, "ranks": ranks, "shards": num_shards, "rows": checked.num_rows,
            "skipped_rows": checked.num_skipped, "iterations": len(history.losses),
            "group_size": self._run.group_size, "transport": self._run.transport,
            "wall_s": time.monotonic() - begun,
        }  # fmt: skip
        return TrainingResult(model, history, report)

    def _schedule(self) -> HyperSchedule:
        return HyperSchedule(FlatParameters(self._model, self._spec.groups), self._spec.optimizer, self._scheduler)

    def _train(self, fit: _Fit) -> tuple[torch.nn.Module, TrainingHistory]:
        order = EpochOrder(
            fit.spec.num_rows, fit.spec.num_shards, fit.spec.global_batch_size, fit.spec.seed
        )  # fmt: skip
        total = order.iterations_per_epoch * self._max_epochs
        total = min(total, self._max_iterations or total)
        schedule, history = self._schedule(), TrainingHistory()
        model = copy.deepcopy(self._model)
        with TrainingProgress(total, enabled=self._progress) as progress:
            for group in plan_groups(order.iterations_per_epoch, total, self._run.group_size):
                begun = time.monotonic()
                body = TrainGroup(fit.plan, group, tuple(schedule.ahead(group.size)), last=group.stop == total)
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
        self, context: SparkContext, driver: DriverSide, layout: RunConfig, spec: TrainingSpec, run: str,
        shards_of_rank: tuple[tuple[int, ...], ...],
    ) -> None:  # fmt: skip
        self.context, self.driver, self.layout, self.spec, self.run = context, driver, layout, spec, run
        self.shards_of_rank = shards_of_rank
        self._executors: list[str] = []
        self._jobs = 0

    def ship(self, model: torch.nn.Module, checked: CheckedFrame) -> None:
        """Deal the rows to the executors, and make ready what every group needs."""
        infos = shard_dataframe(
            checked, run=self.run, num_shards=self.spec.num_shards, shards_of_rank=self.shards_of_rank, locate=here
        )
        at = {info.shard: info for info in infos}
        self._executors = [at[shards[0]].executor_id for shards in self.shards_of_rank]
        plan = RunPlan(
            cloudpickle.dumps((model, self.spec)),  # type: ignore[no-untyped-call]
            checked.columns,
            self.shards_of_rank,
            {info.shard: info.path for info in infos},
        )
        self.plan = self.context.broadcast(plan)

    def run_group(self, body: TrainGroup) -> list[GroupReport]:
        """Run one group, each rank where its state is; again if the cluster was busy there.

        Raises:
            Misplaced: it is busy there still.
        """
        ranks = len(self.shards_of_rank)
        for attempt in range(_PLACEMENTS):
            job = GroupJob(
                self.run, 0, self._jobs, ranks, self.layout.transport, self.layout.timeout_s,
                ranks_by_task=False, body=body,
            )  # fmt: skip
            self._jobs += 1
            try:
                reports: list[GroupReport] = run_job(self.context, job, placed(self.context, self._locations()))
            except Misplaced:
                if attempt == _PLACEMENTS - 1:
                    raise
                continue
            self._executors = [report.executor_id for report in reports]
            return reports
        raise AssertionError(f"{_PLACEMENTS} placements and no end")

    def _locations(self) -> list[tuple[str, str]]:
        hosts = self.driver.hosts()
        return [(hosts[executor], executor) for executor in self._executors]
