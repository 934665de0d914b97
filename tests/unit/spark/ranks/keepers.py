"""`Keeper` without Spark: ranks are threads over a memory fabric, each with an arena that outlives its generation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from mizzle.blocks.memory import MemoryRegion
from mizzle.blocks.store import BlockStore
from mizzle.collectives.communicator import Communicator
from mizzle.spark.ranks.boundary import Keeper, State
from mizzle.spark.ranks.orders import Committed


class KeptArena:
    """A rank's arena and its label."""

    def __init__(self) -> None:
        self.label = b""
        self.regions: dict[str, MemoryRegion] = {}

    def region(self, name: str, num_bytes: int) -> MemoryRegion:
        """As `mizzle.blocks.arena.Arena.region`."""
        if name not in self.regions or len(self.regions[name].buffer) < num_bytes:
            self.regions[name] = MemoryRegion(name, num_bytes)
        return self.regions[name]

    def renew(self, name: str, num_bytes: int) -> MemoryRegion:
        """As `mizzle.blocks.arena.Arena.renew`."""
        self.regions[name] = MemoryRegion(name, num_bytes)
        return self.regions[name]

    def find(self, name: str) -> MemoryRegion | None:
        """The region of that name, if there is one."""
        return self.regions.get(name)

    def set_label(self, label: bytes) -> None:
        """Note it."""
        self.label = label


def state_of(raw: bytes) -> State:
    """A state of these bytes."""

    def write(into: memoryview) -> int:
        into[: len(raw)] = raw
        return len(raw)

    return State(len(raw), write)


def keeper(store: BlockStore, arena: KeptArena, since: Committed) -> tuple[Keeper, Any]:
    """A rank's keeper, and its way to the others; every rank is in an executor of its own."""
    context: Any = SimpleNamespace(
        rank=store.rank, size=store.size, label=arena.label, arena=arena, store=arena, set_label=arena.set_label,
        terms=SimpleNamespace(run=store.run, generation=store.generation),
        peers=[SimpleNamespace(host_id="host", executor_id=str(rank)) for rank in range(store.size)],
    )  # fmt: skip
    return Keeper(context, since), Communicator(store, timeout_s=10.0).handover
