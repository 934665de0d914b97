"""One iteration on the driver, before anything is sent anywhere: so that a model that cannot train is found here.

The same code as on the executors, with one rank, one shard and a few rows, on a copy of the model.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from mizzle.blocks.memory import MemoryFabric
from mizzle.collectives.exchange import Exchange, ExchangeLayout
from mizzle.errors import MizzleError, ModelError
from mizzle.training.columns import Batch, Columns
from mizzle.training.flat import FlatParameters
from mizzle.training.rank import RankTrainer
from mizzle.training.spec import IterationPlan, TrainingSpec

_RUN = "0" * 32
_TIMEOUT_S = 600.0


class _FewRows:
    """A shard that lies in memory."""

    def __init__(self, rows: pa.RecordBatch, columns: Columns) -> None:
        self._rows = rows
        self._columns = columns
        self.num_rows: int = rows.num_rows

    def batch(self, rows: npt.NDArray[np.int64]) -> Batch:
        return self._columns.tensors(self._rows.take(pa.array(rows)))


def rehearse(model: torch.nn.Module, spec: TrainingSpec, columns: Columns, rows: pa.RecordBatch) -> None:
    """Train a copy of the model for one iteration.

    Args:
        model: is copied.
        spec: of the run.
        columns: how rows become tensors.
        rows: a few rows of the data; with none nothing is tried.

    Raises:
        ModelError: forward, loss, backward or optimizer fail; the message carries the cause.
    """
    if rows.num_rows == 0:
        return
    alone = replace(
        spec, num_rows=rows.num_rows, num_shards=1, global_batch_size=rows.num_rows, not_finite="skip", accumulate=1
    )
    threads = torch.get_num_threads()
    try:
        tried = copy.deepcopy(model)
        layout = ExchangeLayout(FlatParameters(tried, spec.groups).num_elements, 1, ((0,),))
        exchange = Exchange(MemoryFabric(1).store(0, run=_RUN), layout, wire=spec.wire, timeout_s=_TIMEOUT_S)
        trainer = RankTrainer(alone, tried, exchange, {0: _FewRows(rows, columns)})
        trainer.run([IterationPlan(0, 0, 0)])
    except MizzleError:
        raise
    except Exception as error:
        # Model, loss and optimizer are the user's code: anything may be raised.
        raise ModelError(
            f"training fails on the first {rows.num_rows} rows, inputs and targets as Columns makes them: "
            f"{type(error).__name__}: {error}"
        ) from error
    finally:
        torch.set_num_threads(threads)
