"""An exchange that goes on while its rank still computes: a thread that takes buckets as they become final."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from mizzle.blocks.deadline import Deadline
from mizzle.errors import CollectiveTimeout


class Ahead:
    """What the rank's own thread tells the exchange's, and waits for from it.

    Args:
        timeout_s: how long the exchange waits for the rank's own next bucket: one that died says nothing more.

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

    def await_announced(self, bucket: int) -> None:
        """Wait until a bucket is final.

        Raises:
            CollectiveTimeout: the rank's own computation announced nothing for too long.
        """
        self._await(lambda: self._meta is not None or bucket in self._announced, f"bucket {bucket}")

    def await_meta(self) -> bytes:
        """Wait for what to tell all ranks. Raises as `await_announced`."""
        self._await(lambda: self._meta is not None, "its report")
        return self._meta or b""

    def _await(self, ready: Callable[[], bool], what: str) -> None:
        with self._changed:
            deadline = Deadline.after(self.timeout_s)
            while not ready():
                if deadline.passed:
                    raise CollectiveTimeout(
                        f"this rank itself did not come to {what} in {self.timeout_s:g} s: raise the timeout if it "
                        "computes that long"
                    )
                before = len(self._announced)
                self._changed.wait(deadline.remaining_s())
                if len(self._announced) > before:
                    deadline = Deadline.after(self.timeout_s)

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
