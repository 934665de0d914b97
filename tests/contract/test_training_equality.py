"""The promise of training: bits do not depend on the number of ranks, and plain PyTorch agrees up to fp32 rounding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from harness import memory_stores, outcomes
from mizzle.collectives.exchange import Exchange
from mizzle.collectives.wire import Wire
from mizzle.errors import NotFiniteError
from mizzle.training.clipping import ClipByNorm, ClipByValue
from mizzle.training.flat import FlatParameters
from mizzle.training.spec import IterationPlan
from mizzle.training.state import unpack_state
from mizzle.training.stopping import EarlyStopping
from unit.training.runs import (
    PLACEMENTS,
    SCATTERED,
    Cnn,
    Grouping,
    Mlp,
    Outcome,
    Rows,
    Training,
    assert_same_bits,
    digits,
    plain,
    rank_of,
    train,
)

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=1e-3, nesterov=True),
    "adam": lambda groups: torch.optim.Adam(groups, lr=3e-3),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=3e-3, amsgrad=True),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, lr=1e-3, momentum=0.5),
    "adagrad": lambda groups: torch.optim.Adagrad(groups, lr=1e-2),
}
ITERATIONS = 12

# Sums over a batch are added shard by shard here and in one matrix product there, so gradients differ in the last of
# 24 bits (6e-8 of their size), and iterations carry it on. Measured over all cases below: losses differ by 1.4e-7 of
# their size, weights (at most about 1) by 2.3e-7. The limits leave a factor of ten for kernels of other processors. The
# absolute one is for weights near zero and for adaptive optimizers, which blow up gradients that are mostly rounding.
LOSS_RTOL = 2e-6
WEIGHT_RTOL = 1e-5
WEIGHT_ATOL = 2e-6


def same_bits_on_every_placement(training: Training, plans: Sequence[IterationPlan]) -> Outcome:
    """Train with 1, 2 and 4 ranks and a scattered placement; what all of them ended with."""
    reference = train(training, PLACEMENTS[1], plans)[0]
    for placement in (PLACEMENTS[2], PLACEMENTS[4], SCATTERED):
        assert_same_bits(train(training, placement, plans), reference)
    return reference


def assert_close(ours: Outcome, theirs: Outcome) -> None:
    assert ours.losses == pytest.approx(theirs.losses, rel=LOSS_RTOL)
    assert [one.rows for one in ours.metrics] == [one.rows for one in theirs.metrics]
    for name, value in theirs.model.items():
        torch.testing.assert_close(ours.model[name], value, rtol=WEIGHT_RTOL, atol=WEIGHT_ATOL, msg=name)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", [Mlp, Cnn])
def test_bits_do_not_depend_on_ranks_and_plain_pytorch_agrees(model: Callable[[], nn.Module], optimizer: str) -> None:
    training = Training(model, digits(), OPTIMIZERS[optimizer])
    plans = training.plans(ITERATIONS)
    ours = same_bits_on_every_placement(training, plans)
    assert_close(ours, plain(training, plans))
    start = training.fresh_model().state_dict()
    assert not any(torch.equal(value, start[name]) for name, value in ours.model.items())


def two_groups(model: nn.Module) -> list[dict[str, Any]]:
    biases = [p for p in model.parameters() if p.dim() == 1]
    others = [p for p in model.parameters() if p.dim() > 1]
    return [{"params": others, "weight_decay": 0.01}, {"params": biases, "lr": 1e-2}]


@pytest.mark.parametrize("max_norm", [0.1, 100.0])
def test_adam_with_norm_clipping_and_two_groups_agrees(max_norm: float) -> None:
    training = Training(
        Mlp, digits(), OPTIMIZERS["adam"], groups=two_groups, options={"clipping": ClipByNorm(max_norm)}
    )
    plans = training.plans(ITERATIONS)
    ours = same_bits_on_every_placement(training, plans)
    clipped = plain(training, plans, lambda model: nn.utils.clip_grad_norm_(model.parameters(), max_norm))
    assert_close(ours, clipped)
    free = plain(training, plans)
    assert (clipped.losses == free.losses) is (max_norm == 100.0)


def test_clipping_by_value_agrees() -> None:
    training = Training(Mlp, digits(), OPTIMIZERS["sgd"], options={"clipping": ClipByValue(0.01)})
    plans = training.plans(ITERATIONS)
    ours = same_bits_on_every_placement(training, plans)
    assert_close(ours, plain(training, plans, lambda model: nn.utils.clip_grad_value_(model.parameters(), 0.01)))


@pytest.mark.parametrize(("num_rows", "batch_size"), [(90, 20), (90, 3), (7, 1), (5, 64), (3, 2), (89, 13)])
def test_any_number_of_rows_and_any_batch_size_agree(num_rows: int, batch_size: int) -> None:
    training = Training(Mlp, digits(num_rows), OPTIMIZERS["sgd"], batch_size=batch_size)
    plans = training.plans(8)
    assert_close(same_bits_on_every_placement(training, plans), plain(training, plans))


def test_accumulation_gives_the_same_up_to_rounding() -> None:
    whole = Training(Mlp, digits(), OPTIMIZERS["sgd"])
    parts = Training(Mlp, digits(), OPTIMIZERS["sgd"], options={"accumulate": 3})
    plans = whole.plans(ITERATIONS)
    assert_close(same_bits_on_every_placement(parts, plans), plain(whole, plans))


def test_frozen_parameters_stay_and_the_others_agree() -> None:
    def half_frozen() -> nn.Module:
        model = Mlp()
        model.first.requires_grad_(requires_grad=False)
        return model

    training = Training(half_frozen, digits(), OPTIMIZERS["adamw"])
    plans = training.plans(ITERATIONS)
    ours = same_bits_on_every_placement(training, plans)
    assert_close(ours, plain(training, plans))
    assert torch.equal(ours.model["first.weight"], training.fresh_model().state_dict()["first.weight"])


def test_batch_norm_statistics_are_the_mean_over_shards() -> None:
    training = Training(lambda: Mlp(norm=True), digits(), OPTIMIZERS["sgd"])
    ours = same_bits_on_every_placement(training, training.plans(1))

    order, starts = training.order(), []
    for number, shard in enumerate(training.shards()):
        model = training.fresh_model().train()
        model(shard.batch(order.rows(0, 0, number))[0])
        starts.append(model.state_dict()["norm.running_var"])
    torch.testing.assert_close(ours.model["norm.running_var"], torch.stack(starts).mean(0))
    assert ours.model["norm.num_batches_tracked"] == 1

    later = same_bits_on_every_placement(training, training.plans(ITERATIONS))
    assert later.model["norm.num_batches_tracked"] == ITERATIONS
    assert not torch.equal(later.model["norm.running_var"], ours.model["norm.running_var"])


def test_dropout_draws_from_a_stream_per_shard_and_iteration() -> None:
    training = Training(lambda: Mlp(dropout=0.5), digits(), OPTIMIZERS["sgd"])
    plans = training.plans(ITERATIONS)
    before = torch.random.get_rng_state()
    ours = same_bits_on_every_placement(training, plans)
    assert torch.equal(torch.random.get_rng_state(), before), "the caller's random generator was touched"
    assert ours.losses != plain(Training(Mlp, digits(), OPTIMIZERS["sgd"]), plans).losses


def test_autocast_trains_with_the_same_bits() -> None:
    training = Training(Mlp, digits(), OPTIMIZERS["adam"], options={"autocast": True})
    plans = training.plans(ITERATIONS)
    ours = same_bits_on_every_placement(training, plans)
    exact = plain(training, plans)
    assert ours.losses != exact.losses
    assert ours.losses == pytest.approx(exact.losses, rel=0.02)  # bfloat16 keeps 8 bits


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda groups: torch.optim.Adafactor(groups, lr=1e-2),
        lambda groups: type("MySGD", (torch.optim.SGD,), {})(groups, lr=0.1, momentum=0.9),
    ],
    ids=["adafactor", "subclass"],
)
def test_an_optimizer_that_is_not_elementwise_runs_unsharded_and_agrees(optimizer: Any) -> None:
    training = Training(Mlp, digits(), optimizer, groups=two_groups_of_names, options={"clipping": ClipByNorm(0.5)})
    plans = training.plans(ITERATIONS)
    ours = same_bits_on_every_placement(training, plans)
    theirs = plain(training, plans, lambda model: nn.utils.clip_grad_norm_(model.parameters(), 0.5))
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-4)  # Adafactor scales by norms of whole tensors
    halves = train(training, PLACEMENTS[2], plans[:5])
    resumed = train(training, PLACEMENTS[2], plans[5:], [half.state for half in halves])
    assert_continues(halves, resumed, ours)


def two_groups_of_names(model: nn.Module) -> list[dict[str, Any]]:
    return [{"params": list(model.parameters())[:2]}, {"params": list(model.parameters())[2:], "weight_decay": 0.1}]


def assert_continues(halves: Sequence[Outcome], resumed: Sequence[Outcome], reference: Outcome) -> None:
    for half, rest in zip(halves, resumed, strict=True):
        assert half.losses + rest.losses == reference.losses
        for name, value in rest.model.items():
            assert torch.equal(value, reference.model[name]), name


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_fresh_workers_go_on_from_saved_states_with_the_same_bits(optimizer: str, ranks: int) -> None:
    training = Training(
        lambda: Mlp(dropout=0.2, norm=True), digits(), OPTIMIZERS[optimizer],
        scheduler=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
    )  # fmt: skip
    plans = training.plans(ITERATIONS)
    reference = train(training, PLACEMENTS[1], plans)[0]
    halves = train(training, PLACEMENTS[ranks], plans[:5])
    resumed = train(training, PLACEMENTS[ranks], plans[5:], [half.state for half in halves])
    assert_continues(halves, resumed, reference)


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=ITERATIONS + 1),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=3),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, [lambda i: 1 / (i + 1), lambda i: min(1.0, i / 5)]),
    ],
    ids=["one-cycle", "warm-restarts", "lambda"],
)
def test_a_schedule_acts_every_iteration_as_in_plain_pytorch(scheduler: Any) -> None:
    training = Training(Mlp, digits(), OPTIMIZERS["sgd"], groups=two_groups, scheduler=scheduler)
    plans = training.plans(ITERATIONS)
    assert_close(same_bits_on_every_placement(training, plans), plain(training, plans))


@pytest.mark.parametrize("wire", [Wire.BF16, Wire.FP16])
def test_a_16_bit_wire_gives_equal_bits_on_all_ranks_and_from_run_to_run(wire: Wire) -> None:
    training = Training(Mlp, digits(), OPTIMIZERS["sgd"], options={"wire": wire})
    plans = training.plans(ITERATIONS)
    first = train(training, PLACEMENTS[2], plans)
    assert_same_bits([*first, *train(training, PLACEMENTS[2], plans)], first[0])
    exact = plain(training, plans)
    assert first[0].losses != exact.losses
    assert first[0].losses == pytest.approx(exact.losses, rel=0.02)


@pytest.mark.parametrize("wire", [Wire.BF16, Wire.FP16])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_weights_rounded_on_their_way_are_the_same_everywhere_and_the_optimizer_keeps_its_own(
    wire: Wire, ranks: int
) -> None:
    training = Training(lambda: Mlp(norm=True), digits(), OPTIMIZERS["adamw"], options={"weights_wire": wire})
    plans = training.plans(ITERATIONS)
    reference = train(training, PLACEMENTS[1], plans)[0]
    found = train(training, PLACEMENTS[ranks], plans)
    assert_same_bits(found, reference)  # gradients are not rounded, so the bits do not depend on the ranks
    weights = reference.model["first.weight"]
    assert torch.equal(weights, weights.to(wire.dtype).float())
    exact = plain(training, plans)
    assert not torch.equal(weights, exact.model["first.weight"].to(wire.dtype).float())
    halves = train(training, PLACEMENTS[ranks], plans[:5])
    resumed = train(training, PLACEMENTS[ranks], plans[5:], [half.state for half in halves])
    assert_continues(halves, resumed, reference)
    masters = [unpack_state(one.state)[0]["weights"] for one in found]
    assert not torch.equal(torch.cat(masters), torch.cat(masters).to(wire.dtype).float())


def test_small_steps_are_not_lost_when_weights_are_rounded() -> None:
    def tiny(groups: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, lr=1e-4)

    training = Training(Mlp, digits(), tiny, options={"weights_wire": Wire.BF16})
    plans = training.plans(60)
    ours, theirs = train(training, PLACEMENTS[2], plans)[0], plain(training, plans)
    start = training.fresh_model().state_dict()["last.weight"]
    moved = theirs.model["last.weight"] - start
    masters = [unpack_state(one.state)[0]["weights"] for one in train(training, PLACEMENTS[1], plans)]
    slots = FlatParameters(training.fresh_model()).slots
    (slot,) = (slot for slot in slots if slot.name == "last.weight")
    torch.testing.assert_close(slot.view(masters[0]) - start, moved, rtol=0.05, atol=1e-5)
    assert ours.losses != theirs.losses


@pytest.mark.parametrize(
    "options",
    [
        {}, {"accumulate": 3}, {"wire": Wire.BF16}, {"wire": Wire.FP16}, {"weights_wire": Wire.BF16},
        {"clipping": ClipByNorm(0.5)}, {"autocast": True},
    ],
    ids=str,
)  # fmt: skip
def test_overlap_changes_no_bit(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    announced: list[tuple[int, int]] = []
    announce = Exchange.announce

    def noted(self: Exchange, bucket: int) -> None:
        announced.append((self._store.rank, bucket))
        announce(self, bucket)

    monkeypatch.setattr(Exchange, "announce", noted)
    # with accumulation a part may be one row, which batch norm refuses
    for model in (lambda: Mlp(norm="accumulate" not in options, dropout=0.2), Cnn):
        serial = Training(model, digits(), OPTIMIZERS["adam"], options=options | {"overlap": False})
        overlapped = Training(model, digits(), OPTIMIZERS["adam"], options=options | {"overlap": True})
        plans = serial.plans(ITERATIONS)
        for placement in (PLACEMENTS[4], PLACEMENTS[2], SCATTERED):
            announced.clear()
            reference = train(serial, placement, plans)
            assert not announced
            assert_same_bits(train(overlapped, placement, plans), reference[0])
            # the last shard that a rank computes must be a node by itself; the first of 12 iterations is watched
            apart = [rank for rank, held in enumerate(placement) if len(held) == 1 or (held and placement == SCATTERED)]
            if "wire" in options:  # gradients are rounded in their place, after they were looked through
                apart = []
            buckets = {bucket for _, bucket in announced}
            assert sorted(announced) == sorted([(rank, bucket) for rank in apart for bucket in buckets] * 11)
            assert bool(buckets) is bool(apart)


@pytest.mark.parametrize(("num_rows", "batch_size"), [(7, 1), (5, 64), (3, 2)])
def test_overlap_takes_iterations_in_which_some_ranks_have_no_rows(num_rows: int, batch_size: int) -> None:
    training = Training(Mlp, digits(num_rows), OPTIMIZERS["sgd"], batch_size=batch_size, options={"overlap": True})
    plans = training.plans(8)
    assert_close(same_bits_on_every_placement(training, plans), plain(training, plans))


def test_overlap_skips_an_iteration_that_is_not_finite() -> None:
    options = {"not_finite": "skip", "overlap": True}
    training = Training(lambda: Mlp(norm=True), poisoned(42), OPTIMIZERS["adam"], options=options)
    plans = training.plans(ITERATIONS)
    reference = train(training, PLACEMENTS[1], plans)[0]
    found = train(training, PLACEMENTS[4], plans)
    assert [repr(one.losses) for one in found] == [repr(reference.losses)] * 4
    assert all(torch.equal(one.weights, reference.weights) for one in found)


class WritesGradients(torch.optim.SGD):
    """Scales the gradients where they lie, as some published optimizers do."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad.mul_(0.5)
        super().step(closure)


def test_an_optimizer_that_writes_to_gradients_writes_to_its_own() -> None:
    training = Training(Mlp, digits(), lambda groups: WritesGradients(groups, lr=0.1))
    plans = training.plans(ITERATIONS)
    assert_close(same_bits_on_every_placement(training, plans), plain(training, plans))


def poisoned(row: int, value: float = float("nan")) -> Rows:
    data = digits()
    data.inputs[row, 0] = value
    return data


def poisoned_iteration(training: Training, row: int) -> int:
    shard = row % 4
    order = training.order()
    return next(t for t in range(order.iterations_per_epoch) if row // 4 in order.rows(0, t, shard))


@pytest.mark.parametrize("placement", [PLACEMENTS[1], PLACEMENTS[2], PLACEMENTS[4], SCATTERED])
def test_a_loss_that_is_nan_is_raised_on_all_ranks_naming_iteration_and_shard(placement: Any) -> None:
    training = Training(Mlp, poisoned(42), OPTIMIZERS["adam"])
    with pytest.raises(NotFiniteError, match=rf"iteration {poisoned_iteration(training, 42)} .*loss of shard 2 is nan"):
        train(training, placement, training.plans(ITERATIONS))


def test_every_rank_raises_the_same_and_none_is_left_behind() -> None:
    training = Training(Mlp, poisoned(42), OPTIMIZERS["adam"])

    found = outcomes(memory_stores(4), rank_of(training, PLACEMENTS[4], training.plans(ITERATIONS)))
    assert [type(one) for one in found] == [NotFiniteError] * 4
    assert len({str(one) for one in found}) == 1


class Root(nn.Module):
    """Its loss is finite at 0, its gradient is not."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Mlp()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.body(inputs) + torch.sqrt(inputs[:, :1].abs() * self.body.last.bias[0].abs())
        return out


def test_a_gradient_that_is_not_finite_is_named_with_its_parameter() -> None:
    training = Training(Root, poisoned(42, 0.0), OPTIMIZERS["adam"])
    with pytest.raises(NotFiniteError, match=r"gradient of 'body.last.bias' from shard 2 is not finite"):
        train(training, PLACEMENTS[2], training.plans(ITERATIONS))


def test_fp16_overflow_on_the_wire_is_seen_before_it_is_summed() -> None:
    training = Training(Mlp, digits(), OPTIMIZERS["sgd"], loss=huge_loss, options={"wire": Wire.FP16})
    with pytest.raises(NotFiniteError, match=r"iteration 0 .*gradient of 'first.weight' from shard 0 .*float16 ends"):
        train(training, PLACEMENTS[2], training.plans(2))


def test_fp16_overflow_of_what_a_host_adds_up_is_seen_before_the_weights_are_touched() -> None:
    training = Training(Flat, digits(), OPTIMIZERS["sgd"], loss=mean_output, options={"wire": Wire.FP16})
    ours = train(training, PLACEMENTS[4], training.plans(2))
    assert all(one.weights.isfinite().all() for one in ours), "each shard's gradient fits"
    hosts = memory_stores(4, in_place=True, islands=((0, 1), (2, 3)))
    for error in outcomes(hosts, rank_of(training, PLACEMENTS[4], training.plans(2))):
        assert isinstance(error, NotFiniteError)
        assert "where float16 ends on its way" in str(error)


class Flat(nn.Module):
    """Its gradient is 40000 in a shard of five rows: fp16 holds it, but not the sum of two."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.scale.mul(8000.0) * inputs[:, :1].mul(0).add(1)


class Steep(nn.Module):
    """The gradient of every shard is finite, a little below the limit; that of all of them together is not."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.scale.mul(3e37) * inputs[:, :1].mul(0).add(1)


def mean_output(output: torch.Tensor, _target: torch.Tensor) -> torch.Tensor:
    return output.mean()


@pytest.mark.parametrize("wire", [Wire.FP32, Wire.BF16])
def test_gradients_that_only_overflow_in_their_sum_never_reach_the_weights(wire: Wire) -> None:
    training = Training(Steep, digits(), OPTIMIZERS["sgd"], loss=mean_output, options={"wire": wire})
    with pytest.raises(NotFiniteError, match=r"iteration 0 .*sum of the shards' gradients may reach .*float32"):
        train(training, PLACEMENTS[2], training.plans(2))
    skipping = Training(
        Steep, digits(), OPTIMIZERS["sgd"], loss=mean_output, options={"wire": wire, "not_finite": "skip"}
    )
    for outcome in train(skipping, PLACEMENTS[2], skipping.plans(2)):
        assert [one.skipped for one in outcome.metrics] == [True, True]
        assert torch.count_nonzero(outcome.weights) == 0


def huge_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return 1e7 * nn.functional.cross_entropy(output, target)


def test_skip_leaves_the_iteration_out_on_all_ranks() -> None:
    training = Training(lambda: Mlp(norm=True), poisoned(42), OPTIMIZERS["adam"], options={"not_finite": "skip"})
    plans = training.plans(ITERATIONS)
    ours = train(training, PLACEMENTS[1], plans)[0]
    for placement in (PLACEMENTS[2], PLACEMENTS[4]):
        for outcome in train(training, placement, plans):
            assert [repr(loss) for loss in outcome.losses] == [repr(loss) for loss in ours.losses]
            assert [one.skipped for one in outcome.metrics] == [one.skipped for one in ours.metrics]
            assert torch.equal(outcome.weights, ours.weights)
    bad = poisoned_iteration(training, 42)
    per_epoch = training.order().iterations_per_epoch
    assert next(one.iteration for one in ours.metrics if one.skipped) == bad
    assert sum(one.skipped for one in ours.metrics) == -(-ITERATIONS // per_epoch)

    before = train(training, PLACEMENTS[2], plans[:bad])[0] if bad else None
    after = train(training, PLACEMENTS[2], plans[: bad + 1])[0]
    if before is not None:
        assert torch.equal(before.weights, after.weights)
    assert torch.isfinite(ours.weights).all()


def accuracy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output.argmax(1) == target).float().mean()


VALIDATION = digits(57, seed=1)
EVALUATED = {"metrics": {"accuracy": accuracy}}
ALL_PLACEMENTS = (*PLACEMENTS.values(), SCATTERED)


@pytest.mark.parametrize("model", [lambda: Mlp(dropout=0.2, norm=True), Cnn], ids=["mlp", "cnn"])
def test_evaluations_have_the_same_bits_for_every_placement_and_plain_pytorch_agrees(
    model: Callable[[], nn.Module],
) -> None:
    training = Training(model, digits(), OPTIMIZERS["adam"], options=EVALUATED, validation=VALIDATION)
    plans, grouping = training.plans(ITERATIONS), Grouping(5, evaluate_every=6)
    reference = train(training, PLACEMENTS[1], plans, grouping=grouping)[0]
    for placement in ALL_PLACEMENTS:
        assert_same_bits(train(training, placement, plans, grouping=grouping), reference)
    assert [(one.iteration, one.epoch, one.rows) for one in reference.evaluations] == [(5, 1, 57), (11, 2, 57)]

    learnt = training.fresh_model()
    learnt.load_state_dict(reference.model)
    with torch.no_grad():
        output = learnt.eval()(VALIDATION.inputs)
    last = reference.evaluations[-1]
    assert last.loss == pytest.approx(float(training.loss(output, VALIDATION.targets)), rel=LOSS_RTOL)
    assert last.metrics == {"accuracy": pytest.approx(float(accuracy(output, VALIDATION.targets)), rel=LOSS_RTOL)}
    assert last.loss != reference.evaluations[0].loss


def test_evaluating_does_not_change_a_bit_of_the_training() -> None:
    training = Training(
        lambda: Mlp(dropout=0.2, norm=True), digits(), OPTIMIZERS["adamw"], options=EVALUATED, validation=VALIDATION
    )
    plans = training.plans(ITERATIONS)
    without = train(training, PLACEMENTS[1], plans)[0]
    for placement in ALL_PLACEMENTS:
        for outcome in train(training, placement, plans, grouping=Grouping(100, evaluate_every=1)):
            assert outcome.losses == without.losses
            assert torch.equal(outcome.weights, without.weights)
            assert outcome.model.keys() == without.model.keys()
            assert all(torch.equal(value, without.model[name]) for name, value in outcome.model.items())


def test_schedule_evaluations_and_early_stopping_do_not_depend_on_the_size_of_groups() -> None:
    training = Training(
        lambda: Mlp(dropout=0.2), digits(), OPTIMIZERS["sgd"], options=EVALUATED, validation=VALIDATION,
        scheduler=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 1.2),  # until it gets no better
    )  # fmt: skip
    plans = training.plans(60)
    stopping = EarlyStopping(patience=2)
    reference = train(training, PLACEMENTS[1], plans, grouping=Grouping(1, 4, stopping))[0]
    assert 12 <= len(reference.losses) < 60, "it must stop early, not at once"
    for size, placement in ((7, PLACEMENTS[2]), (100, PLACEMENTS[1]), (3, SCATTERED)):
        outcomes_ = train(training, placement, plans, grouping=Grouping(size, 4, stopping))
        assert_same_bits(outcomes_, reference)
    never = train(training, PLACEMENTS[1], plans, grouping=Grouping(7, 4))[0]
    assert never.losses[: len(reference.losses)] == reference.losses
    assert len(never.losses) == 60


def test_evaluations_of_a_rebuilt_rank_are_those_of_one_that_lived_on() -> None:
    training = Training(lambda: Mlp(norm=True), digits(), OPTIMIZERS["adam"], options=EVALUATED, validation=VALIDATION)
    plans, grouping = training.plans(ITERATIONS), Grouping(100, evaluate_every=6)
    reference = train(training, PLACEMENTS[1], plans, grouping=grouping)[0]
    halves = train(training, PLACEMENTS[2], plans[:6], grouping=grouping)
    resumed = train(training, PLACEMENTS[2], plans[6:], [half.state for half in halves], grouping)
    for half, rest in zip(halves, resumed, strict=True):
        assert half.evaluations + rest.evaluations == reference.evaluations
        assert rest.log == reference.log
