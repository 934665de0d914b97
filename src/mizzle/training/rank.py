"""One rank of a run: compute, publish, reduce, update, gather, iteration after iteration.

The same code for one rank and many. Every decision (loss, skip, clip) is taken from what all ranks know alike, so that
no rank ever waits for one that went another way. It never asks a driver anything.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any

import torch

from mizzle.collectives.exchange import Exchange
from mizzle.collectives.slices import Slice
from mizzle.collectives.timeline import NO_TIMELINE, Timeline
from mizzle.errors import ConfigError, DataError, NotFiniteError, Recoverable
from mizzle.training.buffers import ModelBuffers
from mizzle.training.clipping import ClipByNorm, ClipByValue, global_norm, norm_message
from mizzle.training.evaluate import Evaluation, Evaluator
from mizzle.training.flat import FlatParameters
from mizzle.training.handshake import check_identities, identity
from mizzle.training.local import torch_threads
from mizzle.training.loss_log import LossLog
from mizzle.training.rank_compute import RankCompute
from mizzle.training.recut import OWNED, SPANS, recut
from mizzle.training.report import IterationReport, RankReport
from mizzle.training.spec import IterationMetrics, IterationPlan, ShardRows, TrainingSpec
from mizzle.training.state import PackedState, unpack_state
from mizzle.training.stragglers import Straggler, StragglerWatch
from mizzle.training.update import REDUCED, cut, make_update
from mizzle.training.verdict import Fault, fault_of

_REFRESH, _GRADIENTS, _NORMS, _LEAVE, _EVALUATION = range(5)  # ops of an iteration, in the order in which they may come


class RankTrainer:
    """One rank: its shards, its ranges of the optimizer, its part of every exchange.

    Args:
        spec: of the run, the same on all ranks.
        model: its parameters become views of the exchange's weights.
        exchange: made for `FlatParameters.num_elements` of this model and ``spec.groups``.
        shards: this rank's shards by number.
        states: of a boundary, for `load_state`: then the model's own values are not looked at. None: it starts from
            them.
        guard: a lock that ranks in one process share; see `ShardCompute`.
        timeline: where this rank notes when it did what; the exchange's own.
        clock: seconds by which ranks are found slow.

    Attributes:
        log: the loss of every iteration so far, those before ``state`` included.

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
        states: Sequence[bytes | bytearray | memoryview] = (),
        guard: AbstractContextManager[Any] | None = None,
        timeline: Timeline = NO_TIMELINE,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """See the class."""
        self._spec = spec
        self._model = model
        self._exchange = exchange
        self._shards = dict(shards)
        self._order = spec.order()
        self._flat = FlatParameters(model, spec.groups)
        self._check()
        self._buffers = ModelBuffers(model, self._flat)
        self._update = make_update(spec, self._flat, self._buffers, exchange)
        if not states:
            for own, master in zip(self._update.owned, self._update.masters, strict=True):
                self._flat.copy_to(master, own.start)
        self._flat.bind_weights(self._update.weights)
        self._timeline = timeline
        self._compute = RankCompute(
            spec, model, self._flat, self._buffers, exchange, self._shards, op=_GRADIENTS, guard=guard,
            timeline=timeline, clock=clock,
        )  # fmt: skip
        self._evaluator = Evaluator(spec, model, self._buffers, guard)
        self._watch = StragglerWatch()
        self._is_gathered = False
        self.log = LossLog()
        if states:
            self.load_state(states)

    def run(self, iterations: Sequence[IterationPlan]) -> list[IterationMetrics]:
        """Run iterations; all ranks must be given the same ones. The first time it gathers the weights before.

        Returns:
            What this rank saw, one for each iteration; the loss is the same on all ranks.

        Raises:
            NotFiniteError: by the policy ``raise``, on all ranks, before the weights were touched.
            Recoverable: a peer or block is lost; run the group again from its boundary.
        """
        if iterations:
            self._gather_once(iterations[0].iteration)
        with torch_threads(self._spec.threads):
            try:
                return [self._iterate(plan) for plan in iterations]
            except BaseException:
                self._exchange.abandon()
                raise

    def evaluate(self, plan: IterationPlan, shards: Mapping[int, ShardRows]) -> Evaluation:
        """Loss and metrics of the model after the last iteration on rows it does not train on: equal on all ranks.

        All ranks call it, once, after `run`. Nothing of the training changes; a loss that is NaN is reported.

        Args:
            plan: of the last iteration that was run.
            shards: this rank's validation shards by number; every shard is given to one rank, an empty one too.

        Raises:
            DataError: no rank has a row.
            ModelError: the loss or a metric returned something else than a number.
            Recoverable: a peer is lost; run the group again from its boundary.
        """
        self._gather_once(plan.iteration)
        with torch_threads(self._spec.threads):
            mine = self._evaluator.measure(shards, plan.iteration)
        return self._evaluator.combine(plan, self._exchange.share(plan.iteration, _EVALUATION, mine))

    def state_bytes(self) -> int:
        """How much memory `save_state_into` needs now; seldom more than at the boundary before."""
        return self._state().num_bytes

    def save_state_into(self, buffer: bytearray | memoryview) -> int:
        """Copy this rank's state after the last iteration, once: its ranges of the weights, optimizer, buffers, log.

        Args:
            buffer: at least `state_bytes` long.

        Returns:
            The bytes written to its beginning, safetensors: what `load_state` wants.

        Raises:
            ConfigError: the buffer is too short.
        """
        return self._state().write(buffer)

    def save_state(self) -> bytes:
        """The same as bytes of its own."""
        return self._state().to_bytes()

    def load_state(self, raws: Sequence[bytes | bytearray | memoryview]) -> None:
        """Go on from `save_state` with the same bits; nothing of ``raws`` is needed afterwards.

        All ranks load states of one boundary, and then gather the weights.

        Args:
            raws: of any number of ranks: this rank's own if it owned the same ranges, else all that have some of them.

        Raises:
            ConfigError: these are states of another model, or some of this rank's elements are in none of them.
        """
        states = [unpack_state(raw) for raw in raws]
        signature = self._flat.signature()
        for _, scalars in states:
            if scalars["signature"] != signature:
                raise ConfigError(
                    f"a state of model {scalars['signature'][:8]} was given, this is model {signature[:8]}: names, "
                    "shapes and groups of parameters must be the same"
                )
        tensors, scalars = recut(states, self._update.owned)
        for master, saved in zip(self._update.masters, cut(tensors["weights"], self._update.owned), strict=True):
            master.copy_(saved)
        self._buffers.adopt_named({
            name.removeprefix("buffer."): value for name, value in tensors.items() if name.startswith("buffer.")
        })  # fmt: skip
        self._update.optimizer.load_state(tensors, scalars["scalars"])
        self.log.load_state(tensors, scalars["log"])
        self._is_gathered = False

    def ranges_among(self, size: int) -> list[tuple[Slice, ...]]:
        """The ranges of the flat vector that the states of so many ranks hold, by rank."""
        return [self._update.owned] * size if self._update.vector == REDUCED else self._exchange.owned_among(size)

    def gather_weights(self, iteration: int) -> None:
        """Hand out what this rank owns of the weights and fetch the rest: on all ranks, before they compute.

        Needed once after the start and after `load_state`; `run` and `evaluate` do it where nobody has.

        Args:
            iteration: the next one to be run in this generation.

        Raises:
            CollectiveMismatch: ranks have other models, or another mizzle: on all of them, before anything is sent.
        """
        self._exchange.publish(iteration, _REFRESH, active=(), meta=identity(self._flat).encode())
        check_identities(self._exchange.reduce().metas)
        self._exchange.gather(self._update.vector)
        self._is_gathered = True

    def _gather_once(self, iteration: int) -> None:
        if not self._is_gathered:
            self.gather_weights(iteration)

    def model_state(self) -> dict[str, torch.Tensor]:
        """Copies of all that ``model.state_dict()`` holds, after the last iteration: the same on all ranks."""
        self._buffers.begin()
        return {name: value.detach().clone() for name, value in self._model.state_dict().items()}

    def memory_bytes(self) -> dict[str, int]:
        """What this rank holds beside the model's activations, by purpose; optimizer state is made by the first step.

        What several ranks share is divided among them. The copies that recovery keeps are not among it.
        """
        return {
            **self._exchange.memory_bytes(),
            "optimizer": self._update.optimizer.state_bytes,
            "spare": self._compute.spare_bytes,
        }

    def take_stragglers(self) -> tuple[Straggler, ...]:
        """The ranks that were slow since the last call, the slowest first: the same on all ranks."""
        return self._watch.take()

    @property
    def weights(self) -> torch.Tensor:
        """(M,) fp32, what the model computes with: to be read only."""
        return self._update.weights

    def close(self) -> None:
        """Let go of the model: nothing of this rank is called by it any more."""
        self._compute.close()

    def _state(self) -> PackedState:
        optimizer, scalars = self._update.optimizer.state()
        losses, log = self.log.state()
        tensors: dict[str, torch.Tensor | Sequence[torch.Tensor]] = {**optimizer, **losses}
        spans = {"weights": Slice(0, self._exchange.num_elements), **self._update.optimizer.spans(optimizer)}
        tensors["weights"] = self._update.masters or [torch.empty(0)]
        tensors.update({f"buffer.{name}": value for name, value in self._buffers.named().items()})
        described = {
            "signature": self._flat.signature(),
            "log": log,
            OWNED: [[own.start, own.stop] for own in self._update.owned],
            SPANS: {name: [span.start, span.stop] for name, span in spans.items()},
        }
        return PackedState(tensors, {**described, "scalars": scalars})

    def _iterate(self, plan: IterationPlan) -> IterationMetrics:
        clock = _Stopwatch()
        active, mine = self._compute.run(plan, self._watch.limit_s)
        clock.lap("compute")

        with self._exposed("reduce", plan):
            self._exchange.publish(plan.iteration, _GRADIENTS, active=active, meta=mine.pack())
            reduced = self._exchange.reduce()
        report, fault = self._judge(plan, reduced.metas)
        clock.lap("exchange")

        if fault is None:
            fault = self._average_and_clip(plan, reduced.total, report, clock)
        if fault is not None and fault.may_raise and self._spec.not_finite == "raise":
            self._leave_together(plan, fault)
        if fault is None:
            with self._timeline.span("optimizer", "update", iteration=plan.iteration):
                self._update.before_gather(reduced.total, plan.hyper, report.changed)
        clock.lap("update")

        # also when skipped: a contribution may be written again only when all have read it
        with self._exposed("gather", plan):
            self._exchange.gather(self._update.vector)
        clock.lap("exchange")

        if fault is None:
            with self._timeline.span("after gather", "update", iteration=plan.iteration):
                self._update.after_gather(plan.hyper, report.changed)
                self._buffers.adopt(report.changed, self._update.weights, report.others)
        clock.lap("update")
        dropped = {"dropped_shards": report.dropped, "dropped_rows": self._dropped_rows(plan, report)}
        self.log.append(plan.iteration, report.loss, skipped=fault is not None, **dropped)
        return IterationMetrics(
            plan.iteration, report.loss, report.rows,
            compute_s=clock.s["compute"], exchange_s=clock.s["exchange"], update_s=clock.s["update"],
            skipped=fault is not None, hidden_s=reduced.hidden_s, **dropped,
        )  # fmt: skip

    def _judge(self, plan: IterationPlan, metas: Sequence[bytes]) -> tuple[IterationReport, Fault | None]:
        """What all ranks told, put together; and why the weights must not be touched."""
        reports = [RankReport.unpack(meta) for meta in metas]
        self._watch.observe(plan.iteration, [one.shard_s for one in reports], [one.dropped for one in reports])
        report = IterationReport.of(reports)
        return report, fault_of(report, reports, self._flat, self._spec.wire, sends_sums=self._exchange.sends_sums)

    def _dropped_rows(self, plan: IterationPlan, report: IterationReport) -> int:
        return self._order.total(plan.iteration_in_epoch) - report.rows if report.dropped else 0

    def _exposed(self, name: str, plan: IterationPlan) -> AbstractContextManager[object]:
        return self._timeline.span(name, "exposed", iteration=plan.iteration)

    def _average_and_clip(
        self, plan: IterationPlan, total: torch.Tensor, report: IterationReport, clock: _Stopwatch
    ) -> Fault | None:
        """Turn the sum over shards into the clipped mean, in place; what is wrong with its norm, if anything."""
        owned, num_parameters = self._exchange.owned, self._flat.num_parameters
        # ranges ascend, so that parameters come before buffers
        split = sum(max(0, min(own.stop, num_parameters) - own.start) for own in owned)
        gradient = total[:split].div_(report.rows)
        total[split:].div_(len(report.shards))
        clipping = self._spec.clipping
        if isinstance(clipping, ClipByValue):
            gradient.clamp_(-clipping.limit, clipping.limit)
        elif isinstance(clipping, ClipByNorm):
            mine = norm_message(gradient, owned, num_parameters)
            clock.lap("update")
            with self._exposed("norm", plan):
                messages = self._exchange.share(plan.iteration, _NORMS, mine)
            clock.lap("exchange")
            norm = global_norm(messages, num_parameters)
            if not math.isfinite(norm):
                return Fault(f"the global norm of the gradient is {norm}")
            gradient.mul_(clipping.coefficient(norm))
        return None

    def _leave_together(self, plan: IterationPlan, fault: Fault) -> None:
        """Raise on all ranks; none leaves while a peer still reads its contribution."""
        with suppress(Recoverable):
            self._exchange.share(plan.iteration, _LEAVE, b"")
        raise NotFiniteError(
            f"iteration {plan.iteration} (epoch {plan.epoch}): {fault.text}. Lower the learning rate, clip gradients "
            "or look at the data; not_finite='skip' leaves such iterations out",
            rank=fault.rank,
        )

    def _check(self) -> None:
        num_elements = self._exchange.num_elements
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
