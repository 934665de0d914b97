"""A memory store that keeps to the letter what the BlockManager's does not forgive."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from harness import DEADLINE_S, RUN
from mizzle.blocks.deadline import Deadline
from mizzle.blocks.ids import BlockId, DType
from mizzle.blocks.memory import MemoryFabric, MemoryStore
from mizzle.blocks.region import Span
from mizzle.blocks.store import Fetched, Pending
from mizzle.errors import CollectiveTimeout


@dataclass
class Ledger:
    """What was put for, and fetched by, whom from whom, in order."""

    puts: defaultdict[tuple[int, int], list[BlockId]] = field(default_factory=lambda: defaultdict(list))
    fetches: defaultdict[tuple[int, int], list[BlockId]] = field(default_factory=lambda: defaultdict(list))

    def check(self) -> None:
        """Every reader must have asked every source for its blocks in the order in which they were put."""
        assert self.fetches == self.puts


class PromptPending:
    """A fetch that lands as soon as the block is there, not only when it is waited for."""

    def __init__(self, pending: Pending) -> None:
        self._future: Future[Fetched] = Future()
        threading.Thread(target=self._land, args=(pending,), daemon=True).start()

    def _land(self, pending: Pending) -> None:
        try:
            self._future.set_result(pending.wait(Deadline.after(DEADLINE_S)))
        except Exception as error:  # noqa: BLE001 - raised by `wait`
            self._future.set_exception(error)

    def wait(self, deadline: Deadline) -> Fetched:
        try:
            return self._future.result(deadline.remaining_s())
        except TimeoutError as error:
            raise CollectiveTimeout("the block did not come before the deadline") from error


class StrictStore(MemoryStore):
    """Notes the order of puts and fetches."""

    ledger: Ledger

    def put(self, block: BlockId, payload: Span | None, *, meta: bytes, dtype: DType, to: Sequence[int]) -> None:
        super().put(block, payload, meta=meta, dtype=dtype, to=to)
        for reader in to:
            self.ledger.puts[self.rank, reader].append(block)

    def fetch(self, block: BlockId, into: Span | None) -> Pending:  # type: ignore[override]
        self.ledger.fetches[block.source, self.rank].append(block)
        return PromptPending(super().fetch(block, into))


def strict_stores(size: int, islands: tuple[tuple[int, ...], ...]) -> tuple[list[StrictStore], Ledger]:
    """One a rank; blocks are copied into the reader's memory."""
    fabric, ledger = MemoryFabric(size, in_place=True, islands=islands), Ledger()
    stores = [StrictStore(fabric, rank, run=RUN, generation=0) for rank in range(size)]
    for store in stores:
        store.ledger = ledger
    return stores, ledger
