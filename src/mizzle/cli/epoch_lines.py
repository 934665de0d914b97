"""Progress where nobody looks at a terminal: one plain line an epoch, made from what the Trainer logs per group."""

from __future__ import annotations

import logging
import re
import sys
from types import TracebackType
from typing import Self, TextIO

_SOURCE = "mizzle.spark.course"
_FIELD = re.compile(r"(\w+)=(\S+)")


class EpochLines(logging.Handler):
    """Prints an epoch when the next one begins, and the last one at the end. A context manager.

    Args:
        enabled: whether to print at all.
        stream: where to; standard output.
    """

    def __init__(self, *, enabled: bool, stream: TextIO | None = None) -> None:
        """See the class."""
        super().__init__(logging.INFO)
        self._enabled = enabled
        self._stream = stream or sys.stdout
        self._logger = logging.getLogger(_SOURCE)
        self._level = self._logger.level
        self._last: dict[str, str] = {}
        self._wall_s = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Take in a group."""
        seen = dict(_FIELD.findall(record.getMessage()))
        if not {"epoch", "iterations", "loss", "wall_s"} <= seen.keys():
            return
        if self._last and seen["epoch"] != self._last["epoch"]:
            self._print()
        self._last = seen
        self._wall_s += float(seen["wall_s"])

    def _print(self) -> None:
        iterations = int(self._last["iterations"].rpartition("-")[2]) + 1
        print(
            f"epoch {int(self._last['epoch']) + 1:3d}   iteration {iterations:5d}   "
            f"loss {float(self._last['loss']):.4f}   {self._wall_s:6.1f} s",
            file=self._stream,
            flush=True,
        )

    def __enter__(self) -> Self:
        """Listen."""
        if self._enabled:
            self._logger.setLevel(logging.INFO)
            self._logger.addHandler(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop listening, as it was before."""
        self._logger.removeHandler(self)
        self._logger.setLevel(self._level)
        if self._last:
            self._print()
