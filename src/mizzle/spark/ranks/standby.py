"""A second process behind a resident, that takes its place at once when it is killed.

It is forked when everything is imported and nothing has begun: so it shares the memory of its imports, and to take over
costs it a connection, not the seconds that torch takes to load. It sleeps until the resident ends: if that said
farewell, the standby ends too.
"""

from __future__ import annotations

import gc
import os
import time
from contextlib import suppress
from functools import partial

import torch._dynamo  # noqa: F401 - any torch optimizer loads it, for a second

import mizzle.spark.ranks.train_task  # noqa: F401 - what most runs have their ranks do

_FAREWELL = b"."
_LEAST_LIFE_S = 1.0
"""Who was killed sooner is not followed: what kills at once would kill for ever."""


class Farewell:
    """How a resident tells its standby that it leaves in peace."""

    def __init__(self, pipe: int) -> None:
        """Over the writing end of the standby's pipe."""
        self._pipe = pipe

    def say(self) -> None:
        """The standby ends."""
        with suppress(BrokenPipeError):  # it was killed itself
            os.write(self._pipe, _FAREWELL)


def stand_by() -> Farewell:
    """Fork a standby. Returns in the process that is to serve: now, or, in the standby, when that has died.

    To be called before there is a thread, a connection or a random number.
    """
    gc.collect()
    gc.freeze()  # what is shared stays so: a collection would write to it
    while True:
        reader, writer = os.pipe()
        if os.fork():
            os.close(reader)
            os.register_at_fork(
                after_in_child=partial(_close, writer)
            )  # a child of user code must not seem the resident
            return Farewell(writer)
        os.close(writer)
        begun = time.monotonic()
        if os.read(reader, 1) or time.monotonic() - begun < _LEAST_LIFE_S:
            os._exit(0)
        os.close(reader)


def _close(pipe: int) -> None:
    with suppress(OSError):
        os.close(pipe)
