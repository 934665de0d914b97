"""The ranks of a modelled run: processes that take turns, what they keep, and a network on which messages are lost.

The ranks are mizzle's own code: `Keeper` with its copies and checksums, `Handover`, `Communicator`, `MemoryFabric` with
its names and fence. Only what Java does is played: arenas that outlive processes, and who claims which. Every rank's
process is a greenlet that gives the turn away wherever it waits, in the middle of writing a state, and around notes
with its arena.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace
from typing import Any, Protocol

from greenlet import GreenletExit, getcurrent, greenlet

from mizzle.blocks.ids import BlockId
from mizzle.blocks.island import islands_of
from mizzle.blocks.memory import MemoryFabric
from mizzle.collectives.communicator import Communicator
from mizzle.errors import Fenced, MizzleError, Recoverable, StateLost
from mizzle.scheduling.seats import Seat
from mizzle.spark.ranks.boundary import Keeper, State
from mizzle.spark.ranks.orders import Committed
from unit.spark.ranks.keepers import KeptArena

RUN = "0123456789abcdef" * 2
SHARDS, GROUP = 4, 2
"""How many there are, and iterations of a group."""

Values = dict[int, int]
"""Of a shard, by number."""


class ViolationError(AssertionError):
    """What must never happen."""


def advance(values: Values, iteration: int) -> Values:
    """What an iteration makes of all shards: each depends on all."""
    total = sum(value for _, value in sorted(values.items()))
    return {shard: zlib.crc32(f"{value}.{iteration}.{total}".encode()) for shard, value in values.items()}


def expected(iteration: int) -> Values:
    """The one history."""
    values = dict.fromkeys(range(SHARDS), 1)
    for number in range(iteration):
        values = advance(values, number)
    return values


def packed(values: Values) -> bytes:
    """A state."""
    return json.dumps(sorted(values.items())).encode()


class Arena(KeptArena):
    """Memory in an executor that outlives the process that holds it."""

    def __init__(self) -> None:
        super().__init__()
        self.rank, self.labelled_in = -1, list[int]()
        self.holder: Process | None = None


@dataclass(eq=False)
class Executor:
    """What dies together."""

    name: str
    arenas: list[Arena] = field(default_factory=list)

    def claim(self, rank: int, boundary: int, holder: Process) -> Arena:
        """As `Runs.claim` does it: what was left at the boundary first, then what a later generation did; else new."""
        free = [arena for arena in self.arenas if arena.holder is None]
        free.sort(
            key=lambda one: (boundary not in one.labelled_in, -max(one.labelled_in, default=-1), one.rank != rank)
        )
        if not free:
            self.arenas.append(Arena())
            free = self.arenas[-1:]
        free[0].holder = holder
        return free[0]


class Turns:
    """In the place of the fabric's condition: who waits gives the turn away."""

    def __enter__(self) -> None:
        """One thread: nothing to lock."""

    def __exit__(self, *_: object) -> None:
        """Likewise."""

    def wait(self, _seconds: float) -> bool:
        """Until something may have changed."""
        give_turn()
        return True

    def notify_all(self) -> None:
        """Everybody looks when it is his turn."""


def give_turn() -> None:
    """Let others go on; from the schedule itself it does nothing."""
    parent = getcurrent().parent
    if parent is not None:
        parent.switch()


class Network(MemoryFabric):
    """A fabric whose messages may be late, come twice, or never."""

    def __init__(self, random: Random) -> None:
        """See the class."""
        super().__init__(1)
        self._changed = Turns()  # type: ignore[assignment]
        self._random = random
        self.late: list[Callable[[], None]] = []
        self.progress = 0
        self.unreliable = True

    def settle(self, size: int) -> None:
        """From now on a group has so many ranks."""
        self.size, self.islands = size, islands_of(range(size))

    def announce(self, block: BlockId, announced: Any) -> None:
        """As in `MemoryFabric`; or later, or twice, or never."""
        self.progress += 1
        chance = self._random.random() if self.unreliable else 1.0
        send = super().announce
        if chance >= 0.01:
            send(block, announced)
        if 0.003 <= chance < 0.03:
            self.late.append(lambda: send(block, announced))

    def deliver(self) -> None:
        """Something that was late comes."""
        self.progress += 1
        with suppress(Fenced):  # of a generation that is over: refused
            self.late.pop(self._random.randrange(len(self.late)))()


@dataclass(frozen=True)
class Order:
    """What the driver tells a rank: a group."""

    number: int
    first: int


class Driver(Protocol):
    """Whom a rank reports to.

    Attributes:
        generation: the one that counts.
        since: the boundary that counts.
        seats_of_boundary: who left it, by rank.
        network: between the ranks.
    """

    generation: int
    since: Committed
    seats_of_boundary: list[Seat]
    network: Network

    def settled(self, process: Process) -> None:
        """A rank has taken its place."""

    def done(self, process: Process, order: Order) -> None:
        """A rank has done its part of a group, and keeps its state and the copies given to it."""

    def failed(self, process: Process, error: MizzleError) -> None:
        """A rank has failed, and left its group."""

    def lost(self, process: Process) -> None:
        """A rank says that a state is lost."""


class Process:
    """One rank of one generation. After its generation it may go on as a zombie, until somebody kills it."""

    def __init__(self, world: Driver, rank: int, seats: Sequence[Seat], executor: Executor) -> None:
        self.world, self.rank, self.seats, self.executor = world, rank, seats, executor
        self.generation, self.since, self.then = world.generation, world.since, world.seats_of_boundary
        self.orders: list[Order] = []
        self.paused = 0
        self.arena = executor.claim(rank, self.since.generation, self)
        self.arena.rank = rank
        self.greenlet = greenlet(self._main)

    def kill(self) -> None:
        """It ends wherever it is; its memory stays as it is."""
        if not self.greenlet.dead:
            self.greenlet.throw(GreenletExit)
        self.ended()

    def ended(self) -> None:
        """Its connection to the bridge closes."""
        if self.arena.holder is self:
            self.arena.holder = None

    def _main(self) -> None:
        try:
            self._play()
        except Recoverable as error:
            self.world.failed(self, error)
        except StateLost:
            self.world.lost(self)
        finally:
            self.ended()

    def _play(self) -> None:
        network = self.world.network
        if self.generation < self.world.generation:
            raise Fenced("it was not admitted: a later generation is being settled")
        network.fence(RUN, self.generation)
        store = network.store(self.rank, run=RUN, generation=self.generation)
        try:
            self._work(Communicator(store, timeout_s=1e9))
        except BaseException as error:
            network.abort(store, str(error))
            raise

    def _set_label(self, label: bytes) -> None:
        give_turn()
        self.arena.label = self.context.label = label
        self.arena.labelled_in.append(self.generation)
        give_turn()

    def _work(self, ranks: Communicator) -> None:
        self.context = SimpleNamespace(
            rank=self.rank, size=len(self.seats), label=self.arena.label, arena=self.arena, store=self.arena,
            terms=SimpleNamespace(run=RUN, generation=self.generation), set_label=self._set_label,
            peers=[SimpleNamespace(host_id="host", executor_id=seat.executor) for seat in self.seats],
        )  # fmt: skip
        keeper = Keeper(self.context, self.since)  # type: ignore[arg-type]
        mine = self.seats[self.rank].shards
        values = dict.fromkeys(mine, 1)
        if not self.since.is_start:
            values = self._take_up(keeper, ranks)
            keeper.keep(self.since.iteration, self._state(values), ranks.handover)
            keeper.release()
        self.world.settled(self)
        while True:
            while not self.orders:
                give_turn()
            order = self.orders.pop(0)
            keeper.commit(order.first)
            for iteration in range(order.first, order.first + GROUP):
                values = self._iterate(ranks, iteration, values)
            keeper.keep(order.first + GROUP, self._state(values), ranks.handover)
            self.world.done(self, order)

    def _iterate(self, ranks: Communicator, iteration: int, values: Values) -> Values:
        message = json.dumps([self.generation, iteration, sorted(values.items())]).encode()
        everything: Values = {}
        for said in ranks.handover.share(message):
            generation, of, theirs = json.loads(said)
            if (generation, of) != (self.generation, iteration):
                raise ViolationError(f"generation {self.generation} has read what generation {generation} sent")
            everything.update(dict(theirs))
        return {shard: value for shard, value in advance(everything, iteration).items() if shard in values}

    def _state(self, values: Values) -> State:
        raw = packed(values)

        def write(into: memoryview) -> int:
            half = len(raw) // 2
            into[:half] = raw[:half]
            give_turn()
            into[half : len(raw)] = raw[half:]
            return len(raw)

        return State(len(raw), write)

    def _take_up(self, keeper: Keeper, ranks: Communicator) -> Values:
        now = [set(seat.shards) for seat in self.seats]
        needs = [[of for of, seat in enumerate(self.then) if wanted & set(seat.shards)] for wanted in now]

        def cut(of: int, raw: memoryview, taker: int) -> State | None:
            if set(self.then[of].shards) == now[taker]:
                return None
            return self._state({shard: value for shard, value in json.loads(bytes(raw)) if shard in now[taker]})

        found: Values = {}
        for state in keeper.collect(needs, cut, ranks.handover):
            found.update({shard: value for shard, value in json.loads(bytes(state)) if shard in now[self.rank]})
        truth = expected(self.since.iteration)
        if found != {shard: truth[shard] for shard in now[self.rank]}:
            raise ViolationError(f"rank {self.rank} took up {found} at iteration {self.since.iteration}")
        return found
