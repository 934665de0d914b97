"""A number that breaks on one rank: all ranks take the same decision, and name who, what, where and when."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import nn

from harness import memory_stores, outcomes
from mizzle.errors import NotFiniteError, PeerLost
from mizzle.training.loss_log import LossLog
from unit.training.runs import PLACEMENTS, SCATTERED, Mlp, Rows, Training, digits, rank_of, train

ROW, SHARD, ITERATIONS = 42, 2, 12  # row 42 lies in shard 42 % 4
RANK_OF_SHARD = {4: 2, 2: 1, 3: 2}


class Poison(torch.autograd.Function):
    """Nothing forwards; backwards one element of the gradient is replaced."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, value: float) -> torch.Tensor:
        ctx.value = value
        return weight.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        poisoned = gradients[0].clone()
        poisoned[1] = ctx.value
        return poisoned, None


class Poisoned(Mlp):
    """The gradient of one parameter breaks where the marked row is; its loss does not."""

    def __init__(self, value: float) -> None:
        super().__init__(norm=True)
        self.value = value

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.norm(self.first(inputs.clamp(-9, 9))))
        marked = bool((inputs[:, 0] == 1234).any())
        bias = Poison.apply(self.last.bias, self.value) if marked else self.last.bias  # type: ignore[no-untyped-call]
        return nn.functional.linear(hidden, self.last.weight, bias)


def marked_rows() -> Rows:
    rows = digits()
    rows.inputs[ROW, 0] = 1234
    return rows


def adam(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, lr=3e-3)


def training_of(value: float, policy: str) -> Training:
    return Training(lambda: Poisoned(value), marked_rows(), adam, options={"not_finite": policy})


def broken_iterations(training: Training) -> list[int]:
    order = training.order()
    per_epoch = order.iterations_per_epoch
    return [
        t for t in range(ITERATIONS) if ROW // 4 in order.rows(t // per_epoch, t % per_epoch, SHARD)
    ]  # fmt: skip


VALUES = [float("nan"), float("inf"), float("-inf")]


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("placement", [PLACEMENTS[2], PLACEMENTS[4], SCATTERED], ids=["2", "4", "scattered"])
def test_raise_names_rank_shard_parameter_and_iteration_on_all_ranks(value: float, placement: Any) -> None:
    training = training_of(value, "raise")
    first = broken_iterations(training)[0]
    assert first > 0
    found = outcomes(memory_stores(len(placement)), rank_of(training, placement, training.plans(ITERATIONS)))
    rank = RANK_OF_SHARD[len(placement)]
    for error in found:
        assert isinstance(error, NotFiniteError)
        assert str(error).startswith(
            f"iteration {first} (epoch 0): the gradient of 'last.bias' from shard 2 is not finite, on rank {rank}. "
        )
        assert error.rank == rank
        assert vars(pickle.loads(pickle.dumps(error)))["rank"] == rank  # noqa: S301 - our own bytes


@pytest.mark.parametrize("value", VALUES)
def test_skip_leaves_the_same_iterations_out_on_all_ranks_bit_for_bit(value: float) -> None:
    training = training_of(value, "skip")
    plans, broken = training.plans(ITERATIONS), broken_iterations(training)
    reference = train(training, PLACEMENTS[1], plans)[0]
    assert LossLog.unpack(reference.log).skipped == broken
    assert reference.weights.isfinite().all()
    for placement in (PLACEMENTS[2], PLACEMENTS[4], SCATTERED):
        for outcome in train(training, placement, plans):
            assert outcome.log == reference.log
            assert torch.equal(outcome.weights, reference.weights)
            for name, tensor in reference.model.items():
                assert torch.equal(outcome.model[name], tensor), name
    before, after = (train(training, PLACEMENTS[4], plans[:stop])[0] for stop in (broken[0], broken[0] + 1))
    assert torch.equal(before.weights, after.weights)
    assert torch.equal(before.model["norm.running_mean"], after.model["norm.running_mean"])


@pytest.mark.parametrize("value", VALUES)
def test_a_loss_that_breaks_names_its_rank(value: float) -> None:
    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(output, target) + output.max() * 0 + output.sum().sign() * 0

    class Broken(Poisoned):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            out = Mlp.forward(self, inputs.clamp(-9, 9))
            return out + torch.where(inputs[:, :1] == 1234, self.value, 0.0)

    training = Training(lambda: Broken(value), marked_rows(), adam, loss=loss)
    first = broken_iterations(training)[0]
    match = rf"iteration {first} \(epoch 0\): the loss of shard 2 is -?(nan|inf), on rank 2\. Lower"
    with pytest.raises(NotFiniteError, match=match):
        train(training, PLACEMENTS[4], training.plans(ITERATIONS))


def test_an_error_of_user_code_says_in_which_iteration_and_shard() -> None:
    class Breaks(Mlp):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            if (inputs[:, 0] == 1234).any():
                raise ValueError("boom")
            return super().forward(inputs)

    training = Training(Breaks, marked_rows(), adam)
    first = broken_iterations(training)[0]
    with pytest.raises(ValueError, match="boom") as caught:
        train(training, PLACEMENTS[2], training.plans(ITERATIONS))
    assert caught.value.__notes__ == [f"in iteration {first} (epoch 0), shard 2"]


def test_notes_of_a_lost_peer_come_along() -> None:
    error = PeerLost(3, "gone")
    error.add_note("and more")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert (str(again), again.rank, again.__notes__) == (str(error), 3, ["and more"])
