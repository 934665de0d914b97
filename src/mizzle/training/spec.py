"""What a run's ranks are told: once (`TrainingSpec`) and per iteration (`IterationPlan`), and what they tell back.

All of it is frozen and travels by pickle from driver to ranks; nothing here computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from mizzle.collectives.wire import Wire
from mizzle.config import Overlap
from mizzle.errors import ConfigError
from mizzle.training.clipping import ClipByNorm, ClipByValue
from mizzle.training.groups import OptimizerFactory, ParameterGroup
from mizzle.training.order import EpochOrder

Loss = Callable[[Any, Any], torch.Tensor]
"""``loss(output, target)``: the mean over its mini-batch, a scalar."""

Metric = Callable[[Any, Any], torch.Tensor | float]
"""``metric(output, target)``: a mean over its mini-batch, a number."""

LOSS = "loss"
MAX_METRICS = 16
MAX_METRIC_NAME_BYTES = 32


class ShardRows(Protocol):
    """Random access to the rows of one shard."""

    @property
    def num_rows(self) -> int:
        """Rows of the shard."""
        ...

    def batch(self, rows: npt.NDArray[np.int64]) -> tuple[Any, Any]:
        """Inputs (a tensor, or a tuple of tensors for several arguments) and targets of the given positions."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSpec:
    """How a run trains; the same on all ranks.

    Attributes:
        loss: mean over its mini-batch; a top-level function or module, as it travels by pickle.
        optimizer: builds the optimizer from torch's parameter groups.
        num_rows: n, rows of all shards together.
        num_shards: V, as in the exchange's layout.
        global_batch_size: B, rows per iteration over all shards.
        groups: parameter groups; None for one with everything.
        clipping: of the mean gradient, before the optimizer; None for none.
        accumulate: micro-batches that a shard's part of an iteration is cut into, to bound memory.
        autocast: whether forward and loss run under bfloat16 autocast; parameters and sums stay fp32.
        seed: of the epoch order and of the random numbers inside the model.
        not_finite: ``raise`` `NotFiniteError` on a NaN or infinite loss or gradient, or ``skip`` that iteration's
            update on all ranks (its learning-rate step counts nevertheless).
        stragglers: ``wait`` for slow ranks, or let them ``drop`` the shards that they have not computed when they have
            taken twice the ranks' median: the mean is over the rows that arrived, so it depends on timing. An iteration
            of which nothing arrives is left out as by ``skip``.
        wire: element type of the gradients on their way, as the exchange was made with. With a 16-bit one the float
            buffers are rounded as well in every iteration that changes them: prefer fp32 for batch norm.
        weights_wire: element type of new weights on their way. With a 16-bit one the model computes with rounded
            weights, and the learnt model is made of them; the optimizer goes on from fp32 ones.
        error_feedback: whether what a 16-bit ``wire`` rounds away of a gradient is added to the rank's next one.
        overlap: whether buckets travel while backward goes on; "auto" where peers are on other hosts. It changes no
            bits. Only the last shard that a rank computes overlaps, and only where it is not added to others first.
        trace: whether the ranks note when they did what.
        threads: torch's intra-op threads per rank; fixed, because kernels may add in another order with more.
        metrics: what else to measure on the validation rows, by name. They get the model's output as it is, bfloat16
            under autocast. At most 16, with names of at most 32 bytes: they are part of every rank's small report.
        evaluation_rows: rows of a shard in one forward of an evaluation, whatever the number of ranks. None: as many
            as in training, global_batch_size / num_shards, which is known to fit into memory.
    """

    loss: Loss
    optimizer: OptimizerFactory
    num_rows: int
    num_shards: int
    global_batch_size: int
    groups: tuple[ParameterGroup, ...] | None = None
    clipping: ClipByValue | ClipByNorm | None = None
    accumulate: int = 1
    autocast: bool = False
    seed: int = 0
    not_finite: Literal["raise", "skip"] = "raise"
    stragglers: Literal["wait", "drop"] = "wait"
    wire: Wire = Wire.FP32
    weights_wire: Wire = Wire.FP32
    error_feedback: bool = False
    overlap: Overlap = "auto"
    trace: bool = False
    threads: int = 1
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    evaluation_rows: int | None = None

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        for name in ("num_rows", "num_shards", "global_batch_size", "accumulate", "threads"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is {value!r}; give a whole number, at least 1")
        if isinstance(self.loss, type) or not callable(self.loss):
            raise ConfigError(f"loss is {self.loss!r}; give a function or module: loss(output, target)")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}; give 0 or more")
        self._check_policies()
        if self.error_feedback and self.wire is Wire.FP32:
            raise ConfigError("error_feedback keeps what a 16-bit wire rounds away: give wire='bf16' or 'fp16' with it")
        if self.evaluation_rows is not None and self.evaluation_rows < 1:
            raise ConfigError(f"evaluation_rows is {self.evaluation_rows!r}; give at least 1")
        _check_metrics(self.metrics)

    def _check_policies(self) -> None:
        if self.not_finite not in {"raise", "skip"}:
            raise ConfigError(f"not_finite is {self.not_finite!r}; give 'raise' or 'skip'")
        if self.stragglers not in {"wait", "drop"}:
            raise ConfigError(f"stragglers is {self.stragglers!r}; give 'wait' or 'drop'")
        if self.stragglers == "drop" and self.overlap is True:
            raise ConfigError(
                "stragglers='drop' sends no gradient before its shard is done, so overlap=True cannot be had with it: "
                "give RunConfig(overlap='auto'), or stragglers='wait'"
            )

    @property
    def rows_per_evaluation(self) -> int:
        """Rows of a shard in one forward of an evaluation."""
        return self.evaluation_rows or -(-self.global_batch_size // self.num_shards)

    def order(self) -> EpochOrder:
        """Which rows come when."""
        return EpochOrder(self.num_rows, self.num_shards, self.global_batch_size, self.seed)

    def on(self, num_rows: int, num_shards: int) -> TrainingSpec:
        """The same training on that data."""
        return replace(self, num_rows=num_rows, num_shards=num_shards)


@dataclass(frozen=True, slots=True)
class IterationPlan:
    """One iteration, as the driver planned it.

    Attributes:
        iteration: of the run, 0-based.
        epoch: 0-based.
        iteration_in_epoch: 0-based.
        hyper: per parameter group the hyper-parameters to set; empty for those that never changed.
    """

    iteration: int
    epoch: int
    iteration_in_epoch: int
    hyper: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class IterationMetrics:
    """What a rank saw of one iteration.

    Attributes:
        iteration: of the run.
        loss: mean over all rows of the iteration, of all ranks: the same on every rank.
        rows: of all ranks.
        compute_s: seconds in reading rows, forward and backward on this rank.
        exchange_s: seconds in the exchange, waiting for slower ranks included.
        update_s: seconds in clipping and the optimizer.
        skipped: whether the update was left out because a loss or gradient was not finite, or no shard arrived.
        hidden_s: seconds of exchange that were done during ``compute_s``, and cost nobody any waiting.
        dropped_shards: of all ranks, not computed because a rank's time was over; their rows are not among ``rows``.
        dropped_rows: of these shards.
    """

    iteration: int
    loss: float
    rows: int
    compute_s: float
    exchange_s: float
    update_s: float
    skipped: bool
    hidden_s: float = 0.0
    dropped_shards: int = 0
    dropped_rows: int = 0


def _check_metrics(metrics: Mapping[Any, Metric]) -> None:
    """Refuse what could not be reported.

    Raises:
        ConfigError: names the metric.
    """
    if not isinstance(metrics, Mapping):
        raise ConfigError(f"metrics is {metrics!r}; give a mapping from names to functions: metric(output, target)")
    if len(metrics) > MAX_METRICS:
        raise ConfigError(f"{len(metrics)} metrics are given; at most {MAX_METRICS} are reported")
    for name, metric in metrics.items():
        if not isinstance(name, str) or not 0 < len(name.encode()) <= MAX_METRIC_NAME_BYTES or name == LOSS:
            raise ConfigError(
                f"a metric is called {name!r}; give a name of at most {MAX_METRIC_NAME_BYTES} bytes, not {LOSS!r}"
            )
        if isinstance(metric, type) or not callable(metric):
            raise ConfigError(f"metric {name!r} is {metric!r}; give a function: metric(output, target)")
