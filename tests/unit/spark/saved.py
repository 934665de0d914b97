"""A small training that is saved: the driver's side, with ranks that write real parts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mizzle.blocks.deadline import Deadline
from mizzle.collectives.slices import Slice
from mizzle.config import Checkpoints
from mizzle.scheduling.plan import Triggers
from mizzle.spark.origin import Origin, open_store
from mizzle.spark.ranks.part_writer import PartWriter, Told, Wanted
from mizzle.spark.saving import CHECKPOINT, Saving
from mizzle.training.checkpoint import CheckpointStore
from mizzle.training.evaluate import Evaluation
from mizzle.training.flat import FlatParameters
from mizzle.training.recut import OWNED, SPANS
from mizzle.training.spec import TrainingSpec
from mizzle.training.state import pack_state

RANKS = 2
EVALUATIONS = (Evaluation(4, 0, 37, 0.1 + 0.2, {"accuracy": 1 / 3}),)


def sgd(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.1)


def model_with(fixed: float) -> nn.Sequential:
    """A layer that is trained, and one that is not, full of a number."""
    found = nn.Sequential(copy.deepcopy(_TRAINED), nn.Linear(2, 2)).requires_grad_(requires_grad=True)
    found[1].requires_grad_(requires_grad=False)
    for parameter in found[1].parameters():
        parameter.fill_(fixed)
    return found


_TRAINED = nn.Linear(4, 2)
SPEC = TrainingSpec(
    loss=torch.nn.functional.mse_loss, optimizer=sgd, num_rows=8, num_shards=2, global_batch_size=4, seed=3
)
FIXED = 7.0
NUM_ELEMENTS = FlatParameters(model_with(FIXED)).num_elements
TRIGGERS = Triggers(10**6, None, {CHECKPOINT: 5})


def owned(rank: int, size: int = RANKS) -> Slice:
    return Slice(rank * NUM_ELEMENTS // size, (rank + 1) * NUM_ELEMENTS // size)


def weights_of(iteration: int, mine: Slice) -> torch.Tensor:
    return torch.arange(mine.start, mine.stop, dtype=torch.float32) + 1000 * iteration


def state(rank: int, iteration: int = 0) -> bytearray:
    mine = owned(rank)
    spans = {"weights": [0, NUM_ELEMENTS]}
    described = {OWNED: [[mine.start, mine.stop]], SPANS: spans, "signature": "s", "log": {}, "scalars": {}}
    return bytearray(pack_state({"weights": weights_of(iteration, mine)}, described))


def written(store: CheckpointStore, wanted: Wanted, iteration: int) -> list[Told]:
    """What the ranks tell when they have written their parts."""
    found = []
    for rank in range(RANKS):
        writer = PartWriter(store, rank)
        writer.begin(wanted.name, iteration, memoryview(state(rank, iteration)), [owned(rank)], lambda: None)
        found.append(writer.wait(Deadline.after(20)))
    return found


def saving(
    path: Path, model: nn.Module | None = None, spec: TrainingSpec = SPEC, **config: Any
) -> Saving:  # fmt: skip
    checkpoints = Checkpoints(path=path, **({"every": 5, "keep": 2} | config))
    store = open_store(checkpoints, "auto")
    return Saving(checkpoints, store, TRIGGERS, "a" * 32, spec, model_with(FIXED) if model is None else model)


def save(one: Saving, iteration: int, **origin: Any) -> str:
    """One that is committed."""
    wanted = one.due(Origin(iteration, **origin), 0)
    assert wanted is not None
    one.take(written(one.store, wanted, iteration), generation=0)
    one.await_commit()
    return wanted.name
