"""One rank of a run: compute, publish, reduce, update, gather, iteration after iteration.

The same code for one rank and many. Every decision (loss, skip, clip) is taken from what all ranks know alike, so that
no rank ever waits for one that went another way. It never asks a driver anything.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any

import torch

from mizzle.collectives.exchange import Exchange
from mizzle.collectives.tree import Node
from mizzle.collectives.wire import Wire
from mizzle.errors import ConfigError, DataError, NotFiniteError, Recoverable
from mizzle.training.buffers import ModelBuffers
from mizzle.training.clipping import ClipByNorm, ClipByValue, global_norm, norm_message
from mizzle.training.contributions import Contributions, mark
from mizzle.training.flat import FlatParameters
from mizzle.training.local import ShardCompute, survey
from mizzle.training.report import FINITE, IterationReport, RankReport, ShardReport
from mizzle.training.spec import IterationMetrics, IterationPlan, ShardRows, TrainingSpec
from mizzle.training.state import pack_state, unpack_state
from mizzle.training.update import make_update

_REFRESH, _GRADIENTS, _NORMS, _LEAVE = range(4)  # ops of an iteration, in the order in which they may come

_FP16_LIMIT = 65520.0  # from here on float16 rounds to infinity
_SUM_LIMIT = 3.38e38  # below it float32 sums, and bfloat16 roundings, cannot become infinite


class RankTrainer:
    """One rank: its shards, its slice of the optimizer, its part of every exchange.

    Args:
        spec: of the run, the same on all ranks.
        model: its parameters become views of the exchange's weights.
        exchange: made for `FlatParameters.num_elements` of this model and ``spec.groups``.
        shards: this rank's shards by number.
        state: of a boundary, from `save_state`: then the model's own values are not looked at, and the other slices of
            the weights are those lying in the exchange's memory (see `gather_weights`). None starts from the model.
        guard: a lock that ranks in one process share; see `ShardCompute`.

    Raises:
        ModelError: model, groups or optimizer cannot be trained.
        ConfigError: exchange, shards or state are for another model or layout.
        DataError: a shard has not the rows that the epoch order expects.
    """

    def __init__(
        self,
        spec: TrainingSpec,
        model: torch.nn.Module,
        exchange: Exchange,
        shards: Mapping[int, ShardRows],
        *,
        state: bytes | None = None,
        guard: AbstractContextManager[Any] | None = None,
    ) -> None:
        """See the class."""
        self._spec = spec
        self._model = model
        self._exchange = exchange
        self._shards = dict(shards)
        self._order = spec.order()
        self._flat = FlatParameters(model, spec.groups)
        self._check()
        if state is None:
            self._flat.copy_to(exchange.weights)
        self._flat.bind_weights(exchange.weights)
        self._buffers = ModelBuffers(model, self._flat)
        self._compute = ShardCompute(spec, model, self._flat, self._buffers, guard)
        self._update = make_update(spec, self._flat, self._buffers, exchange)
        self._plan = IterationPlan(0, 0, 0)
        self._contributions = Contributions(self._compute_shard, self._flat.num_elements)
        if state is not None:
            self.load_state(state)

    def run(self, iterations: Sequence[IterationPlan]) -> list[IterationMetrics]:
        """Run iterations; all ranks must be given the same ones.

        Returns:
            What this rank saw, one for each iteration; the loss is the same on all ranks.

        Raises:
            NotFiniteError: by the policy ``raise``, on all ranks, before the weights were touched.
            Recoverable: a peer or block is lost; run the group again from its boundary.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(self._spec.threads)
        try:
            return [self._iterate(plan) for plan in iterations]
        finally:
            torch.set_num_threads(threads)

    def save_state(self) -> bytes:
        """This rank's state after the last iteration: its range of the weights, optimizer, counters. safetensors."""
        owned = self._update.owned
        tensors, scalars = self._update.optimizer.state()
        tensors["weights"] = self._exchange.weights[owned.start : owned.stop]
        tensors.update({f"buffer.{name}": value for name, value in self._buffers.named_others().items()})
        described = {"signature": self._flat.signature(), "start": owned.start, "stop": owned.stop}
        return pack_state(tensors, {**described, "scalars": scalars})

    def load_state(self, raw: bytes) -> None:
        """Go on from `save_state` of the same slice, with the same bits.

        Raises:
            ConfigError: it is the state of another model or slice.
        """
        tensors, scalars = unpack_state(raw)
        owned = self._update.owned
        found = scalars["signature"], scalars["start"], scalars["stop"]
        if found != (self._flat.signature(), owned.start, owned.stop):
            raise ConfigError(
                f"the state holds elements {found[1]}..{found[2]} of model {found[0][:8]}, this rank owns "
                f"{owned.start}..{owned.stop} of model {self._flat.signature()[:8]}"
            )
        self._exchange.weights[owned.start : owned.stop].copy_(tensors["weights"])
        self._buffers.adopt_named({
            name.removeprefix("buffer."): value for name, value in tensors.items() if name.startswith("buffer.")
        })  # fmt: skip
        self._update.optimizer.load_state(tensors, scalars["scalars"])

    def gather_weights(self, iteration: int) -> None:
        """Fetch the others' slices of the weights: on all ranks, when one of them has not got them in its memory.

        Needed after `load_state` into new memory; the same executor still has them from the last gather.

        Args:
            iteration: the next one to be run in this generation.
        """
        self._exchange.publish(iteration, _REFRESH, active=(), meta=b"")
        self._exchange.reduce()
        self._exchange.gather()

    def model_state(self) -> dict[str, torch.Tensor]:
        """Copies of all that ``model.state_dict()`` holds, after the last iteration: the same on all ranks."""
        self._buffers.begin(self._exchange.weights)
        return {name: value.detach().clone() for name, value in self._model.state_dict().items()}

    def _iterate(self, plan: IterationPlan) -> IterationMetrics:
        clock = _Stopwatch()
        active, mine = self._compute_all(plan)
        clock.lap("compute")

        self._exchange.publish(plan.iteration, _GRADIENTS, active=active, meta=mine.pack())
        reduced = self._exchange.reduce()
        report = IterationReport.of([RankReport.unpack(meta) for meta in reduced.metas])
        clock.lap("exchange")

        fault = self._fault_of(report)
        if fault is None:
            fault = self._average_and_clip(plan, reduced.total, report, clock)
        if fault is not None and self._spec.not_finite == "raise":
            self._leave_together(plan, fault)
        if fault is None:
            self._update.before_gather(reduced.total, plan.hyper, report.changed)
        clock.lap("update")

        # also when skipped: a contribution may be written again only when all have read it
        self._exchange.gather(self._update.vector)
        clock.lap("exchange")

        if fault is None:
            self._update.after_gather(plan.hyper, report.changed)
            self._buffers.adopt(report.others)
        clock.lap("update")
        return IterationMetrics(
            plan.iteration, report.loss, report.rows,
            compute_s=clock.s["compute"], exchange_s=clock.s["exchange"], update_s=clock.s["update"],
            skipped=fault is not None,
        )  # fmt: skip

    def _compute_all(self, plan: IterationPlan) -> tuple[list[Node], RankReport]:
        """Compute every node of this rank that has rows; which, and what to tell of them."""
        self._plan = plan
        self._compute.begin_iteration()
        counts = {shard: self._order.count(plan.iteration_in_epoch, shard) for shard in self._shards}
        active: list[Node] = []
        reports: list[ShardReport] = []
        for node in self._exchange.nodes:
            vector = self._exchange.contribution(node)
            found = self._contributions.fill(node, counts, vector)
            if found:
                active.append(node)
                beyond = survey(vector, _FP16_LIMIT)[0] if self._spec.wire is Wire.FP16 else FINITE
                reports += mark(found, beyond)
        others = self._compute.others[reports[0].shard] if reports else {}
        return active, RankReport(tuple(reports), self._compute.changed, others)

    def _compute_shard(self, shard: int, into: torch.Tensor) -> ShardReport:
        rows = self._order.rows(self._plan.epoch, self._plan.iteration_in_epoch, shard)
        return self._compute.run(self._shards[shard], rows, self._plan.iteration, shard, self._exchange.weights, into)

    def _average_and_clip(
        self, plan: IterationPlan, total: torch.Tensor, report: IterationReport, clock: _Stopwatch
    ) -> str | None:
        """Turn the sum over shards into the clipped mean, in place; what is wrong with its norm, if anything."""
        start = self._exchange.slice.start
        split = min(max(0, self._flat.num_parameters - start), len(total))
        gradient = total[:split].div_(report.rows)
        total[split:].div_(len(report.shards))
        clipping = self._spec.clipping
        if isinstance(clipping, ClipByValue):
            gradient.clamp_(-clipping.limit, clipping.limit)
        elif isinstance(clipping, ClipByNorm):
            mine = norm_message(gradient, start, self._flat.num_parameters)
            clock.lap("update")
            messages = self._exchange.share(plan.iteration, _NORMS, mine)
            clock.lap("exchange")
            norm = global_norm(messages, self._flat.num_parameters)
            if not math.isfinite(norm):
                return f"the global norm of the gradient is {norm}"
            gradient.mul_(clipping.coefficient(norm))
        return None

    def _fault_of(self, report: IterationReport) -> str | None:
        """Why this iteration must not update the weights: the same text on every rank."""
        bad = report.first_not_finite
        if bad is None and report.peak >= _SUM_LIMIT:
            return f"the sum of the shards' gradients may reach {report.peak:.3g}, which float32 cannot hold"
        if bad is None:
            return None
        if not math.isfinite(bad.loss_sum):
            return f"the loss of shard {bad.shard} is {bad.loss_sum}"
        name = self._flat.name_at(bad.not_finite_at)
        limit = " on a 16-bit wire" if self._spec.wire is Wire.FP16 else ""
        return f"the gradient of {name!r} from shard {bad.shard} is not finite{limit}"

    def _leave_together(self, plan: IterationPlan, fault: str) -> None:
        """Raise on all ranks; none leaves while a peer still reads its contribution."""
        with suppress(Recoverable):
            self._exchange.share(plan.iteration, _LEAVE, b"")
        raise NotFiniteError(
            f"iteration {plan.iteration} (epoch {plan.epoch}): {fault}. Lower the learning rate, clip gradients or "
            "look at the data; not_finite='skip' leaves such iterations out"
        )

    def _check(self) -> None:
        num_elements = self._exchange.weights.numel()
        if num_elements != self._flat.num_elements:
            raise ConfigError(f"the exchange is for {num_elements} elements, the model has {self._flat.num_elements}")
        held = {shard for node in self._exchange.nodes for shard in range(node.lo, node.hi)}
        if held != set(self._shards):
            raise ConfigError(f"this rank holds shards {sorted(held)}, but was given {sorted(self._shards)}")
        for shard, rows in self._shards.items():
            if rows.num_rows != self._order.shard_rows(shard):
                wanted = self._order.shard_rows(shard)
                raise DataError(f"shard {shard} has {rows.num_rows} rows, not {wanted} of {self._spec.num_rows}")


class _Stopwatch:
    """Where the time of one iteration goes."""

    def __init__(self) -> None:
        self.s = {"compute": 0.0, "exchange": 0.0, "update": 0.0}
        self._at = time.perf_counter()

    def lap(self, name: str) -> None:
        """Add the time since the last lap to ``name``."""
        now = time.perf_counter()
        self.s[name] += now - self._at
        self._at = now
