"""An exchange that goes on while its rank still computes: a thread that takes buckets as they become final."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from mizzle.blocks.deadline import Deadline
from mizzle.errors import CollectiveTimeout

_COMPUTES_S = 24 * 3600.0
"""No limit in practice: what ends a computation that fails is `Ahead.abandon`."""


class Ahead:
    """What the rank's own thread tells the exchange's, and waits for from it.

    Args:
        timeout_s: how long the exchange waits for peers, from the rank's own bucket on.

    Attributes:
        timeout_s: as given.
    """

    def __init__(self, timeout_s: float) -> None:
        """See the class."""
        self.timeout_s = timeout_s
        self._changed = threading.Condition()
        self._announced: set[int] = set()
        self._meta: bytes | None = None
        self._published_at = 0.0
        self._hidden_s = 0.0
        self._abandoned = False
        self._future: Future[list[bytes]] = Future()

    def start(self, work: Callable[[Ahead], list[bytes]]) -> None:
        """Begin ``work(self)``, which returns all ranks' metas, in a thread of its own."""
        threading.Thread(target=self._run, args=(work,), name="mizzle-exchange", daemon=True).start()

    def _run(self, work: Callable[[Ahead], list[bytes]]) -> None:
        try:
            self._future.set_result(work(self))
        except BaseException as error:  # noqa: BLE001 - raised by `result`, in the rank's own thread
            self._future.set_exception(error)

    def announce(self, bucket: int) -> None:
        """A bucket is final."""
        with self._changed:
            self._announced.add(bucket)
            self._changed.notify()

    def publish(self, meta: bytes) -> None:
        """All buckets are final, and this is what to tell all ranks."""
        with self._changed:
            self._meta = meta
            self._published_at = time.perf_counter()
            self._changed.notify()

    def abandon(self) -> None:
        """The computation has failed: whoever waits for it is told."""
        with self._changed:
            self._abandoned = True
            self._changed.notify()

    def await_announced(self, bucket: int) -> None:
        """Wait until a bucket is final: as long as the rank computes.

        Raises:
            CollectiveTimeout: the computation was abandoned, or takes more than a day.
        """
        self._await(lambda: self._meta is not None or bucket in self._announced, f"bucket {bucket}")

    def await_meta(self) -> bytes:
        """Wait for what to tell all ranks. Raises as `await_announced`."""
        self._await(lambda: self._meta is not None, "its report")
        return self._meta or b""

    def _await(self, ready: Callable[[], bool], what: str) -> None:
        with self._changed:
            deadline = Deadline.after(_COMPUTES_S)
            while not ready():
                if self._abandoned or deadline.passed:
                    raise CollectiveTimeout(f"this rank's own computation ended before it came to {what}")
                self._changed.wait(deadline.remaining_s())

    def note(self, begun_s: float) -> None:
        """Work that began at this ``time.perf_counter()`` ends now: what of it was before `publish` was hidden."""
        now = time.perf_counter()
        with self._changed:
            until = now if self._meta is None else min(now, self._published_at)
            self._hidden_s += max(0.0, until - begun_s)

    def result(self) -> tuple[list[bytes], float]:
        """Wait for the end: all ranks' metas, and the hidden seconds.

        Every wait of the work has a deadline, so it ends. Raises what the work raised.
        """
        metas = self._future.result()
        return metas, self._hidden_s
