"""Several stores as one."""

from __future__ import annotations

import pytest

from harness import memory_stores
from mizzle.blocks.memory import MemoryStore
from mizzle.blocks.routed import RoutedStore
from mizzle.errors import BridgeLost


class Telling(MemoryStore):
    """Notes when it is told of an abort, and may fail at it."""

    told: list[str]
    fails = False

    def abort(self, why: str) -> None:
        self.told.append(f"{type(self).__name__}: {why}")
        if self.fails:
            raise BridgeLost("the bridge is gone")


class Blocks(Telling):
    fails = True


class Shared(Telling):
    pass


class BrokenShared(Shared):
    fails = True


@pytest.mark.parametrize("near", [Shared, BrokenShared])
def test_an_abort_reaches_every_store_the_shared_one_first(near: type[Telling]) -> None:
    told: list[str] = []
    first, second = memory_stores(2)
    for store, kind in ((first, Blocks), (second, near)):
        store.__class__ = kind
        store.told = told  # type: ignore[attr-defined]
    with pytest.raises(BridgeLost):
        RoutedStore(first, {1: second}, ((0,), (1,))).abort("coffee")
    assert told == [f"{near.__name__}: coffee", "Blocks: coffee"]
