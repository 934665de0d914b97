"""How a rank's part in a group ended, in a form that always arrives at the driver.

Only bytes and text: no class of the user's stands in the way of reading it.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Any

from pyspark import cloudpickle

from mizzle.errors import TaskFailed

_MAX_ERROR_BYTES, _MAX_TEXT, _MAX_TRACE = 64 * 1024, 4 * 1024, 32 * 1024


@dataclass(frozen=True, slots=True)
class Failure:
    """What a rank raised, as text: that arrives whatever the exception is made of.

    Attributes:
        text: type and message.
        trace: the traceback, which ends in ``text``.
        pickled: the exception itself, or None when it cannot be pickled and read again.
    """

    text: str
    trace: str
    pickled: bytes | None

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Describe an exception."""
        text = "".join(traceback.format_exception_only(error)).strip()
        trace = "".join(traceback.format_exception(error))
        pickled = _pickled_error(error)
        if pickled is not None and len(pickled) > _MAX_ERROR_BYTES:
            pickled = None  # it holds an array, say: the text has to do
        return cls(_shortened(text, _MAX_TEXT), _shortened(trace, _MAX_TRACE), pickled)

    def error(self) -> BaseException | None:
        """The exception again, where this process can read it."""
        if self.pickled is None:
            return None
        try:
            found = cloudpickle.loads(self.pickled)
        except Exception:  # noqa: BLE001 - code of the user's exception runs here; the text is kept anyhow
            return None
        return found if isinstance(found, BaseException) else None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a rank's part ended.

    Attributes:
        task: number of the Spark task.
        rank: the rank it was, -1 when it was not admitted.
        executor_id: where it was, "" when it was not connected.
        host: likewise.
        value: what was returned, pickled.
        failure: what was raised, or None.
        span_s: seconds from receiving the order to this outcome, where somebody measured it.
    """

    task: int
    rank: int
    executor_id: str = ""
    host: str = ""
    value: bytes = b""
    failure: Failure | None = None
    span_s: float = 0.0

    @property
    def where(self) -> str:
        """Executor and host, for messages."""
        return f"executor {self.executor_id} on {self.host}" if self.executor_id else "not connected"

    def result(self) -> Any:  # noqa: ANN401 - the user's value
        """What was returned."""
        return cloudpickle.loads(self.value)


@dataclass(frozen=True, slots=True)
class Memory:
    """Where a rank left something large for the driver to fetch: a region of its arena.

    Attributes:
        path: the region, on the rank's host.
        num_bytes: how much of it counts.
    """

    path: str
    num_bytes: int


def pickled_value(value: object) -> bytes:
    """Pickle what a rank returned.

    Raises:
        TaskFailed: it cannot be pickled; says why.
    """
    try:
        pickled: bytes = cloudpickle.dumps(value)  # type: ignore[no-untyped-call]
    except Exception as error:
        # Pickling calls code of any object inside, so anything may be raised.
        raise TaskFailed(
            f"what the rank returned ({type(value).__name__}) cannot be sent to the driver "
            f"({type(error).__name__}: {error}): return numbers, arrays or tensors"
        ) from error
    return pickled


def _shortened(text: str, length: int) -> str:
    """The text without its middle, where it is too long to be sent."""
    half = length // 2
    return text if len(text) <= length else f"{text[:half]} [{len(text) - 2 * half} letters] {text[-half:]}"


def _pickled_error(error: BaseException) -> bytes | None:
    """The exception in a form that this process, at least, can read again."""
    try:
        pickled: bytes = cloudpickle.dumps(error)  # type: ignore[no-untyped-call]
        cloudpickle.loads(pickled)
    except Exception:  # noqa: BLE001 - exceptions may hold locks, or want other arguments than they were made with
        return None
    return pickled
