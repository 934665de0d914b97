"""What a resident process and the tasks that hire it say to the bridge: the life of a rank between its groups.

A resident keeps model, memory and membership beside its executor and is told, order by order, what to do. Orders and
outcomes are the callers' own bytes; they are small, bulk data lies in the arena.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from mizzle.blocks.bridge import BridgeClient
from mizzle.blocks.deadline import Deadline
from mizzle.blocks.frames import Reader, Request, Writer
from mizzle.errors import BridgeLost

MAX_RESULT_BYTES = 1024
"""Of what a group's rank returns when all went well: every result passes the driver."""
_SEND_S = 30.0
_LOOK_S = 1.0
_LOOK_AGAIN_S = 3600.0


class OrderKind(IntEnum):
    """What a resident may be told to do."""

    START = 1
    """Become a rank of the run and generation; the payload says how."""
    GROUP = 2
    """Do a group; the payload says which."""
    RELEASE = 3
    """Forget the run: it, or the generation, is over."""
    EXIT = 4
    """End: nobody has wanted this process for a while."""


@dataclass(frozen=True, slots=True)
class Order:
    """One thing to do.

    Attributes:
        serial: its number, to be repeated when it is done.
        kind: what it is.
        run: the run it belongs to; "" for `OrderKind.EXIT`.
        generation: the run's membership epoch.
        payload: what the driver said, for `OrderKind.START` and `OrderKind.GROUP`.
    """

    serial: int
    kind: OrderKind
    run: str
    generation: int
    payload: bytes


def serve(client: BridgeClient, *, pid: int, serial: int, rank: int, outcome: bytes) -> Order:
    """Report an order as done and wait for the next one, however long that takes.

    Args:
        client: a connection that nothing else uses; the same one for the whole life of the process.
        pid: of the process that serves. It is killed if it does not come back to its bridge in time.
        serial: of the order that is done; 0 the first time.
        rank: the rank it has in its run, or -1: it has none, and so is free for any run.
        outcome: for whoever gave the order; at most `MAX_RESULT_BYTES` after a group that went well.

    Raises:
        BridgeLost: the executor is ending; end as well.
        BridgeError: that order was never given.
    """
    body = Writer().number("IQi", pid, serial, rank).blob(outcome)
    tag = client.send(Request.SERVE, body, Deadline.after(_SEND_S))
    while not client.has_answer(tag, Deadline.after(_LOOK_AGAIN_S)):
        pass  # nobody has wanted anything for an hour
    return read_order(client.answer(tag, Deadline.after(_SEND_S)))


def read_order(answer: Reader) -> Order:
    """The order in the answer to a `Request.SERVE`."""
    return Order(
        answer.number("Q"), OrderKind(answer.number("B")), answer.text(), answer.number("I"), answer.blob()
    )  # fmt: skip


def hire(
    client: BridgeClient, run: str, generation: int, payload: bytes, *, wait: bool, deadline: Deadline,
    is_coming: Callable[[], bool] = lambda: True,
) -> bytes | None:  # fmt: skip
    """Have an idle resident of this executor start as a rank; returns what it said when it was ready.

    Args:
        client: a connection that lives until this returns: when it closes earlier, the resident is released.
        run: the run's id.
        generation: membership epoch; residents of the run's earlier ones are released, and taken again if need be.
        payload: for the resident, with its `OrderKind.START`.
        wait: whether to wait for a resident that is still to come.
        deadline: for all of it.
        is_coming: whether the process that was started for it lives; asked once a second.

    Returns:
        The resident's outcome; None only without ``wait``: nobody is idle, so start a process and hire with ``wait``.

    Raises:
        CollectiveTimeout: no process came, or it did not get ready in time.
        BridgeLost: the resident died, or never came; its own output tells why. Hire again.
        Fenced: a later generation of the run has started.
    """
    body = Writer().text(run).number("IBI", generation, wait, deadline.remaining_ms()).blob(payload)
    tag = client.send(Request.HIRE, body, deadline)
    while not deadline.passed and not client.has_answer(tag, Deadline.after(min(_LOOK_S, deadline.remaining_s()))):
        # Looked at first: what it was hired for it may have done, or failed at, just before its end.
        if not is_coming() and not client.has_answer(tag, Deadline.after(_LOOK_S)):
            raise BridgeLost("the process that was to be a rank ended before it came to its bridge: see its output")
    answer = client.answer(tag, deadline)
    return answer.blob() if answer.number("B") else None
