"""What a resident does in a training: build its rank once, then run group after group from orders.

The weights lie in the rank's arena, its own state is left there at every boundary: a rank that is started anew on the
same executor goes on with the same bits.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pyspark import cloudpickle

from mizzle.blocks.deadline import Deadline
from mizzle.collectives.handover import Handover
from mizzle.collectives.slices import Slice
from mizzle.collectives.timeline import NO_TIMELINE, Timeline
from mizzle.errors import CheckpointError, ConfigError, DataError, Misplaced
from mizzle.scheduling.plan import Group
from mizzle.spark.ranks.boundary import Keeper, State
from mizzle.spark.ranks.orders import Committed
from mizzle.spark.ranks.outcome import Memory
from mizzle.spark.ranks.part_writer import PartWriter, Wanted
from mizzle.spark.ranks.worker import RankContext
from mizzle.training.checkpoint import CheckpointStore
from mizzle.training.columns import Columns
from mizzle.training.group_metrics import GroupMetrics
from mizzle.training.rank import RankTrainer
from mizzle.training.recut import needed, part_of
from mizzle.training.shards import ShardFile
from mizzle.training.spec import IterationPlan, TrainingSpec
from mizzle.training.state import PackedState, unpack_state
from mizzle.training.trace import TRACE_BYTES, TraceBuffer
from mizzle.training.wiring import exchange_for

_WHO_SEES, _COLLECT, _KEEP_FIRST, _KEEP = 5, 6, 8, 9
"""Numbers of rounds beside those of an iteration, behind which they come. Where a generation begins: who sees which
files; states are collected (two rounds) and kept anew. At a boundary, in the iteration before: states are kept."""


@dataclass(frozen=True, slots=True)
class TrainOrder:
    """One group.

    Attributes:
        group: which iterations.
        hyper: their hyper-parameters, by iteration and parameter group.
        evaluate: whether the validation rows are evaluated behind it.
        checkpoint: to be written, beside the group, of the boundary that it begins with; None for none.
    """

    group: Group
    hyper: tuple[tuple[Mapping[str, Any], ...], ...]
    evaluate: bool
    checkpoint: Wanted | None = None

    def iterations(self) -> list[IterationPlan]:
        """The group's iterations."""
        group = self.group
        return [
            IterationPlan(group.first + k, group.epoch, group.first_in_epoch + k, self.hyper[k])
            for k in range(group.size)
        ]


@dataclass(frozen=True, slots=True)
class SaveOrder:
    """A checkpoint is wanted now.

    Attributes:
        boundary: iterations done; committed.
        checkpoint: the one that is being written, or one of this boundary.
        iteration: of that checkpoint's boundary.
        timeout_s: how long writing it may take.
    """

    boundary: int
    checkpoint: Wanted
    iteration: int
    timeout_s: float


@dataclass(frozen=True, slots=True)
class FinishOrder:
    """The run ends: the ranks leave for the driver what it wants of them."""


@dataclass(frozen=True, slots=True)
class Finished:
    """What a rank leaves behind, and where.

    Attributes:
        memory_bytes: what it held, by purpose; the copies for recovery are "recovery".
        trace: for `mizzle.training.trace.read_trace`; None where none was wanted.
        model: safetensors of ``state_dict()``; from rank 0.
        log: a packed `mizzle.training.loss_log.LossLog`; from rank 0.
    """

    memory_bytes: Mapping[str, int]
    trace: Memory | None
    model: Memory | None = None
    log: Memory | None = None


@dataclass(frozen=True, slots=True)
class TrainWork:
    """What all ranks of a training share.

    Attributes:
        shipped: initial model, spec and columns, pickled together, so that what they share stays shared.
        shards_of_rank: by rank.
        paths: file of every shard.
        validation: file of every validation shard; empty without validation.
        store: of checkpoints; None: there are none.
    """

    shipped: bytes
    shards_of_rank: tuple[tuple[int, ...], ...]
    paths: Mapping[int, str]
    validation: Mapping[int, str]
    store: CheckpointStore | None = None

    def start(self, context: RankContext, since: Committed, _rows: list[Any] | None) -> TrainPart:
        """Build the rank."""
        return TrainPart(self, context, since)


class TrainPart:
    """One rank of a training, from a boundary on."""

    def __init__(self, work: TrainWork, context: RankContext, since: Committed) -> None:
        """Open files, build the model, take up the state.

        Raises:
            Misplaced: this is not where the rank's shards are.
            StateLost: of some rank's state no copy is left.
            CheckpointError: the checkpoint to go on from is damaged.
        """
        self._context, self._store = context, work.store
        self._keeper = Keeper(context, since)
        model, spec, columns = _load(work.shipped)
        self._files = ExitStack()
        with self._files:
            shards = {shard: self._open(work.paths[shard], columns) for shard in work.shards_of_rank[context.rank]}
            self._timeline = Timeline() if spec.trace else NO_TIMELINE
            self._exchange = exchange_for(
                spec, model, context.store, work.shards_of_rank, timeout_s=context.terms.timeout_s,
                timeline=self._timeline,
            )  # fmt: skip
            self._trainer = RankTrainer(spec, model, self._exchange, shards, timeline=self._timeline)
            # Also where the start fails: the model's hooks would keep the weights, and so their memory, for ever.
            self._files.callback(self._trainer.close)
            if since.checkpoint:
                self._restore(since)
            elif not since.is_start:
                self._take_up(since)
            # At every start: a rank wrote its own ranges only, and a group that failed may have left newer ones.
            self._trainer.gather_weights(since.iteration)
            held = self._held_for_validation(work, since.iteration)
            self._validation = {shard: self._open(work.validation[shard], columns) for shard in held}
            self._writer = self._make_writer()
            self._files = self._files.pop_all()

    def run_group(self, order: TrainOrder | SaveOrder | FinishOrder) -> tuple[bytes, bytes] | bytes | Finished:
        """Obey: a group's packed `GroupMetrics` and what is `Told` of checkpoints; at the end, where results lie."""
        if isinstance(order, FinishOrder):
            return self._finish()
        if isinstance(order, SaveOrder):
            return self._save(order)
        self._keeper.commit(order.group.first)
        if order.checkpoint is not None:
            self._begin_part(order.checkpoint, order.group.first)
        plans = order.iterations()
        iterations = self._trainer.run(plans)
        laps = _Laps()
        evaluation = None
        if order.evaluate:
            with self._timeline.span("evaluate", "boundary", iteration=order.group.stop - 1):
                evaluation = self._trainer.evaluate(plans[-1], self._validation)
        evaluate_s = laps.lap()
        with self._timeline.span("keep state", "boundary", boundary=order.group.stop):
            self._keep(order.group.stop, self._exchange.handover(order.group.stop - 1, _KEEP))
        self._keep_trace()
        metrics = GroupMetrics.of(
            iterations, evaluation=evaluation, evaluate_s=evaluate_s, boundary_s=laps.lap(),
            stragglers=self._trainer.take_stragglers(),
        )  # fmt: skip
        return metrics.pack(), b"" if self._writer is None else self._writer.told.pack()

    def close(self) -> None:
        """Close the files, and let go of the model."""
        if self._writer is not None:
            self._writer.break_off()
        self._files.close()

    def _take_up(self, since: Committed) -> None:
        """Go on from the states of the boundary, wherever they are, and keep them as those of these ranks."""
        trainer, between = self._trainer, self._exchange.handover(since.iteration, _COLLECT)
        then, now = trainer.ranges_among(since.size), trainer.ranges_among(self._context.size)

        def part(of: int, raw: memoryview, taker: int) -> State | None:
            if then[of] == now[taker]:
                return None
            packed = PackedState(*part_of(unpack_state(raw), now[taker]))
            return State(packed.num_bytes, packed.write)

        trainer.load_state(self._keeper.collect(needed(then, now), part, between))
        self._keep(since.iteration, self._exchange.handover(since.iteration, _KEEP_FIRST))
        self._keeper.release()

    def _restore(self, since: Committed) -> None:
        """Go on from a checkpoint that any number of ranks wrote, and keep its states as those of these ranks."""
        assert self._store is not None, "a checkpoint was named, but no storage"
        trainer, store = self._trainer, self._store
        raws = read_states(store, since.checkpoint, trainer.ranges_among(self._context.size), self._context.rank)
        try:
            trainer.load_state(raws)
        except (ConfigError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{since.checkpoint}: its parts hold no state of this training: {type(error).__name__}: {error}"
            ) from error
        self._keep(since.iteration, self._exchange.handover(since.iteration, _KEEP_FIRST))

    def _make_writer(self) -> PartWriter | None:
        return None if self._store is None else PartWriter(self._store, self._context.rank)

    def _begin_part(self, wanted: Wanted, iteration: int) -> None:
        """Have this rank's part of a checkpoint written from its state at the boundary, which is kept meanwhile."""
        assert self._writer is not None, "a checkpoint was ordered, but no storage"
        context = self._context
        self._writer.break_off()
        if wanted.generation != context.terms.generation:
            self._writer.refuse(iteration, "ranks were replaced: others may have begun to write it")
            return
        among = self._trainer.ranges_among(context.size)
        owned = among[context.rank]
        state, done = self._keeper.pin() if among.index(owned) == context.rank else (None, _nothing)
        self._writer.begin(wanted.name, iteration, state, owned, done)

    def _save(self, order: SaveOrder) -> bytes:
        """Write it, or what is left of it, now."""
        assert self._writer is not None, "a checkpoint was ordered, but no storage"
        self._keeper.commit(order.boundary)
        if self._writer.told.iteration != order.iteration == order.boundary:
            self._begin_part(order.checkpoint, order.iteration)
        return self._writer.wait(Deadline.after(order.timeout_s)).pack()

    def _keep(self, iteration: int, between: Handover) -> None:
        trainer = self._trainer
        self._keeper.keep(iteration, State(trainer.state_bytes(), trainer.save_state_into), between)

    def _keep_trace(self) -> Memory | None:
        """Leave what was noted so far in the arena, which outlives this process."""
        if not self._timeline.is_on:
            return None
        region = self._context.arena.region("trace", TRACE_BYTES)
        kept = TraceBuffer(region.buffer)
        kept.append(*self._timeline.take())
        return Memory(region.path, kept.used_bytes)

    def _open(self, path: str, columns: Columns) -> ShardFile:
        if not Path(path).exists():
            context = self._context
            raise Misplaced(f"rank {context.rank} was started on {context.host}, away from its file {path}")
        return self._files.enter_context(ShardFile(path, columns))

    def _held_for_validation(self, work: TrainWork, boundary: int) -> list[int]:
        """The validation shards that this rank evaluates: it must see the files, and all ranks agree on who does."""
        if not work.validation:
            return []
        seen = [shard for shard, path in sorted(work.validation.items()) if Path(path).exists()]
        told = self._exchange.share(boundary, _WHO_SEES, json.dumps(seen).encode())
        return deal_seen([json.loads(one) for one in told], work.shards_of_rank)[self._context.rank]

    def _finish(self) -> Finished:
        held = {**self._trainer.memory_bytes(), "recovery": self._keeper.num_bytes()}
        finished = Finished(held, self._keep_trace())
        if self._context.rank:
            return finished
        return replace(
            finished,
            model=self._leave("model", safetensors.torch.save(self._trainer.model_state())),
            log=self._leave("log", self._trainer.log.pack()),
        )

    def _leave(self, name: str, content: bytes) -> Memory:
        region = self._context.arena.region(name, max(1, len(content)))
        region.buffer[: len(content)] = content
        return Memory(region.path, len(content))


def _nothing() -> None:
    pass


def read_states(
    store: CheckpointStore, checkpoint: str, ranges: Sequence[Sequence[Slice]], rank: int
) -> list[bytearray]:
    """The states of a checkpoint that a rank needs.

    Args:
        store: where it lies.
        checkpoint: its name.
        ranges: of the flat vector, of every rank of today.
        rank: whose states are wanted.

    Raises:
        CheckpointError: the manifest or one of these parts is damaged.
    """
    parts = store.read(checkpoint).parts
    then = [[Slice(*one) for one in part.owned] for part in parts]
    return [store.read_part(checkpoint, parts[of]) for of in needed(then, ranges)[rank]]


def _load(shipped: bytes) -> tuple[torch.nn.Module, TrainingSpec, Columns]:
    """Fresh copies of what was shipped."""
    model, spec, columns = cloudpickle.loads(shipped)
    return model, spec, columns


def deal_seen(seen: Sequence[Collection[int]], shards_of_rank: Sequence[Sequence[int]]) -> list[list[int]]:
    """Who evaluates which shard: who holds the shard of the same number if it sees the file, else who has least to do.

    Args:
        seen: numbers of the shards whose files each rank sees, by rank.
        shards_of_rank: those that it trains on, by rank.

    Raises:
        DataError: no rank sees some shard.
    """
    dealt: list[list[int]] = [[] for _ in seen]
    for rank, shards in enumerate(shards_of_rank):
        for shard in shards:
            able = [other for other, files in enumerate(seen) if shard in files]
            if not able:
                raise DataError(
                    f"validation shard {shard} lies on a host without ranks: give the run a rank on every executor "
                    "(RunConfig(ranks=None))"
                )
            dealt[rank if rank in able else min(able, key=lambda other: len(dealt[other]))].append(shard)
    return dealt


class _Laps:
    """Seconds since the last lap."""

    def __init__(self) -> None:
        self._at = time.perf_counter()

    def lap(self) -> float:
        before, self._at = self._at, time.perf_counter()
        return self._at - before
