"""A resident does not outlive its executor's bridge: it ends when that does, or when that is silent for too long.

A frozen JVM keeps its connections open, and its Python processes run on (measured): they would work for a run that has
gone on without them.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from contextlib import suppress

from mizzle.blocks.bridge import BridgeClient
from mizzle.blocks.card import lease_s
from mizzle.blocks.deadline import Deadline
from mizzle.errors import MizzleError

_PERIOD_S = 2.0


def outlive(bridge: BridgeClient) -> None:
    """Return when the bridge has ended, or has answered nothing for as long as its lease, 3 s later at most.

    Args:
        bridge: a connection that others may use meanwhile; questions go by another one.
    """
    with suppress(MizzleError):
        limit_s = lease_s(os.environ.get("SPARK_LOCAL_DIRS"))
        with _connected(bridge, Deadline.after(limit_s)) as other:
            while not _hung_up(bridge, _PERIOD_S):
                other.counters(timeout_s=limit_s)


def _connected(bridge: BridgeClient, deadline: Deadline) -> BridgeClient:
    """Another connection: a bridge that has no thread for it closes it, and may have one a little later."""
    while True:
        try:
            return BridgeClient.connect(deadline)
        except MizzleError:
            if deadline.passed or _hung_up(bridge, min(_PERIOD_S, deadline.remaining_s())):
                raise


def _hung_up(bridge: BridgeClient, seconds: float) -> bool:
    poll = select.poll()
    poll.register(bridge.fileno(), select.POLLRDHUP)
    return bool(poll.poll(seconds * 1000))


def end_with(bridge: BridgeClient, farewell: Callable[[], None]) -> None:
    """End this process when the bridge does, or hangs, whatever the other threads are at.

    Args:
        bridge: the connection that this process serves.
        farewell: what is still to be said.
    """
    outlive(bridge)
    farewell()
    os._exit(1)
