"""What one rank keeps of boundaries, in memory of its own; its peers are played."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

from mizzle.blocks.store import Span
from mizzle.collectives.handover import Handover
from mizzle.spark.boundary import Keeper, State
from mizzle.spark.orders import Committed
from mizzle.spark.worker import RankContext

BYTES = 5000


class Memory:
    """An arena that outlives its ranks, and its label."""

    def __init__(self) -> None:
        self.sizes: dict[str, Any] = {}
        self.label = b""

    def region(self, name: str, num_bytes: int) -> Any:
        old = self.sizes.get(name)
        return old if old is not None and len(old.buffer) >= num_bytes else self.renew(name, num_bytes)

    def renew(self, name: str, num_bytes: int) -> Any:
        made = self.sizes[name] = SimpleNamespace(buffer=memoryview(bytearray(num_bytes)))
        return made

    def find(self, name: str) -> Any:
        return self.sizes.get(name)

    def held(self) -> set[str]:
        return {name for name, region in self.sizes.items() if len(region.buffer) > 1}

    def named(self) -> set[str]:
        return set(json.loads(self.label))


class Peers:
    """Each gives what it has to the rank that asks."""

    def hand_over(
        self, _given: Mapping[int, Sequence[Span]], room: Callable[[int, Sequence[int]], list[Span]]
    ) -> dict[int, list[Span]]:
        return {source: room(source, [BYTES]) for source in self.sources}

    def __init__(self, *sources: int) -> None:
        self.sources = sources


def keeper(memory: Memory, generation: int, size: int, since: Committed) -> Keeper:
    """Of rank 0, which is the buddy of 1, and of 2 where there is one."""

    def set_label(label: bytes) -> None:
        memory.label = label

    context = SimpleNamespace(
        arena=memory, store=memory, label=memory.label, set_label=set_label, rank=0, size=size,
        peers=[SimpleNamespace(host_id="h", executor_id=str(rank)) for rank in range(size)],
        terms=SimpleNamespace(generation=generation),
    )  # fmt: skip
    return Keeper(cast("RankContext", context), since)


def state() -> State:
    return State(BYTES, lambda _view: BYTES)


def keep(one: Keeper, iteration: int, *sources: int) -> None:
    one.keep(iteration, state(), cast("Handover", Peers(*sources)))


def test_copies_for_former_sources_are_freed_once_the_next_generation_has_its_own() -> None:
    memory = Memory()
    first = keeper(memory, 0, 3, Committed())
    keep(first, 4, 1, 2)
    first.commit(4)
    keep(first, 8, 1, 2)
    both = {"state0", "state1", "copy0.0", "copy0.1", "copy1.0", "copy1.1"}
    assert memory.held() == memory.named() == both
    second = keeper(memory, 1, 2, Committed(8, 0, 3))
    keep(second, 8, 1)
    assert {"state1", "copy0.1", "copy1.1"} <= memory.held(), "the boundary still is that of the first generation"
    second.commit(8)
    assert memory.held() == memory.named() == {"state0", "state1", "copy0.0", "copy0.1"}
    keep(second, 12, 1)
    second.commit(12)
    assert memory.held() == {"state0", "state1", "copy0.0", "copy0.1"}
