"""The path that a training takes which goes on: the driver names a checkpoint, its ranks read what they need of it."""

from __future__ import annotations

from pathlib import Path

import torch

from mizzle.errors import CheckpointError
from mizzle.spark.ranks.train_task import read_states
from mizzle.training.recut import recut
from mizzle.training.state import unpack_state
from unit.spark.saved import EVALUATIONS, FIXED, model_with, owned, saving, weights_of

TODAY = 3
"""Ranks, which are not as many as have written it."""


def resumed(path: Path) -> tuple[str, int] | None:
    """Go on from what is there with another model of what is not trained; what is taken is just what was saved.

    Returns:
        Name and iteration of the checkpoint that is taken; None: there is none.
    """
    model = model_with(-1.0)
    one = saving(path, model)
    ranges = [[owned(rank, TODAY)] for rank in range(TODAY)]
    while (origin := one.newest()) is not None:
        try:
            states = [read_states(one.store, origin.checkpoint, ranges, rank) for rank in range(TODAY)]
        except CheckpointError as error:
            one.refuse(origin.checkpoint, error)
            continue
        for mine, raws in zip(ranges, states, strict=True):
            tensors, _ = recut([unpack_state(raw) for raw in raws], mine)
            assert torch.equal(tensors["weights"], weights_of(origin.iteration, mine[0]))
        assert all((value == FIXED).all() for value in model[1].parameters())
        assert origin.evaluations == EVALUATIONS
        return origin.checkpoint, origin.iteration
    return None
