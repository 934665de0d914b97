"""The driver's side of a run of many groups: make N ranks resident once, then order group after group from them.

A group is one ordinary Spark job of N small JVM tasks (after Drizzle, Venkataraman et al., SOSP 2017): each hands the
order to the resident of its executor and waits for the outcome. A group that did not end well on all ranks ends their
generation: what they published is never published again under the same names.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, NoReturn, Protocol, Self

from py4j.protocol import Py4JError
from pyspark import RDD, Broadcast, SparkContext, cloudpickle
from pyspark.errors import PySparkException

from mizzle.config import RunConfig
from mizzle.errors import Misplaced, MizzleError, PeerLost, Recoverable, StateLost
from mizzle.scheduling.plan import Group
from mizzle.spark.driver import DriverSide
from mizzle.spark.explain import end_of, explain, raise_cause
from mizzle.spark.fetching import fetched
from mizzle.spark.jobs import RunJobs
from mizzle.spark.jvm_groups import JvmGroups, TaskResult, TaskStatus
from mizzle.spark.placement import placed
from mizzle.spark.ranks.hiring import Hiring
from mizzle.spark.ranks.orders import Committed, JoinTerms
from mizzle.spark.ranks.outcome import Failure, Memory, Outcome
from mizzle.spark.recovery import Faults, Retries, Signs, Unreachable, await_verdict, ended_at_start
from mizzle.training.history import FaultRecord

_log = logging.getLogger(__name__)
_AWAY_S = 0.3
"""How long Spark's word that an executor is gone may come behind the task that it has started elsewhere for it."""


@dataclass(frozen=True, slots=True)
class GroupRun:
    """One group as the driver saw it.

    Attributes:
        results: what the ranks returned, by rank.
        spans: seconds of every rank from receiving its order to its outcome, by rank.
        wall_s: seconds from submitting the group's job to its end.
        driver_cpu_s: CPU seconds of the driver's JVM and Python process meanwhile; with embedded Spark the JVM is the
            executor's too.
    """

    results: list[Any]
    spans: list[float]
    wall_s: float
    driver_cpu_s: float


@dataclass(frozen=True, slots=True)
class Staff:
    """Who is to do the work of a run.

    Attributes:
        work: the pickled `mizzle.spark.ranks.resident.ResidentWork`.
        size: N, number of ranks.
        executors: by rank, where its data lies; empty: anywhere.
    """

    work: bytes
    size: int
    executors: tuple[str, ...] = ()


class Restaff(Protocol):
    """Finds others to do the work of a run as executors go and come."""

    def wants(self, hosts: Mapping[str, str]) -> bool:
        """Whether there is room for more, now that these executors live (Spark's names of their hosts, by executor)."""
        ...

    def replace(self, executors: Sequence[str]) -> Staff:
        """Who goes on, after those that were there (by rank), some of which may be gone."""
        ...


class GroupRunner:
    """The ranks of one run. A context manager; what the ranks hold goes when the run ends.

    A group that fails by a fault of the cluster is run again from its boundary, by the ranks that are left; so its
    results are those of a run without the fault.

    Args:
        context: the driver's Spark context.
        driver: its half of the plugin.
        run: the run's id, begun.
        layout: transport and deadline.
        staff: who begins.
        restaff: who goes on when executors are gone; None: nobody can.
        rows: partition i is for rank i, and the staff may be anywhere; None: the ranks get no rows this way.
        since: the checkpoint that the run goes on from; None: it begins.
    """

    def __init__(
        self, context: SparkContext, driver: DriverSide, run: str, layout: RunConfig, staff: Staff, *,
        restaff: Restaff | None = None, rows: RDD[Any] | None = None, since: Committed | None = None,
    ) -> None:  # fmt: skip
        """See the class."""
        self.run = run
        self._context, self._driver, self._layout = context, driver, layout
        self._restaff, self._rows = restaff, rows
        self._generation = -1
        self._since = since or Committed()
        self._faults = Faults(run)
        self._signs = Signs()
        self._places: tuple[tuple[str, str], ...] = ()
        self._unreachable = Unreachable(run, driver.replace if restaff else None)
        self._orders = 0
        self._prepared: Any = None
        self._jvm = JvmGroups(context)
        self._size, self._executors = staff.size, staff.executors
        self._work: Broadcast[bytes] = context.broadcast(staff.work)
        self._jobs = RunJobs(context, run)

    def run_group(self, group: Group, order: object) -> GroupRun:
        """Run one group on all ranks, each where its state is.

        Raises:
            MizzleError: the first cause of the group's failure, as the rank that saw it raised it.
            TaskFailed: user code failed.
            PeerLost: an executor or a rank's process ended, again and again.
            StateLost: of a rank's state at the boundary no copy is left.
            Misplaced: some slot where a rank has its state or data is taken by other jobs all the time.
        """
        self._welcome()
        return self.order(f"iterations {group.first}-{group.stop - 1} (epoch {group.epoch})", order, group.first)

    def order(self, title: str, order: object, boundary: int) -> GroupRun:
        """Have all ranks do something.

        Args:
            title: what, for the job's description.
            order: for `mizzle.spark.ranks.resident.ResidentPart.run_group`.
            boundary: iterations done before it.

        Raises:
            MizzleError: as `run_group` does.
        """
        pickled: bytes = cloudpickle.dumps(order)  # type: ignore[no-untyped-call]
        self._commit(boundary)
        retries: Retries | None = None
        while True:
            try:
                if self._prepared is None:
                    self._settle()
                done = self._run_once(title, pickled)
                self._faults.over(self._since.iteration, self._size)
                return done  # noqa: TRY300 - a loop that ends here
            except Misplaced as error:
                self._prepared = None
                _log.info("run=%s %s: is started again: %s", self.run[:4], title, error)
                retries = retries or Retries(self._layout.timeout_s)
                retries.pause_or_raise(error)
            except Recoverable as error:
                retries = None
                self._survive(title, error)
            except BaseException as error:
                self._prepared = None
                explain(error, title, self._places)
                raise

    def results(
        self, title: str, order: object, boundary: int, wanted: Callable[[list[Any]], Sequence[tuple[int, Memory]]]
    ) -> tuple[list[Any], list[bytes]]:
        """Have all ranks leave something in their arenas, and fetch it; again, where an executor is lost in between.

        Args:
            title: as in `order`.
            order: as in `order`.
            boundary: as in `order`.
            wanted: from what the ranks returned, what to fetch.

        Returns:
            What the ranks returned, and what was fetched.

        Raises:
            MizzleError: as `run_group` does.
        """
        while True:
            found = self.order(title, order, boundary).results
            try:
                return found, self.fetch(wanted(found))
            except PeerLost as error:
                self._survive(title, error)

    def _survive(self, title: str, error: Recoverable) -> None:
        """The ranks settle anew, unless that has not helped before: then ``error`` is raised."""
        self._prepared = None
        self._faults.notice(f"{title}: {error}")
        await_verdict(self._signs.silent, self._driver.hosts)  # whose end is known by then can be told
        for ended in filter(None, (end_of(one, self._driver.why_removed) for one in self._executors)):
            _log.warning("run=%s %s", self.run[:4], ended)
            error.add_note(ended)
        try:
            self._faults.count(
                error, ended=self._has_ended(error), given_up=self._signs.given_up, hangs=self._signs.hangs
            )  # fmt: skip
        except MizzleError:
            explain(error, title, self._places)
            raise

    def _has_ended(self, error: Recoverable) -> bool:
        """Whether the rank that it names is known to have ended: its peers may have lost a connection only."""
        if not isinstance(error, PeerLost) or error.rank in self._signs.dead:
            return True
        if not 0 <= error.rank < len(self._executors):
            return True
        return self._executors[error.rank] not in self._driver.hosts()

    def _commit(self, boundary: int) -> None:
        """All ranks have told that they keep their states at this boundary, and the copies given to them."""
        if boundary > self._since.iteration:
            self._since = Committed(boundary, self._generation, len(self._executors))
            self._faults.forget()

    def go_back(self, since: Committed, cause: str) -> None:
        """Go on from a checkpoint, by the executors that there are: what the boundary needs is lost."""
        self._faults.notice(cause)
        self._since, self._prepared = since, None

    @property
    def is_restoring(self) -> bool:
        """Whether the ranks still have to take up the states of a checkpoint."""
        return bool(self._since.checkpoint)

    @property
    def generation(self) -> int:
        """Of the ranks that ran the last group."""
        return self._generation

    def where(self, rank: int) -> tuple[str, str]:
        """Spark's names of executor and host of a rank; empty when it is none."""
        return self._places[rank] if 0 <= rank < len(self._places) else ("", "")

    @property
    def faults(self) -> list[FaultRecord]:
        """The faults that the run has survived so far."""
        return self._faults.survived

    def fetch(self, wanted: Sequence[tuple[int, Memory]]) -> list[bytes]:
        """What ranks left in their arenas, by tasks on the executor of each; however large, no heap has to hold much.

        Args:
            wanted: ranks, and what of theirs.

        Raises:
            Misplaced: some slot there is taken by other jobs all the time.
        """
        return fetched(
            self._context, self._jobs, wanted, executors=self._executors, locations=self._locations,
            timeout_s=self._layout.timeout_s,
        )  # fmt: skip

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drop the broadcast. The bridges drop the rest when the run ends."""
        self._jobs.close()
        self._drop_work()

    def _hire(self, staff: Staff) -> None:
        """From the next generation on these do the work."""
        self._drop_work()
        self._size, self._executors = staff.size, staff.executors
        self._work = self._context.broadcast(staff.work)

    def _drop_work(self) -> None:
        try:
            self._work.destroy()
        except (Py4JError, PySparkException) as error:
            _log.warning("run=%s left its broadcast behind: %s", self.run[:4], error)

    def _settle(self) -> None:
        """Begin a generation: one job of Python tasks makes the ranks resident."""
        self._replace()
        self._generation += 1
        self._signs = Signs(silent=self._executors)
        terms = JoinTerms(self.run, self._generation, 0, self._size, self._layout.transport, self._layout.timeout_s)
        # Rows come once: later they are in the arenas, to which the ranks return.
        with_rows = self._rows is not None and not self._executors
        hired = self._tasks(with_rows=with_rows).mapPartitionsWithIndex(
            Hiring(terms, self._work, self._since, self._executors, with_rows=with_rows)
        )
        title = f"{self._size} ranks take their places"
        outcomes: list[Outcome] = self._jobs.run(
            title, hired.collect, {at: rank for rank, at in enumerate(self._executors)}
        )
        without = self._unreachable.give_up(outcomes, self._executors)
        self._signs = Signs(without or self._executors, ended_at_start(outcomes))
        raise_cause(outcomes)
        by_rank = sorted(outcomes, key=lambda outcome: outcome.rank)
        self._executors = tuple(outcome.executor_id for outcome in by_rank)
        self._places = tuple((outcome.executor_id, outcome.host) for outcome in by_rank)
        if not self._since.is_start:
            # each has kept its part of the boundary anew
            self._since = Committed(self._since.iteration, self._generation, self._size)
        self._prepared = self._jvm.prepare(self.run, self._generation, self._locations(self._executors))

    def _tasks(self, *, with_rows: bool) -> RDD[Any]:
        if with_rows and self._rows is not None:
            return self._rows
        if self._executors:
            return placed(self._context, self._locations(self._executors))
        return self._context.parallelize(range(self._size), self._size)

    def _run_once(self, title: str, pickled: bytes) -> GroupRun:
        self._orders += 1
        run_job = partial(self._jvm.run, self._prepared, self._orders, pickled)
        begun, cpu_s = time.perf_counter(), self._cpu_s()
        found = self._jobs.run(title, run_job, None)
        wall_s, cpu_s = time.perf_counter() - begun, self._cpu_s() - cpu_s
        if any(result.status is TaskStatus.AWAY for result in found):
            self._raise_away()
        # What is missing was cancelled because of a rank that failed or died: that one says why.
        told = [result for result in found if result.status is not TaskStatus.MISSING]
        outcomes = [_outcome(result, self.where(result.rank)) for result in told]
        self._signs = self._look(found, outcomes)
        raise_cause(outcomes)
        if silent := self._signs.silent:
            hosts = self._driver.hosts()
            lost = next((executor for executor in silent if executor not in hosts), silent[0])
            raise PeerLost(self._executors.index(lost), f"executor {lost} is gone, or hangs: nothing is heard of it")
        outcomes.sort(key=lambda outcome: outcome.rank)
        return GroupRun(
            [outcome.result() for outcome in outcomes], [outcome.span_s for outcome in outcomes], wall_s, cpu_s
        )

    def _raise_away(self) -> NoReturn:
        """A task was started away from its rank: because its slot is taken, or because its executor is gone."""
        await_verdict(self._executors, self._driver.hosts, within_s=_AWAY_S)
        self._locations(self._executors)
        raise Misplaced("a task was started away from its rank")

    def _look(self, found: Sequence[TaskResult], outcomes: Sequence[Outcome]) -> Signs:
        """Who is suspected; at most one is given up for it."""
        dead = frozenset(one.rank for one in found if one.status is TaskStatus.DIED)
        # Where a process died its bridge said so: nobody else is suspected.
        silent = () if dead else tuple(
            executor for executor, one in zip(self._executors, found, strict=True) if one.status is TaskStatus.MISSING
        )  # fmt: skip
        without = self._unreachable.give_up_missed(outcomes, self._executors)
        return Signs(without or silent, dead, given_up=bool(without), hangs=not self._unreachable.is_cut)

    def _cpu_s(self) -> float:
        return time.process_time() + float(self._jvm.cpu_s())

    def _welcome(self) -> None:
        """At a boundary executors that have come, are gone or were told to leave change who goes on."""
        hosts = self._driver.hosts()
        if self._restaff is not None and (not hosts.keys() >= {*self._executors} or self._restaff.wants(hosts)):
            self._prepared = None

    def _replace(self) -> None:
        """Where executors are gone or have come, others take over."""
        hosts = self._driver.hosts()
        lost = [rank for rank, executor in enumerate(self._executors) if executor not in hosts]
        if lost:
            self._faults.notice(f"the executors of ranks {lost} are gone, or leave")
        if lost and self._restaff is None:
            raise StateLost(
                f"executor {self._executors[lost[0]]} is gone, with the elements of the RDD that rank {lost[0]} had. "
                "Start the run again, or give it a DataFrame, whose rows are read again"
            )
        if self._restaff is not None and self._executors and (lost or self._restaff.wants(hosts)):
            title = "deals shards to other executors"
            try:
                self._hire(self._jobs.run(title, partial(self._restaff.replace, self._executors)))
            except Misplaced as error:
                if lost:
                    raise
                _log.warning("run=%s goes on where it is: %s", self.run[:4], error)

    def _locations(self, executors: Sequence[str]) -> list[tuple[str, str]]:
        hosts = self._driver.hosts()
        lost = [executor for executor in executors if executor not in hosts]
        if lost:
            raise PeerLost(executors.index(lost[0]), f"executor {lost[0]}, which had its state, is gone or leaves")
        return [(hosts[executor], executor) for executor in executors]


def _outcome(result: TaskResult, where: tuple[str, str]) -> Outcome:
    if result.status in {TaskStatus.OUTCOME, TaskStatus.FAILED}:
        outcome: Outcome = cloudpickle.loads(result.body)
        return outcome
    return Outcome(-1, result.rank, *where, failure=Failure.of(PeerLost(result.rank, result.body.decode())))
