"""Evaluation on rows that are not trained on, by the ranks: loss and metrics, the same bits on every rank.

Every shard is run in row order in chunks that do not depend on the ranks; its sums go to all ranks in one tiny round,
which adds them up in shard order. So the result depends on V and the chunk, never on N or the placement.
It leaves weights, gradients, buffers, random numbers and modes as they were.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from typing import Any

import numpy as np
import torch

from mizzle.collectives.handover import MAX_SHARE_BYTES
from mizzle.errors import ConfigError, DataError, ModelError
from mizzle.training.buffers import ModelBuffers
from mizzle.training.local import random_stream
from mizzle.training.spec import IterationPlan, ShardRows, TrainingSpec


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How good the model was on the validation rows, after one iteration.

    Attributes:
        iteration: of the run, the last one before it, 0-based.
        epoch: of that iteration, 0-based.
        rows: evaluated.
        loss: mean over them; NaN or infinite where the model's is.
        metrics: means over them, by name.
    """

    iteration: int
    epoch: int
    rows: int
    loss: float
    metrics: Mapping[str, float]


class Evaluator:
    """Forward of validation shards over a model in training.

    Args:
        spec: of the run; says loss, metrics and rows a forward.
        model: of the rank; parameters bound to the weights.
        buffers: its buffers.
        guard: see `mizzle.training.local.ShardCompute`.
    """

    def __init__(
        self,
        spec: TrainingSpec,
        model: torch.nn.Module,
        buffers: ModelBuffers,
        guard: AbstractContextManager[Any] | None = None,
    ) -> None:
        """See the class."""
        self._spec = spec
        self._model = model
        self._buffers = buffers
        self._guard = guard if guard is not None else nullcontext()
        self._record = struct.Struct(f"<IQ{1 + len(spec.metrics)}d")  # shard, rows, sums of loss and metrics

    def measure(self, shards: Mapping[int, ShardRows], iteration: int) -> bytes:
        """Evaluate this rank's shards.

        Args:
            shards: by number; some may have no rows.
            iteration: of the run, the last one done.

        Returns:
            What to tell all ranks, for `combine`.

        Raises:
            ModelError: the loss or a metric returned something else than a number.
            ConfigError: too many shards and metrics for one message.
        """
        if len(shards) * self._record.size > MAX_SHARE_BYTES:
            raise ConfigError(
                f"the sums of {len(shards)} validation shards and {len(self._spec.metrics)} metrics on one rank are "
                f"over {MAX_SHARE_BYTES} bytes: use fewer shards or metrics, or more ranks"
            )
        parts = []
        for shard in sorted(shards):
            self._buffers.begin()
            with self._guard, random_stream(self._spec.seed, shard, iteration), _in_eval_mode(self._roots()):
                parts.append(self._record.pack(shard, shards[shard].num_rows, *self._sums(shards[shard])))
        self._buffers.begin()  # a model may write to its buffers in eval mode too
        return b"".join(parts)

    def combine(self, plan: IterationPlan, messages: Iterable[bytes]) -> Evaluation:
        """The means over all rows, from what every rank measured.

        Args:
            plan: of the last iteration done.
            messages: of all ranks.

        Raises:
            DataError: there was no row at all.
            ConfigError: two ranks evaluated the same shard.
        """
        records = sorted(
            (record for message in messages for record in self._record.iter_unpack(message)),
            key=lambda record: record[0],
        )
        twice = next((one[0] for one, other in pairwise(records) if one[0] == other[0]), None)
        if twice is not None:
            raise ConfigError(f"validation shard {twice} was evaluated by two ranks: give every shard to one of them")
        rows = 0
        totals = [0.0] * (1 + len(self._spec.metrics))
        for _, count, *sums in records:
            rows += count
            totals = [total + value for total, value in zip(totals, sums, strict=True)]
        if rows == 0:
            raise DataError("there are no validation rows: give a DataFrame with rows, or none to train without")
        loss, *metrics = (total / rows for total in totals)
        return Evaluation(plan.iteration, plan.epoch, rows, loss, dict(zip(self._spec.metrics, metrics, strict=True)))

    def _sums(self, rows: ShardRows) -> list[float]:
        """Loss and metrics of a shard, each times its rows, added up in row order in float64."""
        totals = [0.0] * (1 + len(self._spec.metrics))
        for first in range(0, rows.num_rows, self._spec.rows_per_evaluation):
            count = min(self._spec.rows_per_evaluation, rows.num_rows - first)
            values = self._chunk(rows, np.arange(first, first + count))
            totals = [total + value * count for total, value in zip(totals, values, strict=True)]
        return totals

    def _chunk(self, rows: ShardRows, positions: np.ndarray[Any, np.dtype[np.int64]]) -> list[float]:
        inputs, targets = rows.batch(positions)
        # not inference_mode: what a model caches in its forward must be good for training as well
        with torch.no_grad():
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._spec.autocast):
                output = self._model(*inputs) if isinstance(inputs, tuple) else self._model(inputs)
                values = [_number("the loss", self._spec.loss(output, targets))]
            values += [
                _number(f"metric {name!r}", metric(output, targets)) for name, metric in self._spec.metrics.items()
            ]
        return values

    def _roots(self) -> list[torch.nn.Module]:
        loss = self._spec.loss
        return [self._model, *([loss] if isinstance(loss, torch.nn.Module) else [])]


@contextmanager
def _in_eval_mode(roots: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Run the body with these modules in eval mode; afterwards each of their parts has its own mode again."""
    before = [(module, module.training) for root in roots for module in root.modules()]
    modes = [root.training for root in roots]
    for root in roots:
        root.eval()
    try:
        yield
    finally:
        # train() first: a module may have its own, that undoes what its eval() did
        for root, mode in zip(roots, modes, strict=True):
            root.train(mode)
        for module, mode in before:
            module.training = mode


def _number(what: str, value: object) -> float:
    if isinstance(value, torch.Tensor) and value.dim() == 0 and not value.is_complex():
        return float(value.double())
    if isinstance(value, Real):
        return float(value)
    found = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
    raise ModelError(f"{what} returned {found} on the validation rows: return a number, the mean over its mini-batch")
