"""What one rank computes of an iteration: all its shards, into the exchange's memory, and a report for all ranks.

With ``stragglers="drop"`` only those that it comes to in its time (`mizzle.training.budget`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch

from mizzle.collectives.exchange import Exchange
from mizzle.collectives.timeline import Timeline
from mizzle.collectives.tree import Node
from mizzle.collectives.wire import Wire
from mizzle.training.budget import TimeBudget
from mizzle.training.buffers import ModelBuffers
from mizzle.training.contributions import Contributions, mark
from mizzle.training.flat import FlatParameters
from mizzle.training.local import ShardCompute, survey
from mizzle.training.overlap import BucketAnnouncer
from mizzle.training.report import RankReport, ShardReport
from mizzle.training.spec import IterationPlan, ShardRows, TrainingSpec
from mizzle.training.verdict import FP16_LIMIT


class RankCompute:
    """Forward and backward of a rank's shards, iteration after iteration.

    Args:
        spec: of the run.
        model: bound to the weights; gets hooks that `close` takes away.
        flat: its layout.
        buffers: its buffers.
        exchange: whose contributions are filled.
        shards: by number.
        op: of the exchange, for what is opened before it is published.
        guard: see `mizzle.training.local.ShardCompute`.
        timeline: where its parts are noted.
        clock: seconds.
    """

    def __init__(
        self, spec: TrainingSpec, model: torch.nn.Module, flat: FlatParameters, buffers: ModelBuffers,
        exchange: Exchange, shards: Mapping[int, ShardRows], *,
        op: int, guard: AbstractContextManager[Any] | None, timeline: Timeline, clock: Callable[[], float],
    ) -> None:  # fmt: skip
        """See the class."""
        self._spec, self._flat, self._exchange, self._shards = spec, flat, exchange, shards
        self._order, self._op, self._clock = spec.order(), op, clock
        self._compute = ShardCompute(spec, model, flat, buffers, guard, timeline=timeline)
        # Its hooks come after those that put gradients in their place.
        self._budget = TimeBudget(model, clock) if spec.stragglers == "drop" else None
        self._announcer = self._make_announcer()
        self._contributions = Contributions(self._compute_shard, flat.num_elements)
        self._final_shard: int | None = None
        self._plan = IterationPlan(0, 0, 0)

    @property
    def spare_bytes(self) -> int:
        """Memory for sums of shards."""
        return self._contributions.spare_bytes

    def run(self, plan: IterationPlan, limit_s: float | None) -> tuple[list[Node], RankReport]:
        """Compute every node of this rank that has rows.

        Args:
            plan: of the iteration.
            limit_s: seconds for each shard after which what is left is dropped, where that is wanted; None: any time.

        Returns:
            The nodes that something came of, and what to tell of them.
        """
        self._plan = plan
        begun_s = self._clock()
        self._compute.begin_iteration()
        counts = {shard: self._order.count(plan.iteration_in_epoch, shard) for shard in self._shards}
        busy = sum(count > 0 for count in counts.values())
        if self._budget is not None:
            self._budget.begin(None if limit_s is None else limit_s * busy)
        nodes = [node for node in self._exchange.nodes if any(counts[shard] for shard in range(node.lo, node.hi))]
        reports: list[ShardReport] = []
        active: list[Node] = []
        for node in nodes:
            if self._announcer is not None and node is nodes[-1] and node.is_leaf:
                self._exchange.open(plan.iteration, self._op, active=nodes)
                self._final_shard = node.lo
            found = self._fill(node, counts)
            if found:
                active.append(node)
                reports += found
        self._final_shard = None
        others = self._compute.others[reports[0].shard] if reports else {}
        shard_s = (self._clock() - begun_s) / busy if busy else 0.0
        return active, RankReport(tuple(reports), self._compute.changed, others, shard_s, busy - len(reports))

    def close(self) -> None:
        """Take the hooks off the model."""
        for part in (self._compute, self._announcer, self._budget):
            if part is not None:
                part.close()

    def _fill(self, node: Node, counts: Mapping[int, int]) -> list[ShardReport]:
        vector = self._exchange.contribution(node)
        found = self._contributions.fill(node, counts, vector)
        if found and self._spec.wire is Wire.FP16:
            return mark(found, survey(vector, FP16_LIMIT)[0])
        return found

    def _compute_shard(self, shard: int, into: torch.Tensor) -> ShardReport | None:
        plan = self._plan
        rows = self._order.rows(plan.epoch, plan.iteration_in_epoch, shard)
        announcer = self._announcer if shard == self._final_shard else None
        run = partial(self._compute.run, self._shards[shard], rows, plan.iteration, shard, into, announcer)
        try:
            return run() if self._budget is None else self._budget.within(run)
        except Exception as error:
            error.add_note(f"in iteration {plan.iteration} (epoch {plan.epoch}), shard {shard}")
            raise

    def _make_announcer(self) -> BucketAnnouncer | None:
        wanted = self._spec.overlap
        if self._budget is not None:
            return None  # what was sent cannot be dropped
        if not (self._exchange.crosses_hosts if wanted == "auto" else wanted):
            return None
        if not self._exchange.keeps_contributions:
            return None  # what is sent early is rounded or added up in its place, and is still to be looked through
        return BucketAnnouncer(self._flat, self._exchange.buckets, self._exchange.announce)
