"""What a rank is on its executor: its context, and the part it plays in a group of Python tasks.

Top-level code, never a closure. A failure is returned, not raised: Spark would only run the same attempt again, alone,
while its peers wait.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from mizzle.blocks.arena import BridgeArena
from mizzle.blocks.bridge import BridgeClient, Peer
from mizzle.blocks.connect import connect_store
from mizzle.blocks.deadline import Deadline
from mizzle.blocks.notes import prepare_control
from mizzle.blocks.store import BlockStore
from mizzle.collectives.communicator import Communicator
from mizzle.spark.ranks.orders import JoinTerms
from mizzle.spark.ranks.out_of_memory import note_if_out_of_memory
from mizzle.spark.ranks.outcome import Failure, Outcome, pickled_value


@dataclass(frozen=True, slots=True)
class GroupJob:
    """A group that is one job of Python tasks, as every task of it gets it.

    Attributes:
        terms: of joining.
        ranks_by_task: whether task i must be rank i; else a rank goes where its state is.
        body: what each rank does; importable on the executors.
    """

    terms: JoinTerms
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
        terms: on which it joined.
        peers: where every rank is, the own included.
        store: the way to the peers' blocks.
        arena: this rank's shared memory, kept for the run.
        label: what was noted with the arena last.
    """

    def __init__(
        self, terms: JoinTerms, client: BridgeClient, store: BlockStore, arena: BridgeArena, label: bytes,
        peers: tuple[Peer, ...],
    ) -> None:  # fmt: skip
        """Wrap a rank that has joined."""
        super().__init__(store, timeout_s=terms.timeout_s)
        self.terms = terms
        self.peers = peers
        self.run = terms.run
        self.executor_id = client.executor_id
        self.host = client.host
        self.host_id = client.host_id
        self.store = store
        self.arena = arena
        self.label = label
        self._client = client

    @classmethod
    def join(
        cls, client: BridgeClient, terms: JoinTerms, *, wanted: int = -1, preferred: Sequence[int] = (),
        boundary: int = -1,
    ) -> RankContext:  # fmt: skip
        """Hold an arena of the run and come together with the peers.

        Args:
            client: a connection of this rank's own.
            terms: the same on all ranks.
            wanted: the rank to be, or -1 for the one whose state lies here, or a preferred one, or any.
            preferred: ranks whose data is near, the nearest first.
            boundary: generation of the ranks whose states are to be taken up, or -1.

        Raises:
            CollectiveTimeout: not all ranks came: too few free task slots.
            Fenced: the ranks were complete without this one, or the run has ended.
        """
        deadline = Deadline.after(terms.timeout_s)
        _, label, arena = client.claim(terms.run, wanted, deadline, boundary=boundary)
        membership = client.join(
            terms.run,
            generation=terms.generation,
            group=terms.group,
            size=terms.size,
            wanted=wanted,
            preferred=preferred,
            control=prepare_control(arena, terms.size).path,
            deadline=deadline,
        )
        store = connect_store(client, arena, membership, transport=terms.transport, timeout_s=terms.timeout_s)
        return cls(terms, client, store, arena, label, membership.peers)

    def set_label(self, label: bytes) -> None:
        """Note a few bytes with the arena, for whoever holds it next."""
        self._client.label(label, Deadline.after(self.terms.timeout_s))
        self.label = label

    def counters(self) -> dict[str, int]:
        """What this executor's bridge has done so far, by name."""
        return self._client.counters()


@cache
def _freeze_heap() -> None:
    """Once in a worker: PySpark collects garbage after every task, and would walk all of torch's objects (100 ms)."""
    gc.collect()
    gc.freeze()


def run_rank(job: GroupJob, task: int, rows: Iterable[Any]) -> Iterable[Outcome]:
    """The whole of one task of a group; yields its one outcome."""
    _freeze_heap()
    yield _Part(job, task).play(rows)


class _Part:
    """One rank's part in one group."""

    def __init__(self, job: GroupJob, task: int) -> None:
        self._job, self._task = job, task
        self._rank, self._executor_id, self._host = -1, "", ""

    def play(self, rows: Iterable[Any]) -> Outcome:
        """Connect, play, disconnect. Whatever is raised is the outcome: this is the outermost frame."""
        value, failure = b"", None
        try:
            client = BridgeClient.connect(Deadline.after(self._job.terms.timeout_s))
            self._executor_id, self._host = client.executor_id, client.host
            try:
                value = self._play(client, rows)
            finally:
                client.close()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - user code may raise anything, even sys.exit()
            note_if_out_of_memory(error)
            failure = Failure.of(error)
        return Outcome(self._task, self._rank, self._executor_id, self._host, value, failure)

    def _play(self, client: BridgeClient, rows: Iterable[Any]) -> bytes:
        context = RankContext.join(client, self._job.terms, wanted=self._task if self._job.ranks_by_task else -1)
        self._rank = context.rank
        try:
            value = pickled_value(self._job.body(context, rows))
        except (Exception, SystemExit) as error:
            # Peers are told the reason at once; otherwise they would only see the connection close.
            context.store.abort(f"{type(error).__name__}: {error}")
            raise
        context.store.close()
        return value
