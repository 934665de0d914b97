"""`open_ranks(size)` opens connected stores of every kind there is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from contract.stores import FACTORIES, Ranks


@pytest.fixture(params=sorted(FACTORIES))
def open_ranks(request: pytest.FixtureRequest) -> Iterator[Callable[[int], Ranks]]:
    """A function from the number of ranks to their stores, closed after the test."""
    factory = FACTORIES[request.param]
    with ExitStack() as stack:
        yield lambda size: stack.enter_context(factory(size))
