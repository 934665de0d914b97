"""What a training leaves behind for its user: losses, epochs, groups, where the time went. Plain numbers, JSON-able.

Filled by the driver: group by group from the ranks' metrics, and at the end from the log of losses that they kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from mizzle.training.evaluate import Evaluation
from mizzle.training.group_metrics import GroupMetrics
from mizzle.training.loss_log import Dropped, LossLog
from mizzle.training.order import EpochOrder


@dataclass(slots=True)
class EpochSummary:
    """One epoch.

    Attributes:
        epoch: 0-based.
        rows: seen so far.
        loss: mean over these rows, each at the weights of its iteration; skipped iterations are left out, NaN when
            all were skipped.
        iterations: done so far.
    """

    epoch: int
    rows: int = 0
    loss: float = math.nan
    iterations: int = 0


@dataclass(slots=True)
class TimeSplit:
    """Seconds of wall clock within the groups, mean over ranks; checking and dealing the rows come on top.

    Attributes:
        compute_s: forward, backward and reading rows.
        exchange_s: gradients and weights between ranks, waiting for slower ranks included.
        update_s: clipping and optimizer.
        scheduling_s: the rest: launching the groups' jobs and their ends, boundaries included.
        boundary_s: of ``scheduling_s``, what keeping states took.
        evaluate_s: loss and metrics of the validation rows.
        hidden_s: what was exchanged during ``compute_s``, beside ``exchange_s``: it made no iteration longer.
    """

    compute_s: float = 0.0
    exchange_s: float = 0.0
    update_s: float = 0.0
    scheduling_s: float = 0.0
    boundary_s: float = 0.0
    evaluate_s: float = 0.0
    hidden_s: float = 0.0

    @property
    def hidden_fraction(self) -> float:
        """Share of the exchange that was hidden behind compute, 0 to 1; 0 where nothing was exchanged."""
        whole_s = self.hidden_s + self.exchange_s
        return self.hidden_s / whole_s if whole_s > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRecord:
    """One group, as the driver saw it. A rank's span is the time from receiving the group's order to its outcome.

    Attributes:
        number: of the group, 0-based.
        first: its first iteration.
        size: K, its iterations.
        epoch: of its first iteration.
        cut: why it ended where it did.
        rows: in all its iterations.
        loss: of its last iteration.
        wall_s: seconds from submitting the group's job to having all results.
        launch_s: ``wall_s`` without the longest span: submitting, starting tasks, sending results.
        wait_s: the longest span without the shortest: how long the first rank waited for the last one to start.
        compute_s: reading rows, forward and backward; mean over ranks, as the next five.
        exchange_s: between ranks, waiting for slower ones included, but not for those that started later.
        hidden_s: of exchange during ``compute_s``.
        update_s: clipping and optimizer.
        evaluate_s: the validation rows.
        boundary_s: keeping states.
        driver_cpu_s: processor seconds that the group cost the driver.
        decision: what the tuner made of it, with its reason.
        dropped_shards: that no iteration waited for (``stragglers="drop"``).
        dropped_rows: of these; they are not among ``rows``.
    """

    number: int
    first: int
    size: int
    epoch: int
    cut: str
    rows: int
    loss: float
    wall_s: float
    launch_s: float
    wait_s: float
    compute_s: float
    exchange_s: float
    hidden_s: float
    update_s: float
    evaluate_s: float
    boundary_s: float
    driver_cpu_s: float
    decision: str
    dropped_shards: int = 0
    dropped_rows: int = 0

    @classmethod
    def of(
        cls, metrics: Sequence[GroupMetrics], *,
        number: int, first: int, epoch: int, cut: str, wall_s: float, driver_cpu_s: float, decision: str,
    ) -> GroupRecord:  # fmt: skip
        """From what the driver knows and the metrics of every rank, at least one."""
        spans = [rank.span_s for rank in metrics]
        # Who started first waited in its first exchange for who started last: that is scheduling, not exchange.
        begun_last = min(rank.iterating_s for rank in metrics)
        exchanges = [max(0.0, rank.exchange_s - (rank.iterating_s - begun_last)) for rank in metrics]
        return cls(
            number=number, first=first, size=metrics[0].iterations, epoch=epoch, cut=cut, rows=metrics[0].rows,
            loss=metrics[0].last_loss, wall_s=wall_s, launch_s=max(0.0, wall_s - max(spans)),
            wait_s=max(spans) - min(spans), compute_s=_mean(rank.compute_s for rank in metrics),
            exchange_s=_mean(exchanges), hidden_s=_mean(rank.hidden_s for rank in metrics),
            update_s=_mean(rank.update_s for rank in metrics),
            evaluate_s=_mean(rank.evaluate_s for rank in metrics),
            boundary_s=_mean(rank.boundary_s for rank in metrics), driver_cpu_s=driver_cpu_s, decision=decision,
            dropped_shards=metrics[0].dropped_shards, dropped_rows=metrics[0].dropped_rows,
        )  # fmt: skip

    @property
    def stop(self) -> int:
        """The iteration behind its last one."""
        return self.first + self.size

    @property
    def scheduling_s(self) -> float:
        """What grouping iterations saves: ``wall_s`` without compute, exchange, update and evaluation."""
        return max(0.0, self.wall_s - self.compute_s - self.exchange_s - self.update_s - self.evaluate_s)


@dataclass(frozen=True, slots=True)
class FaultRecord:
    """One fault of the cluster that the run survived, or several that came before it was over the first.

    Attributes:
        boundary: iterations done at the boundary that the run went on from.
        cause: what was seen first.
        ranks: that went on.
        noticed_at: when the driver knew of it, seconds since the epoch (1970).
        resumed_at: when the first group after it was done, likewise: the run was held up from the one to the other.
    """

    boundary: int
    cause: str
    ranks: int
    noticed_at: float
    resumed_at: float


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """One checkpoint, written beside the training.

    Attributes:
        iteration: done at its boundary.
        name: of its folder.
        num_bytes: of its parts.
        wall_s: seconds until it counted, or was given up.
        fault: why it was given up; "" where it is there.
    """

    iteration: int
    name: str
    num_bytes: int
    wall_s: float
    fault: str


@dataclass(frozen=True, slots=True)
class StragglerRecord:
    """A rank that computed slowly for several iterations in a row, and where it was.

    Attributes:
        rank: it.
        executor: Spark's name of its executor.
        host: of the executor.
        factor: its seconds per shard as a multiple of the ranks' median; where shards are dropped, at least that.
        since: the first of these iterations.
        iterations: how many.
    """

    rank: int
    executor: str
    host: str
    factor: float
    since: int
    iterations: int


@dataclass(slots=True)
class TrainingHistory:
    """A training: group by group while it runs, iteration by iteration when it is over.

    Attributes:
        losses: mean loss of every iteration, NaN and infinite ones of skipped iterations included; filled at the end.
        skipped: iterations whose update was left out; filled at the end.
        epochs: one for each epoch begun; filled at the end.
        time: where the time went.
        groups: one for each group.
        evaluations: on the validation rows, in their order.
        faults: that the run survived; filled at the end.
        checkpoints: in their order, with those that were given up; filled at the end.
        resumed_at: iterations done before the checkpoint that the training went on from; 0 where it began anew. Losses
            are those of the whole training, groups and times those since.
        stragglers: slow ranks, in the order in which they were found.
        dropped: iterations that lack some shards (``stragglers="drop"``); filled at the end.
    """

    losses: list[float] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    epochs: list[EpochSummary] = field(default_factory=list)
    time: TimeSplit = field(default_factory=TimeSplit)
    groups: list[GroupRecord] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    faults: list[FaultRecord] = field(default_factory=list)
    checkpoints: list[CheckpointRecord] = field(default_factory=list)
    resumed_at: int = 0
    stragglers: list[StragglerRecord] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)

    @property
    def iterations(self) -> int:
        """Done so far."""
        return self.groups[-1].stop if self.groups else self.resumed_at or len(self.losses)

    def resume(self, iteration: int, evaluations: Sequence[Evaluation]) -> None:
        """Go on from a checkpoint: what was done since is forgotten, but not the time that it took.

        Args:
            iteration: done at its boundary.
            evaluations: done before it.
        """
        self.groups = [group for group in self.groups if group.stop <= iteration]
        self.evaluations = list(evaluations)
        if not self.groups:
            self.resumed_at = iteration

    @property
    def last_loss(self) -> float:
        """Of the last iteration done; NaN before there is one."""
        if self.groups:
            return self.groups[-1].loss
        return self.losses[-1] if self.losses else math.nan

    def add_group(self, record: GroupRecord, metrics: Sequence[GroupMetrics]) -> None:
        """Take in one group.

        Args:
            record: of the group.
            metrics: of every rank, by rank; at least one.
        """
        told = {
            repr((
                one.iterations, one.rows, one.last_loss, one.mean_loss, one.skipped, one.dropped_shards,
                one.dropped_rows, one.evaluation,
            ))
            for one in metrics
        }  # fmt: skip
        assert len(told) == 1, f"ranks differ in group {record.number}, iterations {record.first}..: {sorted(told)}"
        self.groups.append(record)
        if metrics[0].evaluation is not None:
            self.evaluations.append(metrics[0].evaluation)
        self.time.compute_s += record.compute_s
        self.time.exchange_s += record.exchange_s
        self.time.hidden_s += record.hidden_s
        self.time.update_s += record.update_s
        self.time.scheduling_s += record.scheduling_s
        self.time.boundary_s += record.boundary_s
        self.time.evaluate_s += record.evaluate_s

    def note_straggler(self, record: StragglerRecord) -> bool:
        """Take in a slow rank, in the place of what was known of the same slow spell; whether its executor is new."""
        is_new = all(one.executor != record.executor for one in self.stragglers)
        for at, one in enumerate(self.stragglers):
            if (one.rank, one.executor, one.since) == (record.rank, record.executor, record.since):
                self.stragglers[at] = record
                return False
        self.stragglers.append(record)
        return is_new

    def complete(self, log: LossLog, order: EpochOrder) -> None:
        """Fill in losses, skipped iterations and epochs, when the run is over.

        Args:
            log: of any rank, from the run's first iteration on.
            order: of the run: which iterations make an epoch, and how many rows they have.
        """
        assert log.first == 0, f"the log begins with iteration {log.first}"
        self.losses = [float(loss) for loss in log.losses]
        self.skipped, self.dropped = log.skipped, list(log.dropped)
        self.epochs = []
        left_out = set(self.skipped)
        missing = {one.iteration: one.rows for one in self.dropped}
        for iteration, loss in enumerate(self.losses):
            epoch, in_epoch = divmod(iteration, order.iterations_per_epoch)
            if in_epoch == 0:
                self.epochs.append(EpochSummary(epoch))
            summary = self.epochs[-1]
            summary.iterations += 1
            if iteration in left_out:
                continue
            rows = order.total(in_epoch) - missing.get(iteration, 0)
            before = summary.loss * summary.rows if summary.rows else 0.0
            summary.rows += rows
            summary.loss = (before + loss * rows) / summary.rows

    def as_dict(self) -> dict[str, Any]:
        """For JSON: a number that is not finite becomes None, which JSON can hold."""
        found: dict[str, Any] = _finite(asdict(self))
        return found


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def _finite(value: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return value
