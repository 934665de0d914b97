"""What the store between hosts asks of its bridge."""

from __future__ import annotations

from typing import Any, cast

from harness import RUN
from mizzle.blocks.arena import LocalArena
from mizzle.blocks.bridge import Membership
from mizzle.blocks.frames import Request
from mizzle.blocks.ids import BlockId, DType, Kind
from mizzle.blocks.transfer import TransferStore


class Client:
    """Notes what it is asked to send."""

    def __init__(self) -> None:
        self.sent: list[Request] = []

    def send(self, request: Request, *_args: object, **_named: object) -> int:
        self.sent.append(request)
        return 0


def test_a_bridge_that_holds_nothing_is_not_asked_to_drop_anything() -> None:
    client, arena = Client(), LocalArena()
    membership = Membership(run=RUN, generation=0, rank=0, peers=(cast("Any", None),) * 2)
    store = TransferStore(cast("Any", client), cast("Any", arena), membership, 1.0)
    store.drop(0, 5)
    assert client.sent == []
    store.put(BlockId(RUN, 0, 0, 5, Kind.RESULT, 0, 0), None, meta=b"", dtype=DType.RAW, to=[1])
    store.drop(0, 5)
    assert client.sent == [Request.PUT], "what is not older stays"
    store.drop(0, 6)
    store.drop(0, 7)
    assert client.sent == [Request.PUT, Request.DROP]
    arena.close()
