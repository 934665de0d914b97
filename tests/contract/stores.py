"""The stores that must keep the contract: one entry in `FACTORIES` each, and every test here runs on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial

from harness import RUN, eventually
from mizzle.blocks.arena import LocalArena
from mizzle.blocks.bridge import BridgeClient, Membership
from mizzle.blocks.deadline import Deadline
from mizzle.blocks.ids import BlockId
from mizzle.blocks.island import islands_of
from mizzle.blocks.memory import MemoryFabric
from mizzle.blocks.notes import prepare_control
from mizzle.blocks.region import Span
from mizzle.blocks.routed import RoutedStore
from mizzle.blocks.shared import SharedStore
from mizzle.blocks.store import BlockStore
from mizzle.blocks.transfer import TransferStore
from mizzle.spark.driver import DriverSide

TIMEOUT_S = 20.0
DATA = f"test_mizzle.{RUN}"
"""Prefix of the names of data blocks; bells and reasons have other names."""


@dataclass(frozen=True)
class Ranks:
    """Connected stores, one a rank, of generation 0 and run `harness.RUN`.

    Attributes:
        stores: by rank.
        reopen: new stores for the same ranks with a higher generation.
        corrupt: change a bit of a block that was put (given the span it was put from); None where it cannot be done.
        num_blocks: how many blocks are held in all; None where nobody knows.
    """

    stores: list[BlockStore]
    reopen: Callable[[int], list[BlockStore]]
    corrupt: Callable[[BlockStore, BlockId, Span], None] | None = None
    num_blocks: Callable[[], int] | None = None


Factory = Callable[[int], AbstractContextManager[Ranks]]


def flip_a_bit(_store: BlockStore, _block: BlockId, span: Span) -> None:
    """Change a block where it lies, as bad memory would."""
    span.view[-1] ^= 1


@contextmanager
def memory(size: int, *, in_place: bool, hosts: Callable[[int], int] | None = None) -> Iterator[Ranks]:
    """Ranks as threads; ``hosts`` says which of them see each other's memory."""
    fabric = MemoryFabric(size, in_place=in_place, islands=islands_of(list(map(hosts or int, range(size)))))
    opened: list[BlockStore] = []

    def reopen(generation: int) -> list[BlockStore]:
        stores: list[BlockStore] = [fabric.store(rank, run=RUN, generation=generation) for rank in range(size)]
        opened.extend(stores)
        return stores

    yield Ranks(reopen(0), reopen, flip_a_bit, fabric.num_blocks)
    for store in opened:
        store.close()
    fabric.end(RUN)
    assert fabric.num_blocks() == 0, "blocks are left after the run has ended"


@contextmanager
def shared(size: int) -> Iterator[Ranks]:
    """Ranks as threads over real shared memory, as ranks of one host have it."""
    arenas = [LocalArena() for _ in range(size)]

    def reopen(generation: int) -> list[BlockStore]:
        controls = [prepare_control(arena, size).path for arena in arenas]
        return [
            SharedStore(arena, run=RUN, generation=generation, rank=rank, controls=controls, timeout_s=TIMEOUT_S)
            for rank, arena in enumerate(arenas)
        ]

    stores = reopen(0)
    yield Ranks(stores, reopen)
    for store in stores:
        store.close()
    for arena in arenas:
        arena.close()


@dataclass(frozen=True)
class LocalBridge:
    """The bridge of an embedded Spark, which the test process may use as if it were a worker.

    Attributes:
        path: its socket.
        token: what it wants to see.
        driver: the driver's half.
    """

    path: str
    token: bytes
    driver: DriverSide

    def client(self) -> BridgeClient:
        """A new connection."""
        return BridgeClient(self.path, self.token, Deadline.after(TIMEOUT_S))

    def begin(self, run: str = RUN) -> None:
        """Admit ranks of the run."""
        self.driver._side.begin(run)

    def end(self, run: str = RUN) -> None:
        """The run is over."""
        self.driver._side.end(run)


@dataclass(frozen=True)
class Joined:
    """A rank that has joined through a connection of its own."""

    client: BridgeClient
    membership: Membership
    blocks: TransferStore
    shared: SharedStore | None


def join(
    bridge: LocalBridge, size: int, *, generation: int = 0, hosts: Callable[[int], int] | None = None
) -> list[Joined]:
    """Let ``size`` ranks join the run; ``hosts`` says which of them share memory.

    Arenas are claimed in the order of ranks, so that a rank finds the one it had.
    """
    within = Deadline.after(TIMEOUT_S)
    clients = [bridge.client() for _ in range(size)]
    arenas = [client.claim(RUN, rank, within)[2] for rank, client in enumerate(clients)]
    controls = [prepare_control(arena, size).path for arena in arenas]

    def enter(rank: int) -> Membership:
        return clients[rank].join(
            RUN, generation=generation, group=0, size=size, control=controls[rank], deadline=within, wanted=rank
        )

    with ThreadPoolExecutor(size) as pool:
        memberships = list(pool.map(enter, range(size)))

    def connected(rank: int) -> Joined:
        blocks = TransferStore(clients[rank], arenas[rank], memberships[rank], TIMEOUT_S)
        if hosts is None:
            return Joined(clients[rank], memberships[rank], blocks, None)
        near = [path if hosts(peer) == hosts(rank) else "" for peer, path in enumerate(controls)]
        one = SharedStore(arenas[rank], run=RUN, generation=generation, rank=rank, controls=near, timeout_s=TIMEOUT_S)
        return Joined(clients[rank], memberships[rank], blocks, one)

    return [connected(rank) for rank in range(size)]


def _routed(one: Joined, hosts: Callable[[int], int]) -> BlockStore:
    blocks, rank = one.blocks, one.blocks.rank
    assert one.shared is not None
    routes = {peer: one.shared if hosts(peer) == hosts(rank) else blocks for peer in range(blocks.size) if peer != rank}
    return RoutedStore(blocks, routes, islands_of(list(map(hosts, range(blocks.size)))))


@contextmanager
def bridged(bridge: LocalBridge, size: int, *, hosts: Callable[[int], int] | None = None) -> Iterator[Ranks]:
    """Ranks as threads, each with a connection of its own to a real bridge and BlockManager.

    Their executor is one and the same; nevertheless every byte passes through Spark's block transfer service.
    """
    opened: list[Joined] = []

    def reopen(generation: int) -> list[BlockStore]:
        joined = join(bridge, size, generation=generation, hosts=hosts)
        opened.extend(joined)
        return [one.blocks if hosts is None else _routed(one, hosts) for one in joined]

    observer = bridge.client()

    def corrupt(store: BlockStore, block: BlockId, span: Span) -> None:
        opened[store.rank].client.counters()  # its put was carried out before it is answered
        flip_a_bit(store, block, span)

    def num_blocks() -> int:
        eventually(lambda: observer.count_blocks(DATA) == 0, within_s=5)
        return observer.count_blocks(DATA)

    bridge.begin()
    try:
        yield Ranks(reopen(0), reopen, corrupt, num_blocks)
        for one in opened:
            one.blocks.close()
            one.client.close()
    finally:
        bridge.end()
        gone = eventually(lambda: observer.count_blocks("test_mizzle") == 0, within_s=10)
        left = observer.count_blocks("test_mizzle")
        observer.close()
    assert gone, f"{left} blocks are left after the run has ended"


FACTORIES: Mapping[str, Factory] = {
    "memory": partial(memory, in_place=False),
    "memory-in-place": partial(memory, in_place=True),
    "memory-islands": partial(memory, in_place=True, hosts=lambda rank: rank % 2),
    "memory-island": partial(memory, in_place=False, hosts=lambda _: 0),
    "shared": shared,
}
BRIDGED: Mapping[str, Callable[[LocalBridge], Factory]] = {
    "blocks": lambda bridge: partial(bridged, bridge),
    "routed": lambda bridge: partial(bridged, bridge, hosts=lambda rank: rank % 2),
}
"""Those that need Spark."""
