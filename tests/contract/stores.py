"""The stores that must keep the contract: one entry in `FACTORIES` each, and every test here runs on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial

from harness import RUN
from mizzle.blocks.ids import BlockId
from mizzle.blocks.memory import MemoryFabric
from mizzle.blocks.store import BlockStore, Span


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


@contextmanager
def memory(size: int, *, in_place: bool) -> Iterator[Ranks]:
    """Ranks as threads."""
    fabric = MemoryFabric(size, in_place=in_place)
    opened: list[BlockStore] = []

    def reopen(generation: int) -> list[BlockStore]:
        stores: list[BlockStore] = [fabric.store(rank, run=RUN, generation=generation) for rank in range(size)]
        opened.extend(stores)
        return stores

    def corrupt(_store: BlockStore, _block: BlockId, span: Span) -> None:
        span.view[-1] ^= 1

    yield Ranks(reopen(0), reopen, corrupt, fabric.num_blocks)
    for store in opened:
        store.close()
    assert fabric.num_blocks() == 0, "blocks are left after all stores were closed"


FACTORIES: Mapping[str, Factory] = {
    "memory": partial(memory, in_place=False),
    "memory-in-place": partial(memory, in_place=True),
}
