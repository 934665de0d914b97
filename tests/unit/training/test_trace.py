from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mizzle.collectives.timeline import LANES, Span
from mizzle.errors import ConfigError
from mizzle.training.trace import RankTrace, TraceBuffer, check_trace_file, chrome_trace, read_trace, write_trace


def span(name: str, lane: str, begun_ns: int, duration_ns: int) -> Span:
    return Span(name, lane, begun_ns, duration_ns, {"iteration": 1})


def read(buffer: bytearray) -> RankTrace:
    return read_trace(bytes(buffer[: TraceBuffer(memoryview(buffer)).used_bytes]))


def test_spans_come_back_as_they_were_also_to_a_process_that_goes_on_with_the_buffer() -> None:
    buffer = bytearray(4096)
    spans = [span("forward", "compute", 10**18 + at, at) for at in range(6)]
    TraceBuffer(memoryview(buffer)).append(spans[:2])
    TraceBuffer(memoryview(buffer)).append([])
    TraceBuffer(memoryview(buffer)).append(spans[2:])
    assert read(buffer) == RankTrace(spans, 0)


def test_a_full_buffer_keeps_the_beginning_and_counts_the_rest() -> None:
    buffer = bytearray(1000)
    kept = TraceBuffer(memoryview(buffer))
    spans = [span("x" * 100, "compute", at, 1) for at in range(20)]
    kept.append(spans[:9], dropped=0)
    kept.append([span("s", "compute", 9, 1), *spans[10:]], dropped=3)
    found = read(buffer)
    assert 0 < len(found.spans) < 9
    assert found.spans == spans[: len(found.spans)], "a short one behind the first that did not fit would be a hole"
    assert len(found.spans) + found.dropped == 20 + 3
    assert kept.used_bytes <= 1000


def test_a_trace_has_a_process_a_rank_a_thread_a_lane_and_begins_at_zero() -> None:
    traces = {
        1: RankTrace([span("forward", "compute", 5_000, 2_000)], 0),
        0: RankTrace([span("reduce", "exposed", 9_000, 500), span("forward", "compute", 4_000, 3_000)], 7),
    }
    content = chrome_trace(traces)
    shown = [event for event in content["traceEvents"] if event["ph"] == "X"]
    names = {
        (event["pid"], event["tid"]): event["args"]["name"]
        for event in content["traceEvents"] if event["name"] == "thread_name"
    }  # fmt: skip
    assert [(one["pid"], names[one["pid"], one["tid"]], one["name"], one["ts"], one["dur"]) for one in shown] == [
        (0, "compute", "forward", 0.0, 3.0), (0, "exposed", "reduce", 5.0, 0.5), (1, "compute", "forward", 1.0, 2.0),
    ]  # fmt: skip
    assert all(event["args"] == {"iteration": 1} and event["cat"] in LANES for event in shown)
    assert {event["ph"] for event in content["traceEvents"]} == {"X", "M"}
    assert content["otherData"] == {"spans left out": {"rank 0": 7}}


def test_a_trace_without_spans_is_a_valid_file(tmp_path: Path) -> None:
    write_trace(tmp_path / "empty.json", {})
    assert json.loads((tmp_path / "empty.json").read_text())["traceEvents"] == []


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), max_size=25))
def test_spans_of_one_thread_lie_beside_or_within_each_other(times: list[tuple[int, int]]) -> None:
    spans = [Span(str(number), "exchange", *pair, {}) for number, pair in enumerate(times)]
    events = [event for event in chrome_trace({0: RankTrace(spans, 0)})["traceEvents"] if event["ph"] == "X"]
    assert sorted(event["name"] for event in events) == sorted(span.name for span in spans)
    for one in events:
        for other in events:
            if one is other or one["tid"] != other["tid"]:
                continue
            (begin, end), (start, stop) = (
                (round(1e3 * e["ts"]), round(1e3 * (e["ts"] + e["dur"]))) for e in (one, other)
            )
            beside = end <= start or stop <= begin
            within = (start <= begin and end <= stop) or (begin <= start and stop <= end)
            assert beside or within


def test_a_file_that_cannot_be_written_is_refused_before_the_run(tmp_path: Path) -> None:
    check_trace_file(tmp_path / "trace.json")
    with pytest.raises(ConfigError, match=r"the trace .*nowhere/trace.json cannot be written"):
        check_trace_file(tmp_path / "nowhere" / "trace.json")
    with pytest.raises(ConfigError, match="cannot be written"):
        check_trace_file(tmp_path)


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text("old")
    write_trace(path, {0: RankTrace([span("forward", "compute", 4_000, 3_000)], 0)})
    assert json.loads(path.read_text())["traceEvents"][-1]["name"] == "forward"
    assert list(tmp_path.iterdir()) == [path]
