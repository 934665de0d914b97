"""Where the rows of a training lie: dealt to the ranks' executors at the start, and again as executors go and come."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pyspark import SparkContext, cloudpickle

from mizzle.blocks.deadline import Deadline
from mizzle.errors import ConfigError, Misplaced
from mizzle.scheduling.seats import Seat, reseat
from mizzle.spark.data import ShardInfo, shard_dataframe
from mizzle.spark.driver import DriverSide, num_executors, task_slots
from mizzle.spark.placement import here
from mizzle.spark.recovery import Retries
from mizzle.spark.runner import Staff
from mizzle.spark.train_task import TrainWork
from mizzle.spark.validate import CheckedFrame

_log = logging.getLogger(__name__)
_LOOK_AGAIN_S = 0.05


class Dealing:
    """The staff of a training: who holds which shards, on which executor. A `mizzle.spark.runner.Restaff`.

    Args:
        context: the driver's Spark context.
        driver: its half of the plugin.
        run: the run's id, begun.
        work: what the ranks share; its shards and files are filled in here.
        rows: the training rows.
        held_out: the validation rows, or None.
        least: ranks without which the run waits for executors.
        most: ranks that are wanted.
        timeout_s: how long it waits.
    """

    def __init__(
        self, context: SparkContext, driver: DriverSide, run: str, work: TrainWork, rows: CheckedFrame,
        held_out: CheckedFrame | None, *, least: int, most: int, timeout_s: float,
    ) -> None:  # fmt: skip
        """See the class."""
        self._context, self._driver, self._run, self._work = context, driver, run, work
        self._rows, self._held_out = rows, held_out
        self._least, self._most, self._timeout_s = least, most, timeout_s
        self._num_shards = sum(map(len, work.shards_of_rank))
        self._files: dict[str, dict[int, ShardInfo]] = {"shard": {}, "validation": {}}
        self._seats: list[Seat] = []

    def begin(self) -> Staff:
        """Deal all rows; each rank is where Spark put its shards."""
        shards_of_rank = self._work.shards_of_rank
        self._deal("shard", self._rows, shards_of_rank)
        if self._held_out is not None:
            self._deal("validation", self._held_out, shards_of_rank)
        at = self._files["shard"]
        self._seats = [Seat(at[shards[0]].executor_id, shards) for shards in shards_of_rank]
        return self._staff()

    def wants(self, hosts: Mapping[str, str]) -> bool:
        """Whether others should go on from the next boundary: executors are gone, or there is room for more ranks."""
        if any(seat.executor not in hosts for seat in self._seats):
            return True
        return len(self._seats) < self._most and len(reseat(self._seats, self._slots(hosts), self._most)) > len(
            self._seats
        )

    def replace(self) -> Staff:
        """Seat the ranks on the executors there are, and deal what lies elsewhere to them.

        Raises:
            ConfigError: there were too few executors all the time.
            Misplaced: tasks were never started where rows are wanted.
        """
        hosts = self._living()
        seats = reseat(self._seats, self._slots(hosts), self._most)
        wanted = {shard: seat.executor for seat in seats for shard in seat.shards}
        moving = {shard: to for shard, to in wanted.items() if self._files["shard"][shard].executor_id != to}
        _log.info(
            "run=%s ranks=%d executors=%s shards_moved=%d", self._run[:4], len(seats),
            ",".join(seat.executor for seat in seats), len(moving),
        )  # fmt: skip
        self._move("shard", self._rows, moving, hosts)
        if self._held_out is not None:
            files = self._files["validation"]
            lost = {shard: to for shard, to in wanted.items() if files[shard].executor_id not in hosts}
            self._move("validation", self._held_out, lost, hosts)
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
        each = max(1, task_slots(self._context) // max(1, num_executors(self._context)))
        return dict.fromkeys(hosts, each)

    def _move(self, name: str, rows: CheckedFrame, moving: Mapping[int, str], hosts: Mapping[str, str]) -> None:
        """Deal some shards again, to given executors."""
        retries = Retries(self._timeout_s)
        left = dict(moving)
        while left:
            executors = sorted(set(left.values()))
            shards = [sorted(shard for shard, to in left.items() if to == executor) for executor in executors]
            self._deal(name, rows, shards, [(hosts[executor], executor) for executor in executors])
            left = {shard: to for shard, to in left.items() if self._files[name][shard].executor_id != to}
            if left:
                retries.pause_or_raise(Misplaced(f"shards {sorted(left)} were dealt to other executors than wanted"))

    def _deal(
        self, name: str, rows: CheckedFrame, shards: Sequence[Sequence[int]],
        locations: Sequence[tuple[str, str]] | None = None,
    ) -> None:  # fmt: skip
        infos = shard_dataframe(
            rows, run=self._run, num_shards=self._num_shards, shards_of_rank=shards, locate=here, name=name,
            locations=locations,
        )  # fmt: skip
        self._files[name].update({info.shard: info for info in infos})

    def _staff(self) -> Staff:
        paths = {name: {shard: info.path for shard, info in files.items()} for name, files in self._files.items()}
        work = replace(
            self._work, shards_of_rank=tuple(seat.shards for seat in self._seats), paths=paths["shard"],
            validation=paths["validation"],
        )  # fmt: skip
        pickled: bytes = cloudpickle.dumps(work)  # type: ignore[no-untyped-call]
        return Staff(pickled, len(self._seats), tuple(seat.executor for seat in self._seats))
