"""What an evaluation measures, and that it leaves no trace in the training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from harness import memory_stores, outcomes, run_ranks
from mizzle.collectives.exchange import Exchange
from mizzle.errors import ConfigError, DataError, ModelError
from mizzle.training.evaluate import Evaluation
from mizzle.training.rank import RankTrainer
from mizzle.training.spec import IterationPlan
from unit.training.runs import PLACEMENTS, Grouping, Mlp, Rows, Training, dealt, digits, exchange_of, train

START = IterationPlan(0, 0, 0)


def adam(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, lr=3e-3)


def accuracy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output.argmax(1) == target).float().mean()


class Strange(nn.Module):
    """Draws random numbers, counts, keeps a part in eval mode and caches, in training and in eval mode alike."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Mlp(dropout=0.3, norm=True)
        self.body.norm.eval()
        self.calls: torch.Tensor
        self.seen: torch.Tensor
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seen", torch.zeros(16))
        self.cached: torch.Tensor | None = None
        self.modes: list[bool] = []

    def train(self, mode: bool = True) -> Strange:  # noqa: FBT001, FBT002 - torch's signature
        super().train(mode)
        self.body.norm.eval()
        return self

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.modes.append(self.training)
        self.calls += 1
        self.seen += inputs.sum(0)
        if self.cached is None:
            self.cached = torch.full((3,), 0.5)
        out: torch.Tensor = self.body(inputs) * self.cached + torch.rand(3)
        return out


def with_trainer(
    training: Training, body: Callable[[RankTrainer, nn.Module, Exchange], Any], shards: Any = None
) -> Any:  # fmt: skip
    """Run ``body`` on the only rank of a training."""

    def rank_main(store: Any) -> Any:
        model = training.fresh_model()
        spec = training.spec(model)
        exchange = exchange_of(store, spec, model, PLACEMENTS[1])
        trainer = RankTrainer(spec, model, exchange, dict(enumerate(shards or training.shards())))
        return body(trainer, model, exchange)

    return run_ranks(1, rank_main)[0]


def evaluated(training: Training, rows: Rows, plan: IterationPlan = START) -> Evaluation:
    """The untrained model on these rows."""

    def body(trainer: RankTrainer, _model: nn.Module, _exchange: Exchange) -> Evaluation:
        return trainer.evaluate(plan, dict(enumerate(dealt(rows))))

    found: Evaluation = with_trainer(training, body)
    return found


def test_everything_is_as_before_an_evaluation_bit_for_bit() -> None:
    training = Training(Strange, digits(), adam, options={"metrics": {"accuracy": accuracy}})
    plans = training.plans(5)

    def picture(trainer: RankTrainer, model: nn.Module, exchange: Exchange) -> dict[str, Any]:
        return {
            "state": trainer.save_state(),
            "model": {name: value.tolist() for name, value in trainer.model_state().items()},
            "weights": exchange.weights.tolist(),
            "gradients": [exchange.contribution(node).tolist() for node in exchange.nodes],
            "grad": [parameter.grad is not None for parameter in model.parameters()],
            "modes": [module.training for module in model.modules()],
            "random": torch.random.get_rng_state().tolist(),
            "threads": torch.get_num_threads(),
            "grad mode": torch.is_grad_enabled(),
        }

    def body(trainer: RankTrainer, model: nn.Module, exchange: Exchange) -> None:
        assert isinstance(model, Strange)
        trainer.run(plans)
        before = picture(trainer, model, exchange)
        assert {True, False} == set(before["modes"])
        model.modes.clear()
        trainer.evaluate(plans[-1], dict(enumerate(dealt(digits(50, seed=1)))))
        assert set(model.modes) == {False}
        assert model.calls == int(before["model"]["calls"]), "the model is left with buffers of an evaluation"
        assert picture(trainer, model, exchange) == before

    with_trainer(training, body)


def test_evaluating_in_between_does_not_change_the_training() -> None:
    training = Training(Strange, digits(), adam, validation=digits(50, seed=1))
    plans = training.plans(9)
    for placement in (PLACEMENTS[1], PLACEMENTS[2]):
        with_it = train(training, placement, plans, grouping=Grouping(3, evaluate_every=3))
        without = train(training, placement, plans, grouping=Grouping(3))
        assert [len(one.evaluations) for one in with_it] == [3] * len(placement)
        for one, other in zip(with_it, without, strict=True):
            assert one.losses == other.losses
            assert torch.equal(one.weights, other.weights)
            assert one.state == other.state


def test_a_first_forward_in_an_evaluation_leaves_nothing_that_training_cannot_use() -> None:
    training = Training(Strange, digits(), adam)

    def body(trainer: RankTrainer, _model: nn.Module, _exchange: Exchange) -> list[float]:
        trainer.evaluate(START, dict(enumerate(dealt(digits(8)))))
        return [one.loss for one in trainer.run(training.plans(2, start=1))]

    assert len(with_trainer(training, body)) == 2


class Merging(nn.Module):
    """Does something of its own when its mode changes, as adapters do that merge weights for inference."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Mlp(dropout=0.3)
        self.merged = False

    def train(self, mode: bool = True) -> Merging:  # noqa: FBT001, FBT002 - torch's signature
        self.merged = not mode
        super().train(mode)
        return self

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        assert self.merged is not self.training
        out: torch.Tensor = self.body(inputs)
        return out


def test_every_part_of_a_model_gets_its_own_mode_back_and_learns_of_it() -> None:
    def body(trainer: RankTrainer, model: nn.Module, _exchange: Exchange) -> None:
        assert isinstance(model, Merging)
        model.body.dropout.eval()
        trainer.evaluate(START, dict(enumerate(dealt(digits(8)))))
        assert [name for name, module in model.named_modules() if not module.training] == ["body.dropout"]
        assert not model.merged

    with_trainer(Training(Merging, digits(), adam), body)


def test_the_means_are_those_of_all_rows_whatever_the_chunk() -> None:
    rows = digits(37, seed=1)
    model = Training(Mlp, rows, adam).fresh_model().eval()
    with torch.no_grad():
        output = model(rows.inputs)
    for chunk in (None, 1, 4, 1000):
        options = {"metrics": {"accuracy": accuracy, "half": lambda *_: 0.5}, "evaluation_rows": chunk}
        found = evaluated(Training(Mlp, digits(), adam, options=options), rows, IterationPlan(12, 2, 2))
        assert (found.iteration, found.epoch, found.rows) == (12, 2, 37)
        assert found.loss == pytest.approx(float(nn.functional.cross_entropy(output, rows.targets)), rel=1e-6)
        assert found.metrics == {"accuracy": pytest.approx(float(accuracy(output, rows.targets))), "half": 0.5}
        assert list(found.metrics) == ["accuracy", "half"]


def test_chunks_are_cut_from_a_shard_in_row_order() -> None:
    class Watched(Rows):
        def batch(self, rows: Any) -> tuple[torch.Tensor, torch.Tensor]:
            asked.append(rows.tolist())
            return super().batch(rows)

    asked: list[list[int]] = []
    shards = [Watched(shard.inputs, shard.targets) for shard in dealt(digits(22))]

    def body(trainer: RankTrainer, _model: nn.Module, _exchange: Exchange) -> Evaluation:
        return trainer.evaluate(START, {3: shards[3], 0: shards[0]})

    found = with_trainer(Training(Mlp, digits(), adam, batch_size=10), body)  # ceil(10 / 4) rows at once
    assert asked == [[0, 1, 2], [3, 4, 5], [0, 1, 2], [3, 4]]
    assert found.rows == 11


def test_a_loss_that_is_nan_is_reported() -> None:
    rows = digits(20)
    rows.inputs[3, 0] = float("nan")
    found = evaluated(Training(Mlp, digits(), adam, options={"metrics": {"accuracy": accuracy}}), rows)
    assert repr(found.loss) == "nan"
    assert 0.0 <= found.metrics["accuracy"] <= 1.0


class Scaled(nn.Module):
    """A loss with a mode of its own."""

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(output, target) * (2.0 if self.training else 1.0)


def test_a_loss_with_modes_is_evaluated_in_eval_mode_and_gets_its_own_back() -> None:
    rows, loss = digits(20), Scaled()
    expected = evaluated(Training(Mlp, digits(), adam), rows).loss
    assert evaluated(Training(Mlp, digits(), adam, loss=loss), rows).loss == expected
    assert loss.training


def test_autocast_holds_in_evaluation_as_in_training() -> None:
    seen: list[torch.dtype] = []

    def kind(output: torch.Tensor, _target: torch.Tensor) -> float:
        seen.append(output.dtype)
        return 1.0

    options = {"metrics": {"kind": kind}, "autocast": True, "evaluation_rows": 100}
    low = evaluated(Training(Mlp, digits(), adam, options=options), digits(20))
    assert set(seen) == {torch.bfloat16}
    assert low.loss == pytest.approx(evaluated(Training(Mlp, digits(), adam), digits(20)).loss, rel=0.02)


def test_threads_are_those_of_the_training() -> None:
    wanted = torch.get_num_threads() + 2
    options = {"metrics": {"threads": lambda *_: torch.get_num_threads()}, "threads": wanted}
    assert evaluated(Training(Mlp, digits(), adam, options=options), digits(20)).metrics == {"threads": wanted}
    assert torch.get_num_threads() == wanted - 2


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(2), r"metric 'm' returned a tensor of shape \(2,\)"), (None, "metric 'm' returned NoneType"),
        ("0.5", "metric 'm' returned str"), (torch.tensor(1j), "metric 'm' returned a tensor"),
    ],
)  # fmt: skip
def test_a_metric_that_is_no_number_is_named(value: object, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        evaluated(Training(Mlp, digits(), adam, options={"metrics": {"m": lambda *_: value}}), digits(20))


def test_a_loss_that_is_no_number_is_named() -> None:
    def rowwise(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(output, target, reduction="none")

    with pytest.raises(ModelError, match=r"the loss returned a tensor of shape \(5,\) on the validation rows"):
        evaluated(Training(Mlp, digits(), adam, loss=rowwise), digits(20))


def on_two_ranks(rows: Rows, held: Sequence[tuple[int, ...]], **how: Any) -> list[Any]:
    """Evaluate with two ranks, of which each has the validation shards that it is given."""
    training = Training(Mlp, digits(), adam, **how)

    def rank_main(store: Any) -> Evaluation:
        model = training.fresh_model()
        spec = training.spec(model)
        exchange = exchange_of(store, spec, model, PLACEMENTS[2])
        own = {shard: training.shards()[shard] for shard in PLACEMENTS[2][store.rank]}
        trainer = RankTrainer(spec, model, exchange, own)
        return trainer.evaluate(START, {shard: dealt(rows)[shard] for shard in held[store.rank]})

    return outcomes(memory_stores(2), rank_main)


def test_no_rows_at_all_are_refused_on_all_ranks_and_an_empty_shard_is_not() -> None:
    halves = PLACEMENTS[2]
    assert [type(one) for one in on_two_ranks(digits(0), halves)] == [DataError, DataError]
    found = on_two_ranks(digits(2), halves)
    assert [one.rows for one in found] == [2, 2]
    assert found[0] == found[1]


def test_sums_are_added_in_the_order_of_the_shards_wherever_they_were_measured() -> None:
    def target_mean(_output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return target.mean()

    rows = Rows(torch.zeros(4, 16), torch.tensor([1e16, 1.0, -1e16, 1.0], dtype=torch.float64))
    for held in (PLACEMENTS[2], ((3, 0), (1, 2)), ((3, 2), (1, 0)), ((), (2, 0, 1, 3))):
        found = on_two_ranks(rows, held, loss=target_mean)
        assert [one.loss for one in found] == [0.25, 0.25], "((1e16 + 1) - 1e16) + 1 is 1 in float64"


def test_a_shard_that_two_ranks_evaluate_is_refused_on_both() -> None:
    for error in on_two_ranks(digits(20), ((0, 1, 2), (2, 3))):
        assert isinstance(error, ConfigError)
        assert "validation shard 2 was evaluated by two ranks" in str(error)


def test_more_sums_than_a_message_holds_are_refused_before_they_are_computed() -> None:
    training = Training(Mlp, digits(), adam)

    def body(trainer: RankTrainer, _model: nn.Module, _exchange: Exchange) -> None:
        trainer.evaluate(START, dict.fromkeys(range(4000), digits(0)))

    with pytest.raises(ConfigError, match="sums of 4000 validation shards"):
        with_trainer(training, body)
