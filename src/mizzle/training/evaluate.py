"""Loss and metrics on rows that are not trained on: sums per shard, so that they do not depend on who holds which.

No exchange: every rank has all weights, and the driver adds the shards up in their order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from mizzle.errors import ModelError
from mizzle.training.spec import Loss, ShardRows


@dataclass(frozen=True, slots=True)
class ShardEvaluation:
    """Sums over one shard.

    Attributes:
        shard: its number.
        rows: how many it has.
        sums: by name ("loss" and the metrics) the mean times the rows, in float64.
    """

    shard: int
    rows: int
    sums: Mapping[str, float]


def evaluate_shard(
    model: torch.nn.Module,
    functions: Mapping[str, Loss],
    shard: int,
    rows: ShardRows,
    batch_rows: int,
) -> ShardEvaluation:
    """Run a model over one shard, in the shard's own order.

    Args:
        model: in eval mode.
        functions: "loss" and the metrics, by name.
        shard: its number.
        rows: the shard.
        batch_rows: rows at a time; fixed for a run, as kernels may add in another order with more.

    Raises:
        ModelError: a function did not return a scalar; names it.
    """
    sums = dict.fromkeys(functions, 0.0)
    with torch.inference_mode():
        for start in range(0, rows.num_rows, batch_rows):
            positions = np.arange(start, min(start + batch_rows, rows.num_rows), dtype=np.int64)
            inputs, targets = rows.batch(positions)
            output = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
            for name, function in functions.items():
                value = torch.as_tensor(function(output, targets))
                if value.numel() != 1:
                    raise ModelError(f"{name!r} returned a tensor of shape {tuple(value.shape)}: reduce it to a scalar")
                sums[name] += float(value.double()) * len(positions)
    return ShardEvaluation(shard, rows.num_rows, sums)


def mean_over_shards(evaluations: Iterable[ShardEvaluation]) -> dict[str, float]:
    """Means over all rows, shards added in their order."""
    ordered = sorted(evaluations, key=lambda one: one.shard)
    rows = sum(one.rows for one in ordered)
    return {name: sum(one.sums[name] for one in ordered) / rows for name in ordered[0].sums}
