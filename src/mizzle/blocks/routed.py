"""One store made of several: each peer is reached the best way there is, the caller does not see which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack

from mizzle.blocks.ids import BlockId, DType
from mizzle.blocks.island import island_with
from mizzle.blocks.region import Region, Span
from mizzle.blocks.store import BlockStore, Pending


class RoutedStore:
    """A rank's `BlockStore` that passes every call on to the store that reaches the peer in question.

    Args:
        first: the store that also serves regions, fences and closes the membership; the only one that may hold things
            back (`together`).
        routes: for every other rank the store that reaches it; all over one arena and membership.
        islands: which ranks see each other's memory: those of the own island are reached through it.
    """

    def __init__(
        self, first: BlockStore, routes: Mapping[int, BlockStore], islands: tuple[tuple[int, ...], ...]
    ) -> None:
        """See the class."""
        self.run, self.generation = first.run, first.generation
        self.rank, self.size = first.rank, first.size
        self._first = first
        self._routes = routes
        self._stores = list({id(store): store for store in (first, *routes.values())}.values())
        # A board is for all ranks at once: it serves when one store reaches them all.
        self.islands = islands
        own = island_with(first.rank, islands)
        self.island = next((store.island for store in self._stores if store.island.ranks == own), first.island)
        self.board = next(iter(routes.values())).board if len({id(store) for store in routes.values()}) == 1 else None

    def region(self, name: str, num_bytes: int) -> Region:
        """As `BlockStore.region`."""
        return self._first.region(name, num_bytes)

    def put(self, block: BlockId, payload: Span | None, *, meta: bytes, dtype: DType, to: Sequence[int]) -> None:
        """As `BlockStore.put`: once in every store that reaches one of its readers."""
        for store in self._stores:
            readers = [rank for rank in to if self._routes[rank] is store]
            if readers:
                store.put(block, payload, meta=meta, dtype=dtype, to=readers)

    def fetch(self, block: BlockId, into: Span | None) -> Pending:
        """As `BlockStore.fetch`."""
        return self._routes[block.source].fetch(block, into)

    def together(self) -> AbstractContextManager[None]:
        """As `BlockStore.together`."""
        return self._first.together()

    def drop(self, iteration: int, op: int) -> None:
        """As `BlockStore.drop`."""
        for store in self._stores:
            store.drop(iteration, op)

    def fence(self, generation: int) -> None:
        """As `BlockStore.fence`."""
        for store in self._stores:
            store.fence(generation)

    def abort(self, why: str) -> None:
        """As `BlockStore.abort`: every store is told, whichever fails."""
        with ExitStack() as telling:
            # Backwards: the first store may have lost its bridge, those after it only write to memory.
            for store in self._stores:
                telling.callback(store.abort, why)

    def close(self) -> None:
        """As `BlockStore.close`."""
        self.board = None
        for store in self._stores:
            store.close()
