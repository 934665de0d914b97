"""Where the rows of a run lie: dealt to the ranks' executors at the start, and again as executors go and come."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from pyspark import SparkContext

from mizzle.blocks.deadline import Deadline
from mizzle.errors import ConfigError, Misplaced, PeerLost
from mizzle.scheduling.seats import Seat, moves, reseat
from mizzle.spark.data import ShardInfo, shard_dataframe
from mizzle.spark.driver import EMBEDDED, DriverSide, num_executors, task_slots
from mizzle.spark.early import start_residents_early
from mizzle.spark.placement import here
from mizzle.spark.recovery import Retries
from mizzle.spark.runner import Staff
from mizzle.spark.validate import CheckedFrame

_log = logging.getLogger(__name__)
_LOOK_AGAIN_S = 0.05
_MOST_LOST = 3
"""Executors that may be lost, one after the other, while rows are dealt for the first time."""
_OPTIONAL_S, _AVOIDED_S = 10.0, 120.0
"""How long a move is tried that need not be, and how long those are left alone whose slots others took meanwhile."""

WorkOf = Callable[[tuple[tuple[int, ...], ...], Mapping[str, Mapping[int, str]]], bytes]


class Dealing:
    """The staff of a run: who holds which shards, on which executor. A `mizzle.spark.runner.Restaff`.

    Args:
        context: the driver's Spark context.
        driver: its half of the plugin.
        run: the run's id, begun.
        frames: what is dealt, by the name of its files; nothing, where ranks have no rows.
        work_of: (shards by rank, files by name and shard) -> the pickled work of these ranks.
        least: ranks without which the run waits for executors.
        most: ranks that are wanted.
        one_each: whether executors of their own have one rank at most, whatever their slots.
        timeout_s: how long it waits.
    """

    def __init__(
        self, context: SparkContext, driver: DriverSide, run: str, frames: Mapping[str, CheckedFrame], work_of: WorkOf,
        *, least: int, most: int, one_each: bool, timeout_s: float,
    ) -> None:  # fmt: skip
        """See the class."""
        self._context, self._driver, self._run = context, driver, run
        self._frames, self._work_of = frames, work_of
        self._least, self._most, self._one_each, self._timeout_s = least, most, one_each, timeout_s
        self._each = max(1, task_slots(context) // max(1, num_executors(context)))
        self._num_shards = 0
        self._files: dict[str, dict[int, ShardInfo]] = {name: {} for name in frames}
        self._seats: list[Seat] = []
        self._share = 1
        self._avoided: dict[str, Deadline] = {}

    def begin(self, shards_of_rank: Sequence[tuple[int, ...]]) -> Staff:
        """Deal all rows; each rank is where Spark put its shards, or, without rows, anywhere."""
        self._num_shards = sum(map(len, shards_of_rank))
        if not self._frames:
            self._seats = [Seat("", shards) for shards in shards_of_rank]
            self._share = len(self._seats)  # Spark seats them, as it likes
            return replace(self._staff(), executors=())
        with self._driver.replacing_hung():
            for name in self._frames:
                self._deal(name, shards_of_rank)
            return self._seat(shards_of_rank)

    def _seat(self, shards_of_rank: Sequence[tuple[int, ...]]) -> Staff:
        """Each rank where its shards are; where they are too many, or their executor is gone already, they move."""
        at = next(iter(self._files.values()))
        self._seats = [Seat(at[shards[0]].executor_id, shards) for shards in shards_of_rank]
        executors, hosts = [seat.executor for seat in self._seats], self._driver.hosts()
        # Not to be changed without need: so many share an executor as Spark put there, if they can.
        self._share = min(max(Counter(executors).values()), max(self._slots(hosts).values(), default=1))
        if not self._is_too_much(executors, hosts):
            return self._staff()
        for _ in range(_MOST_LOST):
            try:
                return self.replace(executors)
            except PeerLost as error:
                _log.warning("run=%s %s", self._run[:4], error)
        return self.replace(executors)

    def wants(self, hosts: Mapping[str, str]) -> bool:
        """Whether there is room for more ranks, or an empty executor for one that came to share another's."""
        size, slots = len(self._seats), self._slots(self._unavoided(hosts))
        more = size < self._most and len(reseat(self._seats, slots, self._most)) > size
        stray = any(info.executor_id not in hosts for files in self._files.values() for info in files.values())
        return more or stray or moves(self._seats, slots, self._share)

    def replace(self, executors: Sequence[str]) -> Staff:
        """Seat the ranks on the executors there are, and deal what lies elsewhere to them.

        Args:
            executors: where the ranks were, by rank.

        Raises:
            ConfigError: there were too few executors all the time.
            Misplaced: tasks were never started where rows are wanted.
        """
        self._seats = [replace(seat, executor=at) for seat, at in zip(self._seats, executors, strict=True)]
        hosts = self._living()
        is_needed = self._is_too_much(executors, hosts)
        seats = reseat(
            self._seats, self._slots(hosts if is_needed else self._unavoided(hosts)), self._most, self._share
        )  # fmt: skip
        _log.info("run=%s ranks=%d executors=%s", self._run[:4], len(seats), ",".join(seat.executor for seat in seats))
        new = frozenset(seat.executor for seat in seats).difference(executors)
        wanted = {shard: seat.executor for seat in seats for shard in seat.shards}
        if self._files and new:
            start_residents_early(self._context, [(hosts[executor], executor) for executor in sorted(new)])
        for number, (name, files) in enumerate(self._files.items()):
            # Only the first are trained on, where their rank is; others may lie on any executor that lives.
            moving = {
                shard for shard, to in wanted.items()
                if (files[shard].executor_id != to if number == 0 else files[shard].executor_id not in hosts)
            }  # fmt: skip
            within_s = self._timeout_s if is_needed else min(_OPTIONAL_S, self._timeout_s)
            self._move(name, moving, wanted, hosts, within_s)
        self._seats = seats
        return self._staff()

    def _living(self) -> Mapping[str, str]:
        """Hosts by executor, once there are enough."""
        deadline, paused = Deadline.after(self._timeout_s), threading.Event()
        while True:
            hosts = self._driver.hosts()
            size = len(reseat(self._seats, self._slots(hosts), self._most))
            if size >= self._least:
                return hosts
            if deadline.passed:
                raise ConfigError(
                    f"executors are gone: {self._least} ranks need as many task slots, {size} were there for "
                    f"{self._timeout_s:g} s. Give the application more executors, or let the run go on with fewer: "
                    f"RunConfig(ranks=({max(1, size)}, {self._most}))"
                )
            paused.wait(_LOOK_AGAIN_S)

    def _slots(self, hosts: Mapping[str, str]) -> dict[str, int]:
        """How many ranks each executor may have: all executors of an application are alike."""
        return {executor: 1 if self._one_each and executor != EMBEDDED else self._each for executor in hosts}

    def _is_too_much(self, executors: Sequence[str], hosts: Mapping[str, str]) -> bool:
        """Whether ranks that are there cannot stay: executors are gone, or have fewer slots."""
        slots = self._slots(hosts)
        return any(count > slots.get(executor, 0) for executor, count in Counter(executors).items())

    def _unavoided(self, hosts: Mapping[str, str]) -> dict[str, str]:
        """Those that have ranks already, or whose slots have not just been found to be others'."""
        seated = {seat.executor for seat in self._seats}
        return {
            executor: host for executor, host in hosts.items()
            if executor in seated or executor not in self._avoided or self._avoided[executor].passed
        }  # fmt: skip

    def _move(
        self, name: str, moving: Collection[int], wanted: Mapping[int, str], hosts: Mapping[str, str], within_s: float
    ) -> None:
        """Deal some shards again, to the executors where they are wanted; all, where their rows are not as before."""
        retries = Retries(within_s)
        left = {shard: wanted[shard] for shard in moving}
        while left:
            lost = next((shard for shard, to in left.items() if to not in self._driver.hosts()), None)
            if lost is not None:
                raise PeerLost(-1, f"executor {left[lost]} is gone before shard {lost} was dealt to it")
            executors = sorted(set(left.values()))
            shards = [sorted(shard for shard, to in left.items() if to == executor) for executor in executors]
            before = self._files[name]
            self._deal(name, shards, [(hosts[executor], executor) for executor in executors])
            if self._differ(name, before):
                # Some rows would be in two shards, and others in none.
                self._files[name], left = {}, dict(wanted)
                continue
            left = {shard: to for shard, to in left.items() if self._files[name][shard].executor_id != to}
            if left:
                self._avoided.update(dict.fromkeys(left.values(), Deadline.after(_AVOIDED_S)))
                retries.pause_or_raise(Misplaced(f"shards {sorted(left)} were dealt to other executors than wanted"))

    def _differ(self, name: str, before: Mapping[int, ShardInfo]) -> bool:
        """Whether shards that were dealt again have other rows than before."""
        now = self._files[name]
        found = sorted(shard for shard, info in before.items() if now[shard].digest != info.digest)
        if found:
            _log.warning(
                "run=%s the DataFrame gives other rows than before, or in another order (shards %s): all of them are "
                "dealt anew, and the result is not that of a run without the fault. Write what shuffles, or comes out "
                "of cache(), to storage first, and read it from there",
                self._run[:4], ", ".join(map(str, found[:9])),
            )  # fmt: skip
        return bool(found)

    def _deal(
        self, name: str, shards: Sequence[Sequence[int]], locations: Sequence[tuple[str, str]] | None = None
    ) -> None:
        infos = shard_dataframe(
            self._frames[name], run=self._run, num_shards=self._num_shards, shards_of_rank=shards,
            locate=here, name=name, locations=locations,
        )  # fmt: skip
        self._files[name] = self._files[name] | {info.shard: info for info in infos}

    def _staff(self) -> Staff:
        paths = {name: {shard: info.path for shard, info in files.items()} for name, files in self._files.items()}
        work = self._work_of(tuple(seat.shards for seat in self._seats), paths)
        return Staff(work, len(self._seats), tuple(seat.executor for seat in self._seats))
