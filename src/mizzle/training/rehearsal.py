"""One iteration on the driver, before anything is sent anywhere: so that a model that cannot train is found here.

The same code as on the executors, with one rank, one shard and a few rows, on a copy of the model.
"""

from __future__ import annotations

import warnings
from contextlib import closing, suppress
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from mizzle.blocks.memory import MemoryFabric
from mizzle.errors import MizzleError, ModelError
from mizzle.training.columns import Batch, Columns
from mizzle.training.rank import RankTrainer
from mizzle.training.spec import IterationPlan, Loss, TrainingSpec
from mizzle.training.wiring import exchange_for

_RUN = "0" * 32
_TIMEOUT_S = 600.0


class _FewRows:
    """A shard that lies in memory, and remembers what it was made into."""

    def __init__(self, rows: pa.RecordBatch, columns: Columns) -> None:
        self._rows = rows
        self._columns = columns
        self.num_rows: int = rows.num_rows
        self.described = "which collate does not make into tensors"

    def batch(self, rows: npt.NDArray[np.int64]) -> Batch:
        made = self._columns.tensors(self._rows.take(pa.array(rows)))
        self.described = _describe(made)
        return made


def fewest_rows(spec: TrainingSpec, num_iterations: int) -> int:
    """The smallest mini-batch that a model will meet: one shard's part of the shortest iteration, or of that a part.

    Args:
        spec: of the run.
        num_iterations: of the run; the first epoch's last iteration counts only when the run comes that far.
    """
    order = spec.order()
    last = min(num_iterations, order.iterations_per_epoch) - 1
    total = min(order.total(0), order.total(last))
    return max(1, total // spec.num_shards // spec.accumulate)


def rehearse(
    model: torch.nn.Module, spec: TrainingSpec, columns: Columns, rows: pa.RecordBatch, *, evaluate: bool = False
) -> None:
    """Train a model for one iteration.

    Args:
        model: a copy that nobody needs afterwards.
        spec: of the run; its loss may reach into the model.
        columns: how rows become tensors.
        rows: a few rows of the data, `fewest_rows` of them to see what fails on small batches only (batch norm);
            with none nothing is tried.
        evaluate: whether to evaluate on the same rows as well: a metric that fails is found before the first epoch.

    Raises:
        ModelError: collate, forward, loss, backward, optimizer or a metric fail; the message carries the cause and the
            shapes.
    """
    if rows.num_rows == 0:
        return
    few = _FewRows(rows, columns)
    alone = replace(
        spec, num_rows=few.num_rows, num_shards=1, global_batch_size=few.num_rows, not_finite="skip", accumulate=1,
        loss=_WatchedLoss(spec.loss),
    )  # fmt: skip
    threads = torch.get_num_threads()
    plan, tried = IterationPlan(0, 0, 0), "one iteration"
    try:
        store = MemoryFabric(1).store(0, run=_RUN)
        exchange = exchange_for(alone, model, store, ((0,),), timeout_s=_TIMEOUT_S)
        # Closed, because the hooks of its gradients hold the model, and torch does not tell the garbage collector.
        with closing(RankTrainer(alone, model, exchange, {0: few})) as trainer:
            trainer.run([plan])
            if evaluate:
                tried = "an evaluation"
                trainer.evaluate(plan, {0: few})
    except MizzleError:
        raise
    except Exception as error:
        # Model, loss, optimizer, metrics and collate are the user's code: anything may be raised.
        raise ModelError(
            f"{tried} was tried on the driver, with {rows.num_rows} row(s), the fewest that a shard will have "
            f"({few.described}), and failed: {type(error).__name__}: {error}"
        ) from error
    finally:
        torch.set_num_threads(threads)


class _WatchedLoss:
    """The user's loss, with a warning of the two mistakes that train without an error, only badly."""

    def __init__(self, loss: Loss) -> None:
        self._loss = loss

    def __call__(self, output: object, target: object) -> torch.Tensor:
        value = self._loss(output, target)
        if isinstance(output, torch.Tensor) and isinstance(target, torch.Tensor) and isinstance(value, torch.Tensor):
            _warn_of_shapes(output, target)
            # The second call is ours, not the user's: a loss that cannot take other rows is no fault.
            with suppress(Exception), torch.no_grad():
                _warn_of_sum(value, self._loss(torch.cat([output, output]), torch.cat([target, target])))
        return value


def _warn_of_shapes(output: torch.Tensor, target: torch.Tensor) -> None:
    alike = output.is_floating_point() and target.is_floating_point() and output.numel() == target.numel()
    if alike and output.shape != target.shape:
        warnings.warn(
            f"the model returns {tuple(output.shape)} and the targets are {tuple(target.shape)}: most losses would "
            "compare every row with every other. Let the model return the targets' shape, e.g. output.squeeze(-1)",
            stacklevel=2,
        )


def _warn_of_sum(once: torch.Tensor, twice: torch.Tensor) -> None:
    if once.numel() == 1 and once.abs() > 0 and torch.isclose(twice, 2 * once, rtol=1e-3, atol=0.0):
        warnings.warn(
            "the loss doubles when the rows are given twice, so it looks like a sum: mizzle weights shards by their "
            'rows and needs the mean, e.g. reduction="mean"',
            stacklevel=2,
        )


def _describe(batch: Batch) -> str:
    inputs, targets = batch
    parts = inputs if isinstance(inputs, tuple) else (inputs,)
    return f"inputs {', '.join(map(_describe_one, parts))}; targets {_describe_one(targets)}"


def _describe_one(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"{tuple(value.shape)} {value.dtype}".replace("torch.", "")
    return type(value).__name__
