"""What a rank runs on its executor: join the group, call the body, leave, report. Top-level code, never a closure.

A failure is returned, not raised: Spark would only run the same attempt again, alone, while its peers wait.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from mizzle.blocks.arena import BridgeArena
from mizzle.blocks.bridge import BridgeClient
from mizzle.blocks.connect import connect_store
from mizzle.blocks.deadline import Deadline
from mizzle.blocks.notes import prepare_control
from mizzle.blocks.store import BlockStore
from mizzle.collectives.communicator import Communicator
from mizzle.config import Transport
from mizzle.errors import MizzleError


@dataclass(frozen=True, slots=True)
class GroupJob:
    """One group's job, as every task of it gets it: ids and numbers, no tensors.

    Attributes:
        run: the run's id.
        generation: membership epoch.
        group: number of the job within the run.
        size: number of ranks.
        transport: how ranks reach each other.
        timeout_s: deadline in seconds of each collective, and of the ranks' coming together.
        ranks_by_task: whether task i must be rank i; else a rank goes where its state is.
        body: what each rank does; importable on the executors. It may have a method ``preferred()``, which tells the
            ranks whose data is near the executor it is called on.
    """

    run: str
    generation: int
    group: int
    size: int
    transport: Transport
    timeout_s: float
    ranks_by_task: bool
    body: Callable[[RankContext, Iterable[Any]], Any]


class RankContext(Communicator):
    """What a rank knows of itself, with the collectives of its group.

    Attributes:
        rank: this rank, 0..size - 1.
        size: number of ranks.
        run: the run's id.
        executor_id: Spark's name of this executor.
        host: its host.
        host_id: equal for processes that can share memory.
        store: the way to the peers' blocks.
        arena: this rank's shared memory, kept for the run.
        label: what was noted with the arena by its last holder.
    """

    def __init__(self, job: GroupJob, client: BridgeClient, store: BlockStore, arena: BridgeArena) -> None:
        """Wrap a rank that has joined."""
        super().__init__(store, timeout_s=job.timeout_s)
        self.job = job
        self.run = job.run
        self.executor_id = client.executor_id
        self.host = client.host
        self.host_id = client.host_id
        self.store = store
        self.arena = arena
        self.label = b""
        self._client = client

    def set_label(self, label: bytes) -> None:
        """Note a few bytes with the arena, for whoever holds it in the next group."""
        self._client.label(label, Deadline.after(self.job.timeout_s))

    def counters(self) -> dict[str, int]:
        """What this executor's bridge has done so far, by name."""
        return self._client.counters()


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a rank's part in a group ended.

    Attributes:
        task: number of the Spark task.
        rank: the rank it was, -1 when it was not admitted.
        where: executor and host, for messages.
        value: what the body returned.
        error: what it raised, or None.
        trace: the traceback of ``error``.
    """

    task: int
    rank: int
    where: str
    value: Any = None
    error: BaseException | None = None
    trace: str = ""


def run_rank(job: GroupJob, task: int, rows: Iterable[Any]) -> Iterable[Outcome]:
    """The whole of one task of a group; yields its one outcome."""
    deadline = Deadline.after(job.timeout_s)
    rank, where = -1, "not connected"
    try:
        client = BridgeClient.connect(deadline)
        where = f"executor {client.executor_id} on {client.host}"
        try:
            _, label, arena = client.claim(job.run, task if job.ranks_by_task else -1, deadline)
            control = prepare_control(arena, job.size)
            membership = client.join(
                job.run,
                generation=job.generation,
                group=job.group,
                size=job.size,
                wanted=task if job.ranks_by_task else -1,
                preferred=getattr(job.body, "preferred", list)(),
                control=control.path,
                deadline=deadline,
            )
            rank = membership.rank
            store = connect_store(client, arena, membership, transport=job.transport, timeout_s=job.timeout_s)
            context = RankContext(job, client, store, arena)
            context.label = label
            yield _outcome(job, context, task, where, rows)
            store.close()
        finally:
            client.close()
    except MizzleError as error:
        yield Outcome(task, rank, where, error=error, trace=traceback.format_exc())


def _outcome(job: GroupJob, context: RankContext, task: int, where: str, rows: Iterable[Any]) -> Outcome:
    try:
        return Outcome(task, context.rank, where, value=job.body(context, rows))
    except Exception as error:  # noqa: BLE001 - the outermost frame of user code: everything is reported
        context.store.abort(f"{type(error).__name__}: {error}")
        return Outcome(task, context.rank, where, error=error, trace=traceback.format_exc())
