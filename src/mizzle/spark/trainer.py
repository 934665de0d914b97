"""The Trainer: a DataFrame and a PyTorch model in, a trained model out. Runs on the driver, which sees no tensor.

It checks everything it can before anything starts, then schedules group after group (``docs/architecture.md``).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pyspark import SparkContext, cloudpickle
from pyspark.sql import DataFrame

from mizzle.blocks.deadline import Deadline
from mizzle.collectives.wire import Wire
from mizzle.config import Checkpoints, RunConfig, check_count
from mizzle.errors import ConfigError, DataError, ModelError
from mizzle.scheduling.plan import Triggers, spread
from mizzle.spark.data import first_rows
from mizzle.spark.driver import DriverSide, classic_context, default_ranks, task_slots
from mizzle.spark.fit import VALIDATION, FitPlan, Fitted, run_fit
from mizzle.spark.groups import await_ranks, refuse_broadcasts, shipped
from mizzle.spark.origin import Origin, open_store, shards_of
from mizzle.spark.progress import TrainingProgress
from mizzle.spark.saving import CHECKPOINT, Saving
from mizzle.spark.security import check_security
from mizzle.spark.validate import CheckedFrame, check_dataframe
from mizzle.training.checkpoint import CheckpointStore
from mizzle.training.clipping import ClipByNorm, ClipByValue
from mizzle.training.columns import Columns
from mizzle.training.flat import FlatParameters
from mizzle.training.groups import OptimizerFactory, groups_of
from mizzle.training.history import TrainingHistory
from mizzle.training.rehearsal import fewest_rows, rehearse
from mizzle.training.schedule import HyperSchedule, SchedulerFactory
from mizzle.training.spec import Loss, Metric, TrainingSpec
from mizzle.training.stopping import EarlyStopping
from mizzle.training.trace import check_trace_file, write_trace

_REHEARSED_ROWS = 8


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a fit leaves behind.

    Attributes:
        model: the trained model, in eval mode, on the driver; a copy, the one given to the Trainer is untouched.
        history: a `mizzle.TrainingHistory`: loss of every iteration, those that were skipped, epochs, evaluations,
            groups, faults, slow executors, dropped rows, checkpoints, where the time went.
        report: how it was run: ranks at the start, shards, rows, iterations, groups, group size, transport, whether it
            was stopped early, iterations that were done before, checkpoints written, faults survived, slow executors,
            rows dropped, wall seconds, the share of the exchange that was hidden behind compute, and the memory in
            bytes, by purpose, of the rank that held most, beside the activations of its model.
    """

    model: torch.nn.Module
    history: TrainingHistory
    report: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Layout:
    """Ranks at the start, the fewest and the most that there may be, and shards."""

    ranks: int
    least: int
    most: int
    shards: int


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
        stragglers: "wait" for slow ranks, or "drop" what a rank has not computed when it has taken twice the ranks'
            median: then the mean is over the rows that arrived, and the result depends on timing. Rows on an executor
            that is always slow count seldom or never; ``history.dropped`` says how many were lost. No ``overlap``. A
            rank gives up between modules and gradients: a single call that takes long is waited for, and lost as well.
        wire: element type of gradients between hosts: "fp32", "bf16" or "fp16"; sums are fp32 always. Ranks of one host
            read each other's fp32 gradients, so there it changes nothing. With "fp16" a gradient times its rows must
            stay below 65504 on any cluster; prefer "bf16".
        weights_wire: element type of new weights. With a 16-bit one forward and backward use rounded weights, also on
            one host, and the learnt model is made of them; the optimizer goes on from fp32 ones. Prefer "bf16": "fp16"
            ends at 65504. No effect on optimizers that run whole.
        error_feedback: with a 16-bit ``wire``, add what was rounded away of a gradient to the next one.
        threads: torch threads per rank. Fixed, because kernels may add in another order with more.
        run: layout on the cluster.
        metrics: of validation, by name: ``metric(output, target)``, the mean over its mini-batch.
        validate_every: "epoch", or a number of iterations; the last iteration is validated in any case.
        stop: ends training when validation no longer improves, `EarlyStopping`.
        checkpoints: where and how often the training is saved, `Checkpoints`; None: it is not, and ends with its
            driver.
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
        stragglers: Literal["wait", "drop"] = "wait",
        wire: Literal["fp32", "bf16", "fp16"] = "fp32",
        weights_wire: Literal["fp32", "bf16", "fp16"] = "fp32",
        error_feedback: bool = False,
        threads: int = 1,
        metrics: Mapping[str, Metric] | None = None,
        validate_every: int | Literal["epoch"] = "epoch",
        stop: EarlyStopping | None = None,
        checkpoints: Checkpoints | None = None,
        run: RunConfig | None = None,
        progress: bool | None = None,
    ) -> None:
        """See the class."""
        _check_kinds(model, metrics or {}, run=run, stop=stop, checkpoints=checkpoints)
        _check_counts(max_epochs, max_iterations, validate_every)
        for what, thing in (("the loss", loss), ("the optimizer's factory", optimizer), ("metrics", metrics)):
            shipped(thing, what)
        # Copied together: a loss that reaches into the model must reach into the copy.
        self._model, loss, optimizer, metrics = cloudpickle.loads(
            shipped((model, loss, optimizer, metrics or {}), "the model")
        )
        groups = None if parameter_groups is None else groups_of(self._model, parameter_groups(self._model))
        # Rows and shards are known when there is data: 1 stands for them until then.
        self._spec = TrainingSpec(
            loss=loss, optimizer=optimizer, num_rows=1, num_shards=1, global_batch_size=global_batch_size,
            groups=groups, clipping=clip, accumulate=accumulate, autocast=autocast, seed=seed,
            not_finite=not_finite, stragglers=stragglers, wire=Wire.of(wire), weights_wire=Wire.of(weights_wire),
            error_feedback=error_feedback, threads=threads, metrics=metrics,
        )  # fmt: skip
        self._scheduler, self._max_epochs, self._max_iterations = scheduler, max_epochs, max_iterations
        self._schedule()
        self._validate_every, self._stop, self._checkpoints = validate_every, stop, checkpoints
        self._run, self._progress = run or RunConfig(), progress

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
        validation: DataFrame | None = None,
        resume: Literal["never", "auto"] = "never",
    ) -> TrainingResult:
        """Train on all rows of a DataFrame. May be called again; every fit starts from the given model.

        With ``resume`` it goes on from a checkpoint, on any number of ranks, and ends with the bits of a fit that was
        never interrupted, if the DataFrame gives the same rows in the same order. What is not trained is taken from
        the checkpoint too.

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
            validation: held-out rows in the same columns; loss and metrics over them go to ``history.evaluations``.
            resume: "auto": from the newest valid checkpoint in ``checkpoints.path``, or from the start where there is
                none. "never": from the start; then there must be none.

        Raises:
            DataError: names column, partition and row; nothing was started.
            ModelError: the model or loss fails on the first rows; nothing was started.
            ConfigError: more ranks than task slots, a session without mizzle's plugin, or one that does not protect its
                blocks where ``RunConfig.security`` is "required".
            NotFiniteError: names the iteration, and shard and parameter.
            PeerLost: executors or ranks' processes ended again and again at the same boundary, or connections broke.
            StateLost: all copies of a state are lost, and there is no checkpoint to go back to.
            CheckpointError: no checkpoint can be written there, or none of those that are there can be read.
        """
        self._check_fit(df, validation, resume)
        shipped(collate, "collate")
        columns = Columns.of(features, label, shape=shape, collate=collate)
        check = partial(check_dataframe, columns=columns, num_classes=num_classes, bad_rows=bad_rows)
        return self._fit(df, validation, check, resume)

    def _check_fit(self, df: object, validation: object, resume: str) -> None:
        if not isinstance(df, DataFrame):
            raise ConfigError(f"fit takes a Spark DataFrame, not {type(df).__name__}: use spark.createDataFrame")
        if validation is None and (self._stop is not None or self._spec.metrics):
            what = "metrics=" if self._stop is None else "stop="
            raise ConfigError(f"{what} looks at validation rows, but fit was given no validation DataFrame")
        if resume not in {"never", "auto"}:
            raise ConfigError(f"resume is {resume!r}: give 'never' or 'auto'")
        if resume == "auto" and self._checkpoints is None:
            raise ConfigError(
                "resume='auto' goes on from a checkpoint: give Trainer(checkpoints=Checkpoints(path=...))"
            )

    def _fit(
        self,
        df: DataFrame,
        validation: DataFrame | None,
        check: Callable[[DataFrame], CheckedFrame],
        resume: Literal["never", "auto"],
    ) -> TrainingResult:
        begun = time.monotonic()
        if self._run.trace is not None:
            check_trace_file(Path(self._run.trace))
        context = classic_context(df.sparkSession)
        driver = DriverSide(context)
        check_security(context, driver, self._run.security)
        store = None if self._checkpoints is None else open_store(self._checkpoints, resume)
        with driver.replacing_hung():
            checked, held_out = check(df), None
            if validation is not None:
                held_out = _checked_validation(check, validation, checked)
            saved_shards = None if store is None or self._run.shards else shards_of(store, checked.num_rows)
            layout = self._layout(context, driver, saved_shards)
            plan = self._plan(checked, held_out, layout)
        total = plan.triggers.num_iterations
        with driver.run() as run, TrainingProgress(total, enabled=self._progress) as progress:
            if self._checkpoints is not None and store is not None:
                plan = _resumed(plan, self._checkpoints, store, run)
            fitted = run_fit(context, driver, run, plan, self._schedule, progress)
        if self._run.trace is not None:
            write_trace(Path(self._run.trace), fitted.traces)
        model = copy.deepcopy(self._model)
        model.load_state_dict(fitted.model)
        report = self._report(run, plan, fitted) | {"wall_s": time.monotonic() - begun}
        return TrainingResult(model.eval(), fitted.history, report)

    def _plan(self, checked: CheckedFrame, held_out: CheckedFrame | None, layout: _Layout) -> FitPlan:
        spec = replace(
            self._spec.on(checked.num_rows, layout.shards), overlap=self._run.overlap, trace=self._run.trace is not None
        )  # fmt: skip
        per_epoch = spec.order().iterations_per_epoch
        total = min(per_epoch * self._max_epochs, self._max_iterations or per_epoch * self._max_epochs)
        every = {}
        if held_out is not None and self._validate_every != "epoch":
            every[VALIDATION] = self._validate_every
        if self._checkpoints is not None and self._checkpoints.every != "epoch":
            every[CHECKPOINT] = self._checkpoints.every
        return FitPlan(
            spec, self._rehearsed(spec, checked, total, evaluate=held_out is not None), checked, held_out,
            spread(layout.shards, layout.ranks), layout.least, layout.most, Triggers(total, per_epoch, every),
            self._run, self._stop, Origin(), None,
        )  # fmt: skip

    def _report(self, run: str, plan: FitPlan, fitted: Fitted) -> dict[str, Any]:
        history = fitted.history
        return {
            "run": run, "ranks": len(plan.shards_of_rank), "shards": plan.spec.num_shards, "rows": plan.rows.num_rows,
            "skipped_rows": plan.rows.num_skipped, "iterations": history.iterations, "groups": len(history.groups),
            "group_size": self._run.group_size, "transport": self._run.transport,
            "stopped_early": history.iterations < plan.triggers.num_iterations,
            "resumed_at": history.resumed_at, "checkpoints": sum(not one.fault for one in history.checkpoints),
            "faults": len(history.faults), "stragglers": len({one.executor for one in history.stragglers}),
            "dropped_rows": sum(one.rows for one in history.dropped), "hidden_fraction": history.time.hidden_fraction,
            "memory_bytes": dict(fitted.memory_bytes),
        }  # fmt: skip

    def _rehearsed(self, spec: TrainingSpec, checked: CheckedFrame, total: int, *, evaluate: bool) -> bytes:
        """What the executors get, after one iteration on the driver with a copy of exactly that."""
        packed = shipped((self._model, spec, checked.columns), "model, loss, optimizer and collate together")
        refuse_broadcasts(classic_context(checked.frame.sparkSession))
        copied: tuple[torch.nn.Module, TrainingSpec, Columns] = cloudpickle.loads(packed)
        rows = first_rows(checked, min(_REHEARSED_ROWS, fewest_rows(spec, total)))
        rehearse(*copied, rows, evaluate=evaluate)
        return packed

    def _layout(self, context: SparkContext, driver: DriverSide, shards: int | None) -> _Layout:
        """Ranks and shards, once there is a slot for every rank that must be there.

        Args:
            context: the driver's Spark context.
            driver: its half of the plugin.
            shards: of the training that goes on, if it does and nothing else is asked for.
        """
        deadline, wanted, shards = Deadline.after(self._run.timeout_s), self._run.ranks, self._run.shards or shards
        if isinstance(wanted, int) and wanted > (shards or wanted):
            raise ConfigError(
                f"the training has {shards} shards, and every rank holds one: give at most {shards} ranks"
            )
        if isinstance(wanted, int):
            found = _Layout(wanted, wanted, wanted, shards or wanted)
        elif wanted is None:
            there = default_ranks(context, deadline)
            there = min(there, shards or there)
            found = _Layout(there, 1, there, shards or there)
        else:
            least, most = wanted
            most = min(most, shards or most)
            there = max(least, min(most, task_slots(context)))
            found = _Layout(there, least, most, shards or most)
        await_ranks(context, driver, found.ranks, self._run.timeout_s)
        check_security(context, driver, self._run.security)  # now all executors have told where they listen
        return found

    def _schedule(self) -> HyperSchedule:
        return HyperSchedule(FlatParameters(self._model, self._spec.groups), self._spec.optimizer, self._scheduler)


def _resumed(plan: FitPlan, config: Checkpoints, store: CheckpointStore, run: str) -> FitPlan:
    """The plan with checkpoints, from the newest one on: with what it has of the model beside the states of ranks."""
    model, spec, columns = cloudpickle.loads(plan.packed)
    saving = Saving(config, store, plan.triggers, run, spec, model)
    origin = saving.newest()
    if origin is None:
        return replace(plan, saving=saving)
    # Together, as before: a loss that reaches into the model must reach into this one.
    return replace(plan, origin=origin, saving=saving, packed=shipped((model, spec, columns), "the model"))


def _check_kinds(model: object, metrics: Collection[str], **given: object) -> None:
    if not isinstance(model, torch.nn.Module):
        raise ModelError(f"model is {model!r}: give an instance of torch.nn.Module")
    for name, kind in (("run", RunConfig), ("stop", EarlyStopping), ("checkpoints", Checkpoints)):
        if given[name] is not None and not isinstance(given[name], kind):
            raise ConfigError(f"{name} is {given[name]!r}: give a mizzle.{kind.__name__}")
    if isinstance(given["stop"], EarlyStopping):
        given["stop"].check_monitor(metrics)


def _check_counts(max_epochs: int, max_iterations: int | None, validate_every: int | str) -> None:
    check_count("max_epochs", max_epochs)
    if max_iterations is not None:
        check_count("max_iterations", max_iterations)
    if validate_every != "epoch":
        check_count("validate_every", validate_every, other='"epoch"')


def _checked_validation(
    check: Callable[[DataFrame], CheckedFrame], validation: object, checked: CheckedFrame
) -> CheckedFrame:
    """Validation rows must be good, and have the shape of training rows."""
    if not isinstance(validation, DataFrame):
        raise ConfigError(f"validation is {validation!r}: give a Spark DataFrame, such as one of df.randomSplit")
    try:
        held_out = check(validation)
    except DataError as error:
        raise DataError(f"the validation DataFrame: {error}") from error
    if held_out.lengths != checked.lengths:
        raise DataError(
            f"arrays of the validation DataFrame have {held_out.lengths} elements, those of the training DataFrame "
            f"{checked.lengths}: bring both to one length"
        )
    return held_out
