"""What the ranks noted of their time: kept in a bounded buffer, and shown as a file that trace viewers open.

The file is JSON in the Trace Event Format ("Complete" events, ph = "X", and names as metadata, ph = "M"):
https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU. chrome://tracing and
https://ui.perfetto.dev show it: a process for each rank, a thread for each lane.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from mizzle.collectives.timeline import LANES, Span
from mizzle.errors import ConfigError

TRACE_BYTES = 4 * 1024 * 1024
"""Of one rank, some 40 000 spans: what comes later is only counted. A viewer becomes slow before a run fills more."""

_HEAD = struct.Struct("<QQ")


@dataclass(frozen=True, slots=True)
class RankTrace:
    """What one rank noted.

    Attributes:
        spans: in the order in which they ended, the first of the run before all others.
        dropped: how many more there were.
    """

    spans: Sequence[Span]
    dropped: int


class TraceBuffer:
    """The spans of one rank in memory that outlives its process: filled group by group, read when the run is over.

    Args:
        buffer: `TRACE_BYTES` or another length; zeros at first, later whatever an earlier process left there.
    """

    def __init__(self, buffer: memoryview) -> None:
        """See the class."""
        self._buffer = buffer

    @property
    def used_bytes(self) -> int:
        """How much of the buffer `read_trace` needs."""
        return _HEAD.size + int(_HEAD.unpack_from(self._buffer)[0])

    def append(self, spans: Iterable[Span], dropped: int = 0) -> None:
        """Keep spans, and the number of those that were forgotten before.

        Args:
            spans: later ones than all that are here.
            dropped: since the last time.
        """
        length, before = _HEAD.unpack_from(self._buffer)
        dropped += before
        for span in spans:
            line = json.dumps(astuple(span), separators=(",", ":"), default=str).encode() + b"\n"
            at = _HEAD.size + length
            # Once one did not fit, none is kept: a trace has an end, and no holes.
            if dropped or at + len(line) > len(self._buffer):
                dropped += 1
                continue
            self._buffer[at : at + len(line)] = line
            length += len(line)
        _HEAD.pack_into(self._buffer, 0, length, dropped)


def read_trace(raw: bytes | memoryview) -> RankTrace:
    """What a `TraceBuffer` holds, from its used bytes."""
    length, dropped = _HEAD.unpack_from(raw)
    lines = bytes(raw[_HEAD.size : _HEAD.size + length]).splitlines()
    return RankTrace([Span(*json.loads(line)) for line in lines], dropped)


def chrome_trace(traces: Mapping[int, RankTrace]) -> dict[str, Any]:
    """The content of a trace file.

    Args:
        traces: by rank. Time 0 is the beginning of the first span of all.
    """
    zero_ns = min((span.begun_ns for trace in traces.values() for span in trace.spans), default=0)
    events: list[dict[str, Any]] = []
    for rank, trace in sorted(traces.items()):
        events.append(_named("process_name", rank, 0, name=f"rank {rank}"))
        events.append(_named("process_sort_index", rank, 0, sort_index=rank))
        for thread, (lane, spans) in enumerate(_threads(trace.spans)):
            events.append(_named("thread_name", rank, thread, name=lane))
            events.append(_named("thread_sort_index", rank, thread, sort_index=thread))
            events += [
                {
                    "name": span.name, "cat": span.lane, "ph": "X", "pid": rank, "tid": thread,
                    "ts": (span.begun_ns - zero_ns) / 1e3, "dur": span.duration_ns / 1e3, "args": span.args,
                }
                for span in spans
            ]  # fmt: skip
    dropped = {f"rank {rank}": trace.dropped for rank, trace in sorted(traces.items()) if trace.dropped}
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"spans left out": dropped}}


def check_trace_file(path: Path) -> None:
    """Refuse a file that could not be written, before the run rather than after it.

    Raises:
        ConfigError: names the file.
    """
    if path.is_dir() or not path.parent.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"the trace {path} cannot be written: name a file in a directory of yours that exists")


def write_trace(path: Path, traces: Mapping[int, RankTrace]) -> None:
    """Write the file; a reader never sees half of it."""
    half = path.with_name(f".{path.name}.{os.getpid()}")
    half.write_text(json.dumps(chrome_trace(traces)), encoding="utf-8")
    half.replace(path)


def _threads(spans: Iterable[Span]) -> list[tuple[str, list[Span]]]:
    """The spans lane by lane; viewers want those of one thread beside or within each other, so some lanes take more."""
    lanes: dict[str, list[list[Span]]] = {lane: [] for lane in LANES}
    open_ends: dict[int, list[int]] = {}
    for span in sorted(spans, key=lambda span: (span.begun_ns, -span.duration_ns)):
        threads = lanes.setdefault(span.lane, [])
        fitting = next((thread for thread in threads if _fits(open_ends[id(thread)], span)), None)
        if fitting is None:
            fitting = []
            threads.append(fitting)
            open_ends[id(fitting)] = []
        fitting.append(span)
        open_ends[id(fitting)].append(span.begun_ns + span.duration_ns)
    return [
        (lane if number == 0 else f"{lane} {number + 1}", thread)
        for lane, threads in lanes.items()
        for number, thread in enumerate(threads)
    ]


def _fits(ends: list[int], span: Span) -> bool:
    """Whether a span lies behind, or within, those of a thread that are open when it begins; closes the others."""
    while ends and ends[-1] <= span.begun_ns:
        ends.pop()
    return not ends or span.begun_ns + span.duration_ns <= ends[-1]


def _named(kind: str, rank: int, thread: int, **args: object) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": rank, "tid": thread, "args": args}
