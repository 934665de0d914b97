"""A run in one thread, whose schedule is drawn: driver, ranks, messages and faults take turns as a random number says.

The ranks are real (`chaos.model_ranks`), and so are seats and boundaries. The driver does as `GroupRunner` does, and
Spark is played: it starts processes, and finds out that some are gone.
"""

from __future__ import annotations

import json
from random import Random

from crc32c import crc32c

from chaos.model_ranks import (
    GROUP,
    SHARDS,
    Arena,
    Executor,
    Network,
    Order,
    Process,
    ViolationError,
    expected,
    packed,
)
from mizzle.errors import CollectiveTimeout, MizzleError, PeerLost
from mizzle.scheduling.plan import spread
from mizzle.scheduling.seats import Seat, reseat
from mizzle.spark.ranks.orders import Committed

MOST, GROUPS = 3, 3
"""Ranks, and groups until the run is done."""
MOST_FAULTS, MOST_STEPS = 6, 6000
PATIENCE = 80
"""Turns in which nothing happens, after which whoever waits has waited too long."""


class World:
    """The driver, and whatever may happen. After `play` everything is asserted.

    Attributes:
        faults: what was done, in order.
        is_lost: whether a boundary was lost, with both copies of some state.
    """

    def __init__(self, random: Random) -> None:
        """Three executors, and nothing done."""
        self.random = random
        self.network = Network(random)
        self.executors = [Executor(str(number)) for number in range(3)]
        self.processes: list[Process] = []
        self.generation, self.since = -1, Committed()
        self.seats = [Seat(str(at), tuple(shards)) for at, shards in enumerate(spread(SHARDS, MOST))]
        self.seats_of_boundary: list[Seat] = []
        self.faults: list[str] = []
        self.is_lost = False
        self._boundary, self._orders = 0, 0
        self._prepared = False
        self._awaited: set[int] = set()
        self._withheld: list[Arena] = []
        self._committed: list[int] = [0]

    def play(self) -> None:
        """Until the run is done, or its boundary is lost.

        Raises:
            ViolationError: something happened that must not.
        """
        quiet, seen = 0, -1
        for _ in range(MOST_STEPS):
            if self._boundary == GROUPS * GROUP or self.is_lost:
                break
            self._step()
            quiet = quiet + 1 if seen == self.network.progress else 0
            seen = self.network.progress
            if quiet > PATIENCE:
                quiet = 0
                self._time_out()
        else:
            raise ViolationError(f"the run does not end after {self.faults}")
        for process in self.processes:
            process.kill()

    def _step(self) -> None:
        chance = self.random.random()
        if self.network.late and chance < 0.05:
            self.network.deliver()
        elif chance < 0.07 and len(self.faults) < MOST_FAULTS:
            self._fault()
        elif chance < 0.15:
            self._drive()
        else:
            self._run_one()

    def _run_one(self) -> None:
        alive = [process for process in self.processes if not process.greenlet.dead]
        if not alive:
            return
        process = self.random.choice(alive)
        if process.paused:
            process.paused -= 1
            return
        process.greenlet.switch()

    def _time_out(self) -> None:
        """A deadline passes: somebody waits for what was lost."""
        waiting = [one for one in self._current() if one.greenlet and not one.orders and not one.paused]
        self.network.progress += 1
        if waiting and self._awaited:
            self.random.choice(waiting).greenlet.throw(CollectiveTimeout("late"))

    def _current(self) -> list[Process]:
        return [process for process in self.processes if process.generation == self.generation]

    # What the driver does: as `GroupRunner`.

    def _drive(self) -> None:
        living = {executor.name for executor in self.executors}
        lost = [one for one in self._current() if one.greenlet.dead or one.executor.name not in living]
        if lost or not self._current():
            self._settle()
        elif self._prepared and not self._awaited:
            self._commit()
            self._orders += 1
            for process in self._current():
                process.orders.append(Order(self._orders, self._boundary))
            self._awaited = set(range(len(self.seats)))

    def _commit(self) -> None:
        if self._boundary > self.since.iteration:
            self.since = Committed(self._boundary, self.generation, len(self.seats))
            self.seats_of_boundary = self.seats
            self._note_boundary()

    def _note_boundary(self) -> None:
        if self.since.iteration < self._committed[-1]:
            raise ViolationError(f"the boundary went back: {self._committed} and then {self.since}")
        self._committed.append(self.since.iteration)

    def _settle(self) -> None:
        for old in self._current():
            if not old.greenlet.dead and self.random.random() < 0.7:
                old.kill()  # the others go on as zombies
        while not self.executors:
            self._add_executor()
        self._boundary = self.since.iteration
        # What a zombie holds when the others come is no copy any more: nobody else gets at it.
        self._withheld = [arena for one in self.executors for arena in one.arenas if arena.holder is not None]
        self.seats = reseat(self.seats, {executor.name: 1 for executor in self.executors}, MOST)
        self.generation += 1
        self._prepared, self._awaited = False, set(range(len(self.seats)))
        self.network.settle(len(self.seats))
        self.network.progress += 1
        by_name = {executor.name: executor for executor in self.executors}
        for rank, seat in enumerate(self.seats):
            self.processes.append(Process(self, rank, self.seats, by_name[seat.executor]))

    def settled(self, process: Process) -> None:
        """A rank has taken its place."""
        self.network.progress += 1
        if process.generation != self.generation:
            return
        self._awaited.discard(process.rank)
        if not self._awaited:
            if not self.since.is_start:
                self.since = Committed(self.since.iteration, self.generation, len(self.seats))
                self.seats_of_boundary = self.seats
            self._prepared = True

    def done(self, process: Process, order: Order) -> None:
        """A rank has done its part of a group, and keeps its state and the copies given to it."""
        self.network.progress += 1
        if (process.generation, order.number) != (self.generation, self._orders):
            return
        self._awaited.discard(process.rank)
        if not self._awaited:
            self._boundary = order.first + GROUP

    def failed(self, process: Process, error: MizzleError) -> None:
        """A rank has failed: its process leaves the group. The driver finds it gone."""
        del error
        self.network.progress += process.generation == self.generation

    def lost(self, process: Process) -> None:
        """A rank says that a state is lost: then it must be so."""
        if process.generation != self.generation:
            return
        held = [arena for one in self.executors for arena in one.arenas if arena not in self._withheld]
        for of, seat in enumerate(self.seats_of_boundary):
            truth = expected(self.since.iteration)
            raw = packed({shard: truth[shard] for shard in seat.shards})
            sealed = raw + crc32c(raw).to_bytes(4, "little")
            if not any(self._holds(arena, of, sealed) for arena in held):
                self.is_lost = True
                return
        raise ViolationError(f"boundary {self.since} is said to be lost, and is not, after {self.faults}")

    def _holds(self, arena: Arena, of: int, sealed: bytes) -> bool:
        labels = json.loads(arena.label or b"{}")
        return any(
            (label["of"], label["iteration"], label["generation"]) == (of, self.since.iteration, self.since.generation)
            and bytes(arena.regions[name].buffer[: len(sealed)]) == sealed
            for name, label in labels.items() if name in arena.regions
        )  # fmt: skip

    # What goes wrong.

    def _fault(self) -> None:
        fault = self.random.choice([
            self._kill_process, self._kill_executor, self._add_executor, self._pause, self._give_up, self._flip,
        ])  # fmt: skip
        fault()
        self.faults.append(fault.__name__)

    def _kill_process(self) -> None:
        alive = [process for process in self.processes if not process.greenlet.dead]
        if alive:
            self.random.choice(alive).kill()

    def _kill_executor(self) -> None:
        if self.executors:
            gone = self.executors.pop(self.random.randrange(len(self.executors)))
            for process in self.processes:
                if process.executor is gone:
                    process.kill()

    def _add_executor(self) -> None:
        if len(self.executors) < MOST:
            self.executors.append(Executor(f"new{self.random.getrandbits(40)}"))

    def _pause(self) -> None:
        alive = [process for process in self.processes if not process.greenlet.dead]
        if alive:
            self.random.choice(alive).paused = self.random.randrange(1, 60)

    def _give_up(self) -> None:
        """A rank believes that a peer is lost, and is wrong."""
        alive = [one for one in self._current() if one.greenlet and self._awaited]
        if alive:
            self.random.choice(alive).greenlet.throw(PeerLost(0, "so it seems"))

    def _flip(self) -> None:
        """A bit of a state that is kept somewhere."""
        kept = [
            (arena, name) for one in self.executors for arena in one.arenas
            for name in json.loads(arena.label or b"{}") if name in arena.regions
        ]  # fmt: skip
        if kept:
            arena, name = self.random.choice(kept)
            length = json.loads(arena.label)[name]["bytes"]
            arena.regions[name].buffer[self.random.randrange(length)] ^= 1 << self.random.randrange(8)
