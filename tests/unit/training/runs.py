"""Small trainings for tests: ranks as threads over the in-process store, and the same batches in plain PyTorch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from harness import run_ranks
from mizzle.blocks.store import BlockStore
from mizzle.collectives.exchange import Exchange
from mizzle.collectives.layout import ExchangeLayout
from mizzle.collectives.slices import ALIGNMENT
from mizzle.collectives.timeline import NO_TIMELINE, Timeline
from mizzle.training.evaluate import Evaluation
from mizzle.training.flat import FlatParameters
from mizzle.training.groups import OptimizerFactory, groups_of
from mizzle.training.order import EpochOrder
from mizzle.training.rank import RankTrainer
from mizzle.training.schedule import HyperSchedule, SchedulerFactory
from mizzle.training.spec import IterationMetrics, IterationPlan, TrainingSpec
from mizzle.training.stopping import EarlyStopping, StoppingState

NUM_SHARDS = 4
PLACEMENTS = {
    1: ((0, 1, 2, 3),),
    2: ((0, 1), (2, 3)),
    4: ((0,), (1,), (2,), (3,)),
}
SCATTERED = ((3, 0), (), (1, 2))
"""Three ranks: one with two nodes, an idle one, and one whose shards are neighbours but no node."""

STRIPE = 2 * ALIGNMENT
"""So short that small models have several buckets, and ranks several ranges."""

Groups = Callable[[nn.Module], list[dict[str, Any]]]


@dataclass(frozen=True)
class Rows:
    """A shard in memory."""

    inputs: torch.Tensor
    targets: torch.Tensor

    @property
    def num_rows(self) -> int:
        return len(self.inputs)

    def batch(self, rows: npt.NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        return self.inputs[rows], self.targets[rows]


@dataclass(frozen=True)
class Training:
    """What is trained, whatever the number of ranks."""

    model: Callable[[], nn.Module]
    data: Rows
    optimizer: OptimizerFactory
    batch_size: int = 20
    groups: Groups | None = None
    scheduler: SchedulerFactory | None = None
    loss: Callable[[Any, Any], torch.Tensor] = nn.functional.cross_entropy
    options: Mapping[str, Any] = field(default_factory=dict)
    validation: Rows | None = None

    def fresh_model(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return self.model()

    def order(self) -> EpochOrder:
        return EpochOrder(self.data.num_rows, NUM_SHARDS, self.batch_size, seed=7)

    def shards(self) -> list[Rows]:
        return dealt(self.data)

    def spec(self, model: nn.Module) -> TrainingSpec:
        groups = groups_of(model, self.groups(model)) if self.groups is not None else None
        return TrainingSpec(
            loss=self.loss, optimizer=self.optimizer, num_rows=self.data.num_rows, num_shards=NUM_SHARDS,
            global_batch_size=self.batch_size, groups=groups, seed=7, **self.options,
        )  # fmt: skip

    def plans(self, count: int, start: int = 0) -> list[IterationPlan]:
        model = self.fresh_model()
        schedule = HyperSchedule(FlatParameters(model, self.spec(model).groups), self.optimizer, self.scheduler)
        per_epoch = self.order().iterations_per_epoch
        hyper = schedule.ahead(start + count)
        return [IterationPlan(i, i // per_epoch, i % per_epoch, hyper[i]) for i in range(start, start + count)]


def dealt(rows: Rows) -> list[Rows]:
    """Row g lies in shard g % V."""
    return [Rows(rows.inputs[s::NUM_SHARDS], rows.targets[s::NUM_SHARDS]) for s in range(NUM_SHARDS)]


@dataclass(frozen=True)
class Grouping:
    """How a training is cut: into groups, at evaluations, and where it ends early."""

    size: int
    evaluate_every: int | None = None
    stopping: EarlyStopping | None = None

    def groups(self, plans: Sequence[IterationPlan]) -> Iterator[list[IterationPlan]]:
        """At most ``size`` iterations each, never across an evaluation."""
        group: list[IterationPlan] = []
        for plan in plans:
            group.append(plan)
            if len(group) == self.size or self.evaluates(plan) or plan is plans[-1]:
                yield group
                group = []

    def evaluates(self, plan: IterationPlan) -> bool:
        return self.evaluate_every is not None and (plan.iteration + 1) % self.evaluate_every == 0


@dataclass(frozen=True)
class Outcome:
    """What one rank ended with."""

    metrics: list[IterationMetrics]
    model: dict[str, torch.Tensor]
    weights: torch.Tensor
    state: bytes
    evaluations: list[Evaluation] = field(default_factory=list)
    log: bytes = b""

    @property
    def losses(self) -> list[float]:
        return [one.loss for one in self.metrics]


def exchange_of(
    store: BlockStore, spec: TrainingSpec, model: nn.Module, placement: Sequence[Sequence[int]],
    timeline: Timeline = NO_TIMELINE, stripe: int = STRIPE,
) -> Exchange:  # fmt: skip
    """The exchange of one rank of a training."""
    shards_of_rank = tuple(tuple(shards) for shards in placement)
    num_elements = FlatParameters(model, spec.groups).num_elements
    layout = ExchangeLayout(num_elements, NUM_SHARDS, shards_of_rank, stripe=stripe)
    return Exchange(
        store, layout, wire=spec.wire, weights_wire=spec.weights_wire, error_feedback=spec.error_feedback,
        timeout_s=30.0, timeline=timeline,
    )  # fmt: skip


def rank_of(
    training: Training,
    placement: Sequence[Sequence[int]],
    plans: Sequence[IterationPlan],
    states: Sequence[bytes] | None = None,
    grouping: Grouping | None = None,
) -> Callable[[BlockStore], Outcome]:
    """What one rank does, for `run_ranks`: from ``states`` (into new memory) where given; one group by default."""
    guard = threading.Lock()

    def rank_main(store: BlockStore) -> Outcome:
        with guard:  # building a model draws from the process's random generator
            model = training.fresh_model()
        spec = training.spec(model)
        exchange = exchange_of(store, spec, model, placement)
        held = {shard: training.shards()[shard] for shard in placement[store.rank]}
        mine = states or []
        if len(mine) == len(placement):  # the rank's own; else all that there are
            mine = [mine[store.rank]]
        trainer = RankTrainer(spec, model, exchange, held, states=mine, guard=guard)
        if mine:
            trainer.gather_weights(plans[0].iteration)
        validation = dealt(training.validation) if training.validation is not None else []
        metrics, evaluations = run_grouped(
            trainer, plans, grouping or Grouping(len(plans)),
            {shard: rows for shard, rows in enumerate(validation) if shard in placement[store.rank]},
        )  # fmt: skip
        return Outcome(
            metrics, trainer.model_state(), trainer.weights.clone(), trainer.save_state(), evaluations,
            trainer.log.pack(),
        )  # fmt: skip

    return rank_main


def run_grouped(
    trainer: RankTrainer, plans: Sequence[IterationPlan], grouping: Grouping, validation: Mapping[int, Rows]
) -> tuple[list[IterationMetrics], list[Evaluation]]:
    """The groups of a run on one rank that lives through all of them."""
    metrics: list[IterationMetrics] = []
    evaluations: list[Evaluation] = []
    stopping = StoppingState(grouping.stopping) if grouping.stopping is not None else None
    for group in grouping.groups(plans):
        metrics += trainer.run(group)
        if grouping.evaluates(group[-1]):
            evaluations.append(trainer.evaluate(group[-1], validation))
            if stopping is not None and stopping.observe(stopping.rule.value(evaluations[-1])):
                break
    return metrics, evaluations


def train(
    training: Training,
    placement: Sequence[Sequence[int]],
    plans: Sequence[IterationPlan],
    states: Sequence[bytes] | None = None,
    grouping: Grouping | None = None,
) -> list[Outcome]:
    """Train with one rank per entry of ``placement``; what each ended with."""
    return run_ranks(len(placement), rank_of(training, placement, plans, states, grouping))


def plain(
    training: Training, plans: Sequence[IterationPlan], clip: Callable[[nn.Module], object] | None = None
) -> Outcome:
    """The same iterations as an ordinary PyTorch loop over whole batches, with the user's own scheduler."""
    model = training.fresh_model().train()
    groups = training.groups(model) if training.groups is not None else [{"params": list(model.parameters())}]
    optimizer = training.optimizer(groups)
    scheduler = training.scheduler(optimizer) if training.scheduler is not None else None
    order, metrics = training.order(), []
    for plan in plans:
        batches = [
            shard.batch(order.rows(plan.epoch, plan.iteration_in_epoch, number))
            for number, shard in enumerate(training.shards())
        ]
        inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
        optimizer.zero_grad()
        loss = training.loss(model(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        if clip is not None:
            clip(model)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        seen = IterationMetrics(plan.iteration, float(loss.detach()), len(inputs), 0.0, 0.0, 0.0, skipped=False)
        metrics.append(seen)
    weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    return Outcome(metrics, weights, torch.empty(0), b"")


def assert_same_bits(outcomes: Sequence[Outcome], reference: Outcome) -> None:
    """Losses and models are equal bit for bit."""
    for outcome in outcomes:
        assert outcome.losses == reference.losses
        assert outcome.log == reference.log
        assert repr(outcome.evaluations) == repr(reference.evaluations)
        assert outcome.model.keys() == reference.model.keys()
        for name, value in outcome.model.items():
            assert torch.equal(value, reference.model[name]), name


def digits(num_rows: int = 90, seed: int = 0) -> Rows:
    """Rows (16 features, 3 classes) that a linear cut does not separate."""
    stream = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num_rows, 16, generator=stream)
    return Rows(inputs, (inputs[:, :3] * inputs[:, 3:6]).argmax(1))


class Mlp(nn.Module):
    """Two layers; with dropout or batch norm in between where asked for."""

    def __init__(self, *, dropout: float = 0.0, norm: bool = False, features: int = 16) -> None:
        super().__init__()
        self.first = nn.Linear(features, 200)
        self.norm = nn.BatchNorm1d(200) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Linear(200, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(self.dropout(torch.tanh(self.norm(self.first(inputs)))))
        return out


class Cnn(nn.Module):
    """A convolution over 4x4 pictures, no batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.pool = nn.AvgPool2d(2)
        self.last = nn.Linear(32, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        pictures = inputs.view(-1, 1, 4, 4)
        out: torch.Tensor = self.last(self.pool(torch.tanh(self.conv(pictures))).flatten(1))
        return out
