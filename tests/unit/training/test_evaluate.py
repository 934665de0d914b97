"""Validation: means over rows, whatever the shards and batches."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.nn.functional import cross_entropy

from mizzle.errors import ModelError
from mizzle.training.evaluate import evaluate_shard, mean_over_shards
from mizzle.training.spec import Loss


class _Rows:
    def __init__(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        self.inputs, self.targets = inputs, targets
        self.num_rows = len(inputs)

    def batch(self, rows: npt.NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        return self.inputs[rows], self.targets[rows]


def _accuracy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output.argmax(1) == target).float().mean()


@pytest.fixture
def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(23, 4, generator=generator), torch.randint(0, 3, (23,), generator=generator)


def test_means_are_those_over_all_rows_whatever_the_shards(data: tuple[torch.Tensor, torch.Tensor]) -> None:
    inputs, targets = data
    model = torch.nn.Linear(4, 3).eval()
    functions: dict[str, Loss] = {"loss": cross_entropy, "accuracy": _accuracy}
    shards = {shard: _Rows(inputs[shard::4], targets[shard::4]) for shard in range(4)}
    parts = [evaluate_shard(model, functions, shard, rows, 5) for shard, rows in shards.items()]
    means = mean_over_shards(parts)
    with torch.no_grad():
        output = model(inputs)
        assert means["loss"] == pytest.approx(float(cross_entropy(output, targets)), rel=1e-6)
        assert means["accuracy"] == pytest.approx(float(_accuracy(output, targets)), rel=1e-6)
    assert mean_over_shards(reversed(parts)) == means


def test_a_metric_that_is_no_scalar_is_named(data: tuple[torch.Tensor, torch.Tensor]) -> None:
    rows = _Rows(*data)
    with pytest.raises(ModelError, match=r"'hits' returned a tensor of shape \(5,\)"):
        evaluate_shard(torch.nn.Linear(4, 3), {"hits": lambda out, target: out.argmax(1) == target}, 0, rows, 5)
