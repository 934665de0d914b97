"""``stragglers="drop"``: the mean is that of the shards that arrived, on all ranks alike, and nothing is torn.

Time is scripted: a shard costs a second, or what the script says, and passes while rows are read, within forward or
within backward.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from harness import memory_stores, run_ranks
from mizzle.blocks.store import BlockStore
from mizzle.collectives.wire import Wire
from mizzle.training.clipping import ClipByNorm
from mizzle.training.loss_log import Dropped, LossLog
from mizzle.training.rank import RankTrainer
from mizzle.training.spec import IterationMetrics, IterationPlan
from mizzle.training.stragglers import Straggler
from unit.training.runs import (
    PLACEMENTS,
    SCATTERED,
    Mlp,
    Outcome,
    Rows,
    Training,
    assert_same_bits,
    digits,
    exchange_of,
)

ITERATIONS = 12
Script = Mapping[tuple[int, int], float]
"""(iteration, shard) -> seconds that it costs."""


@dataclass
class Clock:
    """The time of one rank."""

    script: Script
    stage: str
    now: float = 0.0
    iteration: int = 0
    shard: int = 0

    def __call__(self) -> float:
        return self.now

    def passes(self, stage: str) -> None:
        if stage == self.stage:
            self.now += self.script.get((self.iteration, self.shard), 1.0)


@dataclass(frozen=True)
class TimedRows(Rows):
    """Tells the clock which shard it is, and takes its time."""

    shard: int = -1
    clock: Clock = field(default_factory=lambda: Clock({}, "rows"))

    def batch(self, rows: npt.NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        self.clock.shard = self.shard
        self.clock.passes("rows")
        return super().batch(rows)


class TimedMlp(Mlp):
    """Batch norm between two layers, and time that passes in the middle."""

    def __init__(self, *, norm: bool = True) -> None:
        super().__init__(norm=norm)
        self.clock = Clock({}, "nowhere")

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        middle = self.norm(self.first(inputs))
        self.clock.passes("forward")
        out: torch.Tensor = self.last(torch.tanh(middle))
        if out.requires_grad:
            out.register_hook(lambda _gradient: self.clock.passes("backward"))  # type: ignore[no-untyped-call]
        return out


def sgd(groups: Any) -> torch.optim.Optimizer:
    # not an adaptive one: a bias in front of batch norm has a gradient of pure rounding
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def training_of(**options: Any) -> Training:
    # with accumulation a part may be one row, which batch norm refuses
    return Training(partial(TimedMlp, norm="accumulate" not in options), digits(), sgd, options=options)


def timed_rank(
    training: Training, placement: Sequence[Sequence[int]], plans: Sequence[IterationPlan], script: Script, stage: str
) -> Callable[[BlockStore], tuple[Outcome, tuple[Straggler, ...]]]:
    """What one rank does, under its own clock."""
    guard = threading.Lock()

    def rank_main(store: BlockStore) -> tuple[Outcome, tuple[Straggler, ...]]:
        with guard:
            model = training.fresh_model()
        assert isinstance(model, TimedMlp)
        clock = model.clock = Clock(script, stage)
        spec = training.spec(model)
        shards = training.shards()
        held = {s: TimedRows(shards[s].inputs, shards[s].targets, s, clock) for s in placement[store.rank]}
        exchange = exchange_of(store, spec, model, placement)
        trainer = RankTrainer(spec, model, exchange, held, guard=guard, clock=clock)
        metrics: list[IterationMetrics] = []
        for plan in plans:
            clock.iteration = plan.iteration
            metrics += trainer.run([plan])
        slow = trainer.take_stragglers()
        trainer.close()
        assert not any(module._forward_pre_hooks for module in model.modules())
        outcome = Outcome(
            metrics, trainer.model_state(), trainer.weights.clone(), trainer.save_state(), log=trainer.log.pack()
        )
        return outcome, slow

    return rank_main


def arrived(
    training: Training, plans: Sequence[IterationPlan], missing: Mapping[int, set[int]]
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The same in plain PyTorch, in one process, without the missing shards: losses and the model's state."""
    model = training.fresh_model().train()
    optimizer = sgd(model.parameters())
    order, losses = training.order(), []
    for plan in plans:
        start = {name: value.clone() for name, value in model.named_buffers()}
        ends: list[dict[str, torch.Tensor]] = []
        optimizer.zero_grad()
        total, loss_sum = 0, 0.0
        for shard, rows in enumerate(training.shards()):
            if shard in missing.get(plan.iteration, set()):
                continue
            model.load_state_dict(start, strict=False)
            inputs, targets = rows.batch(order.rows(plan.epoch, plan.iteration_in_epoch, shard))
            loss = training.loss(model(inputs), targets) * len(targets)
            loss.backward()  # type: ignore[no-untyped-call]
            total, loss_sum = total + len(targets), loss_sum + float(loss.detach())
            ends.append({name: value.clone() for name, value in model.named_buffers()})
        losses.append(loss_sum / total if total else float("nan"))
        model.load_state_dict(start, strict=False)
        if not total:
            continue
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad /= total
        optimizer.step()
        means = {n: torch.stack([end[n] for end in ends]).float().mean(0).to(start[n].dtype) for n in start}
        model.load_state_dict(means, strict=False)
    return losses, {name: value.detach().clone() for name, value in model.state_dict().items()}


SLOW_ONCE = {(7, 2): 50.0}
HALF_GONE = {(6, 0): 50.0, (6, 3): 50.0, (9, 1): 50.0}
ALL_GONE = {(8, shard): 500.0 for shard in range(4)}


@pytest.mark.parametrize(
    ("placement", "script", "missing", "stage"),
    [
        (PLACEMENTS[4], SLOW_ONCE, {7: {2}}, "rows"),
        (PLACEMENTS[4], SLOW_ONCE, {7: {2}}, "forward"),
        (PLACEMENTS[4], SLOW_ONCE, {7: {2}}, "backward"),
        (PLACEMENTS[4], HALF_GONE, {6: {0, 3}, 9: {1}}, "backward"),
        (PLACEMENTS[4], ALL_GONE, {8: {0, 1, 2, 3}}, "forward"),
        # Who is late has no time for what comes behind it either.
        (PLACEMENTS[2], SLOW_ONCE, {7: {2, 3}}, "backward"),
        (PLACEMENTS[2], HALF_GONE, {6: {0, 1, 3}, 9: {1}}, "forward"),
        (SCATTERED, SLOW_ONCE, {7: {2}}, "backward"),
    ],
    ids=[
        "reading", "forward", "backward", "two of four", "all", "a node of two", "parts of nodes", "scattered",
    ],
)  # fmt: skip
def test_the_update_is_that_of_the_shards_that_arrived(
    placement: Any, script: Script, missing: Mapping[int, set[int]], stage: str
) -> None:
    training = training_of(stragglers="drop")
    plans = training.plans(ITERATIONS)
    found = run_ranks(len(placement), timed_rank(training, placement, plans, script, stage))
    outcomes = [outcome for outcome, _ in found]
    losses, state = arrived(training, plans, missing)
    order = training.order()
    lost = {
        t: sum(order.count(plans[t].iteration_in_epoch, shard) for shard in shards) for t, shards in missing.items()
    }
    for outcome in outcomes:
        assert repr(outcome.losses) == repr(outcomes[0].losses)
        assert torch.equal(outcome.weights, outcomes[0].weights)
        torch.testing.assert_close(
            torch.tensor(outcome.losses), torch.tensor(losses), rtol=2e-5, atol=0, equal_nan=True
        )
        for name, value in state.items():
            torch.testing.assert_close(outcome.model[name], value, rtol=1e-4, atol=1e-5, msg=name)
        assert {t: one.dropped_rows for t, one in enumerate(outcome.metrics) if one.dropped_rows} == lost
        assert [one.rows + one.dropped_rows for one in outcome.metrics] == [
            order.total(plan.iteration_in_epoch) for plan in plans
        ]
        log = LossLog.unpack(outcome.log)
        assert log.dropped == [Dropped(t, len(missing[t]), lost[t]) for t in sorted(missing)]
        assert log.skipped == [t for t, shards in missing.items() if len(shards) == 4]


@pytest.mark.parametrize("placement", [*PLACEMENTS.values(), SCATTERED])
@pytest.mark.parametrize("options", [{}, {"clipping": ClipByNorm(0.5), "accumulate": 2}], ids=["plain", "clipped"])
def test_where_nothing_is_dropped_the_bits_are_those_of_waiting(placement: Any, options: dict[str, Any]) -> None:
    training, waiting = training_of(stragglers="drop", **options), training_of(**options)
    plans = training.plans(ITERATIONS)
    reference = run_ranks(1, timed_rank(waiting, PLACEMENTS[1], plans, {}, "rows"))[0][0]
    found = run_ranks(len(placement), timed_rank(training, placement, plans, {(6, 1): 1.5}, "rows"))
    assert_same_bits([outcome for outcome, _ in found], reference)


@pytest.mark.parametrize("wire", [Wire.FP32, Wire.BF16])
def test_hosts_that_send_each_other_sums_agree_on_what_arrived(wire: Wire) -> None:
    options: dict[str, Any] = {"wire": wire, "error_feedback": wire is Wire.BF16}
    training = training_of(stragglers="drop", **options)
    plans = training.plans(ITERATIONS)
    hosts = memory_stores(4, in_place=True, islands=((0, 1), (2, 3)))
    found = run_ranks(4, timed_rank(training, PLACEMENTS[4], plans, HALF_GONE, "backward"), stores=hosts)
    for outcome, _ in found:
        assert torch.equal(outcome.weights, found[0][0].weights)
        assert outcome.losses == found[0][0].losses
        assert [one.dropped_shards for one in outcome.metrics] == [0, 0, 0, 0, 0, 0, 2, 0, 0, 1, 0, 0]
    if wire is Wire.FP32:
        losses, _ = arrived(training, plans, {6: {0, 3}, 9: {1}})
        assert found[0][0].losses == pytest.approx(losses, rel=2e-5)


def test_a_rank_that_waits_for_nobody_is_still_named_as_slow_and_slow_ranks_change_no_bit() -> None:
    always = {(t, 2): 9.0 for t in range(ITERATIONS)}
    waiting, dropping = training_of(), training_of(stragglers="drop")
    plans = waiting.plans(ITERATIONS)
    found = run_ranks(4, timed_rank(waiting, PLACEMENTS[4], plans, always, "forward"))
    reference = run_ranks(1, timed_rank(waiting, PLACEMENTS[1], plans, {}, "forward"))[0][0]
    assert_same_bits([outcome for outcome, _ in found], reference)
    assert [slow for _, slow in found] == [(Straggler(2, 2, ITERATIONS - 2, 9.0),)] * 4
    found = run_ranks(4, timed_rank(dropping, PLACEMENTS[4], plans, always, "forward"))
    assert [[one.rank for one in slow] for _, slow in found] == [[2]] * 4
    assert [one.dropped_shards for one in found[0][0].metrics] == [0] * 5 + [1] * (ITERATIONS - 5)
    # Three shards on one of two ranks take three times as long, and it is not slow.
    found = run_ranks(2, timed_rank(dropping, ((0, 1, 2), (3,)), plans, {}, "rows"))
    assert [slow for _, slow in found] == [()] * 2
    assert not any(one.dropped_shards for one in found[0][0].metrics)


def test_what_was_dropped_survives_in_a_state() -> None:
    training = training_of(stragglers="drop")
    plans = training.plans(ITERATIONS)
    outcome = run_ranks(1, timed_rank(training, PLACEMENTS[1], plans, {(6, 2): 50.0, (9, 3): 50.0}, "rows"))[0][0]
    assert LossLog.unpack(outcome.log).dropped[0].iteration == 6

    def again(store: BlockStore) -> list[Dropped]:
        model = training.fresh_model()
        spec = training.spec(model)
        exchange = exchange_of(store, spec, model, PLACEMENTS[1])
        return RankTrainer(
            spec, model, exchange, dict(enumerate(training.shards())), states=[outcome.state]
        ).log.dropped  # fmt: skip

    assert run_ranks(1, again)[0] == LossLog.unpack(outcome.log).dropped
