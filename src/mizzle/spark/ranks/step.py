"""What a rank of `mizzle.iterate` does: step after step of the user's, with collectives, state and metrics."""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark import cloudpickle

from mizzle.collectives.arrays import Array, ArrayT
from mizzle.errors import ConfigError, Misplaced, TaskFailed
from mizzle.scheduling.plan import Group
from mizzle.spark.ranks.boundary import Keeper, State
from mizzle.spark.ranks.orders import Committed
from mizzle.spark.ranks.outcome import Memory
from mizzle.spark.ranks.worker import RankContext
from mizzle.training.columns import Columns
from mizzle.training.group_metrics import GroupMetrics
from mizzle.training.shards import ShardFile

MAX_METRICS = 16
_MAX_NAMES_BYTES = 320
"""Of all metrics: with their values they must fit into the 1 KB of a task's result."""


class StepContext:
    """What ``step_fn`` gets: who this rank is, where the run is, its state, and collectives with the other ranks.

    Every rank makes the same collective calls in the same order; see `mizzle.RankContext` for their contracts.

    Attributes:
        rank: this rank, 0..size - 1.
        size: number of ranks.
        executor_id: Spark's name of the executor.
        host: its host.
        iteration: the one under way, counted from 0 over the whole run.
        state: this rank's own, whatever you put there; it lives in the executor from iteration to iteration and from
            group to group. It is pickled at the end of each group: what never changes belongs into ``batch``.
    """

    def __init__(self, context: RankContext, *, iteration: int, state: Any) -> None:  # noqa: ANN401 - the user's
        """Wrap a rank that has joined."""
        self.rank, self.size = context.rank, context.size
        self.executor_id, self.host = context.executor_id, context.host
        self.iteration = iteration
        self.state = state
        self.exchange_s = 0.0
        self.is_stopped = False
        self._context = context

    def all_reduce(self, array: ArrayT, op: str = "sum", *, wire: str | None = None) -> ArrayT:
        """The sum (mean, max, min) of all ranks' arrays, the same bits on every rank."""
        with self._timed():
            return self._context.all_reduce(array, op, wire=wire)

    def all_gather(self, array: ArrayT) -> list[ArrayT]:
        """Every rank's array, by rank; their first dimensions may differ."""
        with self._timed():
            return self._context.all_gather(array)

    def broadcast(self, array: Array | None, root: int = 0) -> Array:
        """The root's array on every rank."""
        with self._timed():
            return self._context.broadcast(array, root)

    def barrier(self) -> None:
        """Return when every rank has called it."""
        with self._timed():
            self._context.barrier()

    def stop(self) -> None:
        """End the run with this iteration. All ranks must decide alike, from what a collective told all of them."""
        self.is_stopped = True

    @contextmanager
    def _timed(self) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.exchange_s += time.perf_counter() - begun


StepFunction = Callable[[StepContext, Any], Mapping[str, float] | None]
"""``step_fn(ctx, batch)``: one iteration on one rank; returns metrics by name, or nothing."""


@dataclass(frozen=True, slots=True)
class StepOrder:
    """One group of iterations."""

    group: Group


@dataclass(frozen=True, slots=True)
class FinishSteps:
    """The run ends: ranks leave their results, rank 0 also the metrics of all iterations."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a rank returns of one group.

    Attributes:
        metrics: the packed `GroupMetrics`.
        values: the metrics of the last iteration by name, means over ranks.
        is_stopped: whether the ranks ended the run.
    """

    metrics: bytes
    values: Mapping[str, float]
    is_stopped: bool


@dataclass(frozen=True, slots=True)
class StepWork:
    """What all ranks of an iterative computation share; functions are pickled together with what they refer to.

    Attributes:
        functions: pickled (step_fn, state, prepare, finish).
        paths: file of every rank's rows, by rank; empty when there is no DataFrame.
        columns: of the DataFrame, or None.
        has_elements: whether there is an RDD.
    """

    functions: bytes
    paths: tuple[str, ...]
    columns: Columns | None
    has_elements: bool

    def start(self, context: RankContext, since: Committed, rows: list[Any] | None) -> StepPart:
        """Load rows and state."""
        return StepPart(self, context, since, rows)


class StepPart:
    """One rank of an iterative computation, from a boundary on."""

    def __init__(self, work: StepWork, context: RankContext, since: Committed, rows: list[Any] | None) -> None:
        """See the class.

        Raises:
            Misplaced: this is not where the rank's rows are.
            StateLost: of some rank's state no copy is left.
        """
        self._rank = context
        self._keeper = Keeper(context, since)
        self._step, state, prepare, self._finish = cloudpickle.loads(work.functions)
        self._files = ExitStack()
        with self._files:
            batch: object = None
            if work.columns is not None:
                batch = self._table(work.paths, work.columns)
            elif work.has_elements:
                batch = self._elements(rows)
            self._batch = batch if prepare is None else prepare(batch)
            self._names: list[str] | None = None
            self._last: dict[str, float] = {}
            self._series: dict[str, array[float]] = {}
            self._context = StepContext(context, iteration=since.iteration, state=None)
            if since.is_start:
                self._context.state = state(self._context, self._batch) if callable(state) else state
            else:
                self._take_up(since)
            self._files = self._files.pop_all()

    def run_group(self, order: StepOrder | FinishSteps) -> StepReport | tuple[Memory, Memory]:
        """Obey."""
        if isinstance(order, FinishSteps):
            return self._leave_results()
        context, group = self._context, order.group
        self._keeper.commit(group.first)
        begun, context.exchange_s = time.perf_counter(), 0.0
        rows: list[Mapping[str, float]] = []
        for iteration in range(group.first, group.stop):
            context.iteration = iteration
            try:
                rows.append(_checked(self._step(context, self._batch)))
            except Exception as error:
                error.add_note(f"in iteration {iteration} of the run")
                raise
            if context.is_stopped:
                break
        iterating_s = time.perf_counter() - begun
        self._aggregate(rows)
        boundary = group.first + len(rows)
        self._keep(boundary)
        metrics = GroupMetrics(
            iterations=len(rows), rows=0, last_loss=self._last.get("loss", math.nan), mean_loss=math.nan, skipped=0,
            compute_s=iterating_s - context.exchange_s, exchange_s=context.exchange_s, update_s=0.0,
            boundary_s=time.perf_counter() - begun - iterating_s,
        )  # fmt: skip
        return StepReport(metrics.pack(), self._last, context.is_stopped)

    def _take_up(self, since: Committed) -> None:
        """Go on from this rank's state at the boundary, wherever it is: ranks keep their numbers."""
        needs = [[rank] for rank in range(since.size)]
        [packed] = self._keeper.collect(needs, lambda _of, _raw, _taker: None, self._rank.handover)
        self._context.state, self._series = cloudpickle.loads(packed)
        self._keep(since.iteration)
        self._keeper.release()

    def _keep(self, iteration: int) -> None:
        packed = self._packed_state()
        self._keeper.keep(iteration, State(len(packed), lambda into: _write(packed, into)), self._rank.handover)

    def _packed_state(self) -> bytes:
        try:
            packed: bytes = cloudpickle.dumps((self._context.state, self._series))  # type: ignore[no-untyped-call]
        except Exception as error:
            # Pickling calls code of any object inside, so anything may be raised.
            raise TaskFailed(
                f"ctx.state ({type(self._context.state).__name__}) cannot be kept at a boundary "
                f"({type(error).__name__}: {error}): keep files, locks and connections out of it, make them in prepare"
            ) from error
        return packed

    def close(self) -> None:
        """Close the file of rows."""
        self._files.close()

    def _table(self, paths: tuple[str, ...], columns: Columns) -> pa.Table:
        path = paths[self._rank.rank]
        if not Path(path).exists():
            raise Misplaced(f"rank {self._rank.rank} was started on {self._rank.host}, away from its rows in {path}")
        return self._files.enter_context(ShardFile(path, columns)).table()

    def _elements(self, rows: list[Any] | None) -> list[Any]:
        """Those of the RDD: they come once, and are kept in the arena for a rank that is started anew."""
        if rows is not None:
            self._leave("rows", rows)
            return rows
        kept = self._rank.arena.find("rows")
        if kept is None:
            raise Misplaced(f"rank {self._rank.rank} was started on {self._rank.host}, away from its rows")
        found: list[Any] = cloudpickle.loads(kept.buffer)
        return found

    def _aggregate(self, rows: list[Mapping[str, float]]) -> None:
        """The group's metrics as means over ranks: one all-reduce for all iterations, so the driver gets no series."""
        names = sorted(rows[0])
        if any(sorted(row) != names for row in rows):
            raise TaskFailed(
                f"step_fn returned metrics {names} in one iteration and others in another: return the same"
            )
        if names != self._names:
            self._agree(names)
        if not names:
            return
        values = np.array([[row[name] for name in names] for row in rows], dtype=np.float64)
        mean = self._rank.all_reduce(values, "mean")
        self._last = dict(zip(names, mean[-1].tolist(), strict=True))
        if self._rank.rank == 0:
            for at, name in enumerate(names):
                self._series.setdefault(name, array("d")).extend(mean[:, at].tolist())

    def _agree(self, names: list[str]) -> None:
        """All ranks must return the same metrics: once, and whenever they change."""
        letters = np.frombuffer("\0".join(names).encode(), dtype=np.uint8).astype(np.int32)
        told = self._rank.all_gather(letters)
        if any(not np.array_equal(other, letters) for other in told):
            others = [bytes(other.astype(np.uint8)).decode().split("\0") for other in told]
            raise TaskFailed(f"step_fn returned different metrics on different ranks: {others}; return the same")
        self._names = names

    def _leave_results(self) -> tuple[Memory, Memory]:
        value = None if self._finish is None else self._finish(self._context, self._batch)
        return self._leave("value", value), self._leave(
            "series", {name: series.tolist() for name, series in self._series.items()}
        )

    def _leave(self, name: str, thing: object) -> Memory:
        packed: bytes = cloudpickle.dumps(thing)  # type: ignore[no-untyped-call]
        region = self._rank.arena.region(name, len(packed))
        region.buffer[: len(packed)] = packed
        return Memory(region.path, len(packed))


def _write(packed: bytes, into: memoryview) -> int:
    into[: len(packed)] = packed
    return len(packed)


def _checked(metrics: object) -> Mapping[str, float]:
    """What a step returned, as floats by name.

    Raises:
        ConfigError: it is something else, or too much.
    """
    if metrics is None:
        return {}
    if not isinstance(metrics, dict) or len(metrics) > MAX_METRICS:
        what = f"{len(metrics)} metrics" if isinstance(metrics, dict) else type(metrics).__name__
        raise ConfigError(f"step_fn returned {what}: return a dict of at most {MAX_METRICS} numbers, or None")
    if sum(len(str(name).encode()) for name in metrics) > _MAX_NAMES_BYTES:
        raise ConfigError(
            f"the names of step_fn's metrics take more than {_MAX_NAMES_BYTES} bytes together: give shorter ones"
        )
    return {str(name): _number(str(name), value) for name, value in metrics.items()}


def _number(name: str, value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"step_fn returned a {type(value).__name__} as metric {name!r}: return a number") from error
