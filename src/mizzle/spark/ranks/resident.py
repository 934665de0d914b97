"""A rank's own Python process beside its executor. It lives as long as a run, and may serve the next one.

Between the groups of a run it keeps what is dear to make: model, optimizer, connections, its place among the ranks. A
group's Spark task only hands it the order and waits (``GroupWork.java``). It is started by a PySpark task
(`mizzle.spark.ranks.hiring`), obeys the bridge alone, and ends when the bridge does or hangs. Behind it a standby waits
(`mizzle.spark.ranks.standby`).
"""

from __future__ import annotations

import gc

if __name__ == "__main__":
    # Before torch: what is imported stays, and to look for garbage in it all the time is a fifth of the time it takes.
    gc.disable()

import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from pyspark import cloudpickle

from mizzle.blocks.bridge import BridgeClient
from mizzle.blocks.deadline import Deadline
from mizzle.blocks.residence import MAX_RESULT_BYTES, Order, OrderKind, serve
from mizzle.errors import BridgeLost, BridgeMissing, Misplaced, MizzleError, TaskFailed
from mizzle.spark.ranks.hiring import arrive
from mizzle.spark.ranks.lifeline import end_with
from mizzle.spark.ranks.orders import Committed, StartOrder
from mizzle.spark.ranks.out_of_memory import note_if_out_of_memory
from mizzle.spark.ranks.outcome import Failure, Outcome, pickled_value
from mizzle.spark.ranks.standby import stand_by
from mizzle.spark.ranks.worker import RankContext

_CONNECT_S = 30.0
_LEAVE_S = 5.0


class ResidentPart(Protocol):
    """One rank's live part in a run, from its start to its end."""

    def run_group(self, order: Any) -> Any:  # noqa: ANN401 - agreed between the work and its driver
        """Do one group, or whatever else is ordered; returns something small."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


class ResidentWork(Protocol):
    """What a run has its residents do; travels by pickle, once."""

    def start(self, context: RankContext, since: Committed, rows: list[Any] | None) -> ResidentPart:
        """Make ready.

        Args:
            context: of a rank that has just joined.
            since: where the run goes on; behind its start, states of ranks are kept (`mizzle.spark.ranks.boundary`).
            rows: those of this rank's partition, where the run was given an RDD.

        Raises:
            Misplaced: the data that this rank needs is elsewhere.
        """
        ...


class _Residence:
    """A resident's part in one generation of a run."""

    def __init__(self, order: StartOrder) -> None:
        _look_in(order.paths)
        self.rank = -1
        self._part: ResidentPart | None = None
        self._context: RankContext | None = None
        self._client = BridgeClient.connect(Deadline.after(order.terms.timeout_s))

    def open(self, order: StartOrder) -> None:
        work: ResidentWork = cloudpickle.loads(Path(order.work).read_bytes())
        rows = None if order.rows is None else cloudpickle.loads(Path(order.rows).read_bytes())
        assigned = [rank for rank, executor in enumerate(order.executors) if executor == self._client.executor_id]
        self._context = RankContext.join(
            self._client, order.terms, wanted=order.wanted, preferred=assigned, boundary=order.since.generation
        )
        self.rank = self._context.rank
        with _TellPeers(self._context):
            if order.executors and not assigned:
                # Not before it has joined: the others would wait for it until their deadline.
                raise Misplaced(f"executor {self._client.executor_id} has no rank of run {order.terms.run[:4]}")
            self._part = work.start(self._context, order.since, rows)

    def run_group(self, order: object) -> object:
        assert self._part is not None, "a group was ordered before the start was done"
        assert self._context is not None
        with _TellPeers(self._context):
            return self._part.run_group(order)

    def close(self) -> None:
        try:
            if self._part is not None:
                self._part.close()
        finally:
            # In order: the arena must be free before another process is told to claim it.
            with suppress(MizzleError):
                self._client.leave(Deadline.after(_LEAVE_S))
            self._client.close()


def _look_in(paths: Sequence[str]) -> None:
    """Look for modules there as well."""
    new = [path for path in paths if path not in sys.path]
    sys.path.extend(new)
    if new:
        importlib.invalidate_caches()


class _TellPeers:
    """Peers are told at once why this rank fails; otherwise they would only see the connection close."""

    def __init__(self, context: RankContext) -> None:
        self._context = context

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        if kind is not None:
            self._context.store.abort(f"{kind.__name__}: {error}")


class Resident:
    """Serves one bridge, order after order, one run at a time."""

    def __init__(self) -> None:
        """Connect to the bridge of the executor that started this process."""
        self._bridge = BridgeClient.connect(Deadline.after(_CONNECT_S))
        arrive()
        self._residence: _Residence | None = None

    def serve(self) -> None:
        """Until there was nothing to do for long, or the bridge is gone."""
        order = self._next(0, b"")
        while order.kind is not OrderKind.EXIT:
            begun = time.perf_counter()
            outcome = self._obey(order, begun)
            order = self._next(order.serial, outcome)

    def _next(self, serial: int, outcome: bytes) -> Order:
        rank = -1 if self._residence is None else self._residence.rank
        return serve(self._bridge, pid=os.getpid(), serial=serial, rank=rank, outcome=outcome)

    def _obey(self, order: Order, begun: float) -> bytes:
        """Do it; whatever is raised is the outcome: this is the outermost frame."""
        if order.kind is OrderKind.RELEASE:
            self._forget()
            return b""
        value, failure = b"", None
        try:
            value = pickled_value(self._do(order))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - user code may raise anything, even sys.exit()
            note_if_out_of_memory(error)
            failure = Failure.of(error)
        rank = -1 if self._residence is None else self._residence.rank
        if failure is not None:
            # This rank and its peers no longer agree on where they are.
            self._forget()
        outcome = Outcome(
            rank, rank, self._bridge.executor_id, self._bridge.host, value, failure, time.perf_counter() - begun
        )  # fmt: skip
        return _packed(outcome)

    def _do(self, order: Order) -> object:
        told = cloudpickle.loads(order.payload)
        if order.kind is OrderKind.START:
            self._forget()
            self._residence = _Residence(told)
            self._residence.open(told)
            return None
        if self._residence is None:
            raise TaskFailed("a group was ordered from a resident that serves no run")
        return self._residence.run_group(told)

    def _forget(self) -> None:
        residence, self._residence = self._residence, None
        if residence is not None:
            try:
                residence.close()
            except Exception as error:  # noqa: BLE001 - code of the user's; the run is over all the same
                print(f"mizzle: a run could not be closed cleanly: {error}", file=sys.stderr)  # noqa: T201 - Spark's log
            del residence
            gc.collect()


def _packed(outcome: Outcome) -> bytes:
    packed: bytes = cloudpickle.dumps(outcome)  # type: ignore[no-untyped-call]
    if outcome.failure is None and len(packed) > MAX_RESULT_BYTES:
        error = TaskFailed(
            f"rank {outcome.rank} returned {len(packed)} bytes from a group, {MAX_RESULT_BYTES} are allowed: aggregate "
            "on the ranks with ctx.all_reduce, return fewer metrics"
        )
        packed = cloudpickle.dumps(replace(outcome, value=b"", failure=Failure.of(error)))  # type: ignore[no-untyped-call]
    return packed


def main() -> None:
    """The process. An interrupt at the terminal is for the driver; it ends runs through the bridge."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    farewell = stand_by()
    gc.enable()
    try:
        resident = Resident()
        threading.Thread(target=end_with, args=(resident._bridge, farewell.say), daemon=True).start()  # noqa: SLF001 - one class
        resident.serve()
    except (BridgeLost, BridgeMissing):
        sys.exit(1)
    finally:
        # Whatever ends Python's way would end the standby the same way: only who is killed is followed.
        farewell.say()


if __name__ == "__main__":
    main()
