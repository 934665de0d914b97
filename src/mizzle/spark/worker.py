"""What a rank runs on its executor: join the group, call the body, leave, report. Top-level code, never a closure.

A failure is returned, not raised: Spark would only run the same attempt again, alone, while its peers wait.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pyspark import cloudpickle

from mizzle.blocks.arena import BridgeArena
from mizzle.blocks.bridge import BridgeClient
from mizzle.blocks.connect import connect_store
from mizzle.blocks.deadline import Deadline
from mizzle.blocks.notes import prepare_control
from mizzle.blocks.store import BlockStore
from mizzle.collectives.communicator import Communicator
from mizzle.config import Transport
from mizzle.errors import TaskFailed


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
class Failure:
    """What a rank raised, as text: that arrives whatever the exception is made of.

    Attributes:
        text: type and message.
        trace: the traceback, which ends in ``text``.
        pickled: the exception itself, or None when it cannot be pickled and read again.
    """

    text: str
    trace: str
    pickled: bytes | None

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Describe an exception that is being handled."""
        text = "".join(traceback.format_exception_only(error)).strip()
        return cls(text, traceback.format_exc(), _pickled_error(error))

    def error(self) -> BaseException | None:
        """The exception again, where this process can read it."""
        if self.pickled is None:
            return None
        try:
            found = cloudpickle.loads(self.pickled)
        except Exception:  # noqa: BLE001 - code of the user's exception runs here; the text is kept anyhow
            return None
        return found if isinstance(found, BaseException) else None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a rank's part in a group ended. Only bytes and text: no class of the user's stands in the way of reading it.

    Attributes:
        task: number of the Spark task.
        rank: the rank it was, -1 when it was not admitted.
        where: executor and host, for messages.
        value: what the body returned, pickled.
        failure: what was raised, or None.
    """

    task: int
    rank: int
    where: str
    value: bytes = b""
    failure: Failure | None = None


def run_rank(job: GroupJob, task: int, rows: Iterable[Any]) -> Iterable[Outcome]:
    """The whole of one task of a group; yields its one outcome."""
    yield _Part(job, task).play(rows)


class _Part:
    """One rank's part in one group."""

    def __init__(self, job: GroupJob, task: int) -> None:
        self._job, self._task = job, task
        self._rank, self._where = -1, "not connected"

    def play(self, rows: Iterable[Any]) -> Outcome:
        """Connect, play, disconnect. Whatever is raised is the outcome: this is the outermost frame."""
        try:
            deadline = Deadline.after(self._job.timeout_s)
            client = BridgeClient.connect(deadline)
            self._where = f"executor {client.executor_id} on {client.host}"
            try:
                value = self._play(client, deadline, rows)
            finally:
                client.close()
            return Outcome(self._task, self._rank, self._where, value=value)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - user code may raise anything, even sys.exit()
            return Outcome(self._task, self._rank, self._where, failure=Failure.of(error))

    def _play(self, client: BridgeClient, deadline: Deadline, rows: Iterable[Any]) -> bytes:
        job = self._job
        wanted = self._task if job.ranks_by_task else -1
        _, label, arena = client.claim(job.run, wanted, deadline)
        membership = client.join(
            job.run,
            generation=job.generation,
            group=job.group,
            size=job.size,
            wanted=wanted,
            preferred=getattr(job.body, "preferred", list)(),
            control=prepare_control(arena, job.size).path,
            deadline=deadline,
        )
        self._rank = membership.rank
        store = connect_store(client, arena, membership, transport=job.transport, timeout_s=job.timeout_s)
        context = RankContext(job, client, store, arena)
        context.label = label
        try:
            value = _pickled_value(job.body(context, rows))
        except (Exception, SystemExit) as error:
            # Peers are told the reason at once; otherwise they would only see the connection close.
            store.abort(f"{type(error).__name__}: {error}")
            raise
        store.close()
        return value


def _pickled_value(value: object) -> bytes:
    try:
        pickled: bytes = cloudpickle.dumps(value)  # type: ignore[no-untyped-call]
    except Exception as error:
        # Pickling calls code of any object inside, so anything may be raised.
        raise TaskFailed(
            f"what the rank returned ({type(value).__name__}) cannot be sent to the driver "
            f"({type(error).__name__}: {error}): return numbers, arrays or tensors"
        ) from error
    return pickled


def _pickled_error(error: BaseException) -> bytes | None:
    """The exception in a form that this process, at least, can read again."""
    try:
        pickled: bytes = cloudpickle.dumps(error)  # type: ignore[no-untyped-call]
        cloudpickle.loads(pickled)
    except Exception:  # noqa: BLE001 - exceptions may hold locks, or want other arguments than they were made with
        return None
    return pickled
