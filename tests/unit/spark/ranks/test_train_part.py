from __future__ import annotations

import gc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import torch
from pyspark import cloudpickle
from torch import nn

from harness import memory_stores
from mizzle.errors import StateLost
from mizzle.spark.ranks.orders import Committed
from mizzle.spark.ranks.train_task import TrainPart, TrainWork
from mizzle.training.columns import Columns
from mizzle.training.shards import ShardWriter
from mizzle.training.spec import TrainingSpec
from unit.training.runs import Mlp

FEATURES, ROWS = 1013, 6
"""No other test has a model of that width."""


def sgd(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.1)


def shard(path: Path) -> str:
    rows = [{"x": [float(at)] * FEATURES, "y": at % 3} for at in range(ROWS)]
    schema = pa.schema([("x", pa.list_(pa.float32(), FEATURES)), ("y", pa.int64())])
    with ShardWriter(path, schema) as writer:
        writer.write(pa.RecordBatch.from_pylist(rows, schema=schema), partition=0, chunk=0)
    return str(path)


def test_a_rank_that_cannot_take_its_state_up_lets_go_of_its_memory(tmp_path: Path) -> None:
    """A resident outlives it, and serves the next generation: what it held would stay for the resident's life."""
    spec = TrainingSpec(
        loss=nn.functional.cross_entropy, optimizer=sgd, num_rows=ROWS, num_shards=1, global_batch_size=ROWS
    )
    shipped = cloudpickle.dumps((Mlp(features=FEATURES), spec, Columns.of("x", "y")))  # type: ignore[no-untyped-call]
    (store,) = memory_stores(1)
    context: Any = SimpleNamespace(
        rank=0, size=1, store=store, label=b"", host="h", terms=SimpleNamespace(timeout_s=5.0, generation=1),
        peers=[SimpleNamespace(host_id="h", executor_id="1")], set_label=lambda _label: None,
    )  # fmt: skip
    work = TrainWork(shipped, ((0,),), {0: shard(tmp_path / "shard")}, {})
    with pytest.raises(StateLost, match="the state of rank 0"):
        TrainPart(work, context, Committed(4, 0, 1))
    gc.collect()
    assert not [one for one in gc.get_objects() if type(one) is nn.Parameter and FEATURES in one.shape]
