from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from harness import run_ranks
from mizzle.collectives.exchange import Exchange
from mizzle.collectives.layout import ExchangeLayout
from mizzle.collectives.timeline import Timeline
from mizzle.collectives.wire import Wire
from mizzle.errors import ConfigError, DataError, ModelError
from mizzle.training.flat import FlatParameters
from mizzle.training.loss_log import LossLog
from mizzle.training.rank import RankTrainer
from unit.training.runs import PLACEMENTS, STRIPE, Mlp, Rows, Training, digits, exchange_of, train


def sgd(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.1)


def adam(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, lr=3e-3)


def rank_trainer(training: Training, store: Any) -> RankTrainer:
    """The only rank of a training."""
    model = training.fresh_model()
    spec = training.spec(model)
    exchange = exchange_of(store, spec, model, PLACEMENTS[1])
    return RankTrainer(spec, model, exchange, dict(enumerate(training.shards())))


def trainer_with(training: Training, *, elements: int | None = None, **changed: Any) -> RankTrainer:
    model = training.fresh_model()
    spec = training.spec(model)
    num_elements = elements or FlatParameters(model, spec.groups).num_elements

    def rank_main(store: Any) -> RankTrainer:
        layout = ExchangeLayout(num_elements, 4, PLACEMENTS[1], stripe=STRIPE)
        exchange = Exchange(store, layout, wire=Wire.FP32, timeout_s=5.0)
        shards = changed.pop("shards", dict(enumerate(training.shards())))
        return RankTrainer(spec, model, exchange, shards, **changed)

    return run_ranks(1, rank_main)[0]


def test_an_exchange_for_another_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="exchange is for 7 elements"):
        trainer_with(Training(Mlp, digits(), sgd), elements=7)


def test_shards_of_another_rank_or_length_are_refused() -> None:
    training = Training(Mlp, digits(), sgd)
    shards = dict(enumerate(training.shards()))
    with pytest.raises(ConfigError, match=r"holds shards \[0, 1, 2, 3\], but was given \[0, 1\]"):
        trainer_with(training, shards={0: shards[0], 1: shards[1]})
    with pytest.raises(DataError, match="shard 3 has 23 rows, not 22 of 90"):
        trainer_with(training, shards={**shards, 3: shards[0]})


def test_a_state_of_another_model_or_slice_is_refused() -> None:
    training = Training(Mlp, digits(), sgd)
    halves = train(training, PLACEMENTS[2], training.plans(1))
    with pytest.raises(ConfigError, match=r"1 states hold \d+ of the \d+ elements of 'weights'.*of all ranks"):
        trainer_with(training, states=[halves[0].state])
    other = Training(lambda: Mlp(norm=True), digits(), sgd)
    with pytest.raises(ConfigError, match=r"a state of model \w+ was given, this is model"):
        trainer_with(other, states=[half.state for half in halves])


def test_a_started_trainer_holds_the_models_own_weights() -> None:
    training = Training(lambda: Mlp(norm=True), digits(), sgd)
    expected = training.fresh_model().state_dict()
    found = trainer_with(training).model_state()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_state_is_kept_in_the_same_memory_at_every_boundary_and_read_from_there() -> None:
    training = Training(lambda: Mlp(norm=True, dropout=0.2), digits(), adam)
    plans = training.plans(9)
    whole = train(training, PLACEMENTS[1], plans)[0]

    def rank_main(store: Any) -> tuple[RankTrainer, set[int]]:
        trainer = rank_trainer(training, store)
        region = store.region("state", 1 << 20)
        lengths = set()
        for plan in plans[:5]:
            trainer.run([plan])
            lengths.add(trainer.state_bytes())
            assert trainer.save_state_into(region.buffer) == trainer.state_bytes()
        kept = region.buffer[: trainer.state_bytes()]
        assert kept == trainer.save_state()
        trainer.run(plans[5:7])  # lost: the group fails, and is run again from its boundary
        trainer.load_state([kept])
        region.buffer[:] = bytes(len(region.buffer))
        trainer.run(plans[5:])
        return trainer, lengths

    trainer, lengths = run_ranks(1, rank_main)[0]
    assert len(lengths) == 1, "another length at every boundary would need new memory"
    assert trainer.save_state() == whole.state
    assert trainer.log.losses.tolist() == whole.losses


def test_losses_outlive_the_rank_that_saw_them() -> None:
    training = Training(Mlp, poisoned(), sgd, options={"not_finite": "skip"})
    plans = training.plans(8)
    whole = train(training, PLACEMENTS[2], plans)
    halves = train(training, PLACEMENTS[2], plans[:5])
    resumed = train(training, PLACEMENTS[2], plans[5:], [half.state for half in halves])
    assert {outcome.log for outcome in (*whole, *resumed)} == {whole[0].log}
    log = LossLog.unpack(whole[0].log)
    assert repr(log.losses.tolist()) == repr(whole[0].losses)
    assert log.skipped == [one.iteration for one in whole[0].metrics if one.skipped]
    assert len(log.skipped) == 2


def poisoned() -> Rows:
    rows = digits()
    rows.inputs[0, 0] = float("nan")
    return rows


def no_mean(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(output, target, reduction="none")


def test_a_loss_that_is_no_scalar_surfaces_from_the_run() -> None:
    training = Training(Mlp, digits(), sgd, loss=no_mean)
    with pytest.raises(ModelError, match=r"shape \(5,\): reduce it to a scalar"):
        train(training, PLACEMENTS[4], training.plans(1))


def test_metrics_say_rows_and_where_the_time_went() -> None:
    training = Training(Mlp, digits(90), sgd, batch_size=40)
    metrics = train(training, PLACEMENTS[2], training.plans(4))[0].metrics
    assert [one.rows for one in metrics] == [40, 40, 10, 40]
    assert [one.iteration for one in metrics] == [0, 1, 2, 3]
    assert all(min(one.compute_s, one.exchange_s, one.update_s) > 0 for one in metrics)


def test_every_range_is_written_by_its_owner_and_all_have_the_whole_before_they_compute() -> None:
    training = Training(lambda: Mlp(norm=True), digits(), sgd)
    wanted = training.fresh_model().state_dict()
    models = [training.fresh_model() for _ in range(4)]

    def rank_main(store: Any) -> tuple[dict[str, torch.Tensor], list[tuple[int, int]]]:
        model = models[store.rank]
        spec = training.spec(model)
        exchange = exchange_of(store, spec, model, PLACEMENTS[4])
        trainer = RankTrainer(spec, model, exchange, {store.rank: training.shards()[store.rank]})
        trainer.gather_weights(0)
        return trainer.model_state(), [(own.start, own.stop) for own in exchange.owned]

    found = run_ranks(4, rank_main)
    for state, _ in found:
        assert all(torch.equal(state[name], value) for name, value in wanted.items())
    assert sorted(span for _, spans in found for span in spans) == [(at, at + 1024) for at in range(0, 6 * 1024, 1024)]


def test_memory_is_listed_by_purpose() -> None:
    training = Training(Mlp, digits(), adam)

    def rank_main(store: Any) -> tuple[dict[str, int], dict[str, int], int]:
        trainer = rank_trainer(training, store)
        before = trainer.memory_bytes()
        trainer.run(training.plans(1))
        return before, trainer.memory_bytes(), trainer.weights.nbytes

    before, after, whole = run_ranks(1, rank_main)[0]
    assert before["optimizer"] == before["spare"] == 0
    assert after["weights"] == after["gradients"] == whole
    num_parameters = sum(p.numel() for p in training.fresh_model().parameters())
    assert 8 * num_parameters <= after["optimizer"] <= 8 * num_parameters + 2048
    assert after["spare"] == 2 * whole, "four shards on one rank: two levels"


def test_what_a_rank_did_when_is_on_its_timeline() -> None:
    training = Training(Mlp, digits(), adam, options={"accumulate": 2})
    timeline = Timeline()

    def rank_main(store: Any) -> None:
        model = training.fresh_model()
        spec = training.spec(model)
        exchange = exchange_of(store, spec, model, PLACEMENTS[1])
        shards = dict(enumerate(training.shards()))
        RankTrainer(spec, model, exchange, shards, timeline=timeline).run(training.plans(3))

    run_ranks(1, rank_main)
    spans, dropped = timeline.take()
    assert dropped == 0
    assert {span.lane for span in spans} == {"compute", "exposed", "update"}
    forwards = [span for span in spans if span.name == "forward"]
    assert [span.args["shard"] for span in forwards] == 3 * [0, 0, 1, 1, 2, 2, 3, 3]
    assert [span.args["iteration"] for span in spans if span.name == "optimizer"] == [0, 1, 2]
    assert [span.name for span in spans if span.lane == "exposed"] == 3 * ["reduce", "gather"]


def test_a_closed_rank_leaves_no_hook_in_the_model() -> None:
    training = Training(Mlp, digits(), sgd, options={"overlap": True})
    model = training.fresh_model()

    def rank_main(store: Any) -> None:
        spec = training.spec(model)
        exchange = exchange_of(store, spec, model, PLACEMENTS[1])
        trainer = RankTrainer(spec, model, exchange, dict(enumerate(training.shards())))
        assert all(p._post_accumulate_grad_hooks for p in model.parameters())
        trainer.close()

    run_ranks(1, rank_main)
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


class Renormed(nn.Module):
    """Looks rows up in a table that it scales down in place, before."""

    def __init__(self, *, max_norm: float | None) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 3, max_norm=max_norm)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.table(inputs.argmax(1))
        return out


def test_a_model_that_writes_to_its_weights_is_refused_because_they_are_shared() -> None:
    harmless = Training(lambda: Renormed(max_norm=None), digits(), sgd)
    assert len(train(harmless, PLACEMENTS[2], harmless.plans(2))[0].losses) == 2
    training = Training(lambda: Renormed(max_norm=0.1), digits(), sgd)
    with pytest.raises(ModelError, match=r"'table\.weight' was written to during forward"):
        train(training, PLACEMENTS[1], training.plans(1))
