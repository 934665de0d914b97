"""`open_ranks(size)` opens connected stores of every kind there is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from contract.stores import BRIDGED, FACTORIES, Ranks


@pytest.fixture(params=[*sorted(FACTORIES), *sorted(BRIDGED)])
def open_ranks(request: pytest.FixtureRequest) -> Iterator[Callable[[int], Ranks]]:
    """A function from the number of ranks to their stores, closed after the test."""
    if request.param in FACTORIES:
        factory = FACTORIES[request.param]
    else:
        factory = BRIDGED[request.param](request.getfixturevalue("local_bridge"))
    with ExitStack() as stack:
        yield lambda size: stack.enter_context(factory(size))
