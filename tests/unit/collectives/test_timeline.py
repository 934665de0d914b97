from __future__ import annotations

import threading
import time

import pytest

from mizzle.collectives.timeline import LANES, NO_TIMELINE, Timeline


def test_a_span_says_what_where_and_when() -> None:
    timeline = Timeline()
    before = time.time_ns()
    with timeline.span("forward", "compute", shard=3):
        pass
    after = time.time_ns()
    ((span,), dropped) = timeline.take()
    assert (span.name, span.lane, span.args, dropped) == ("forward", "compute", {"shard": 3}, 0)
    assert span.lane in LANES
    assert before - 10**7 <= span.begun_ns <= span.begun_ns + span.duration_ns <= after + 10**7  # clocks are adjusted


def test_a_span_that_fails_is_noted_and_lets_the_failure_through() -> None:
    timeline = Timeline()
    with pytest.raises(ValueError, match="boom"), timeline.span("backward", "compute"):
        raise ValueError("boom")
    assert [span.name for span in timeline.take()[0]] == ["backward"]


def test_what_began_elsewhere_is_noted_where_it_ends() -> None:
    timeline = Timeline()
    begun_ns = time.perf_counter_ns()
    timeline.note("bucket", "exchange", begun_ns, bucket=7)
    ((span,), _) = timeline.take()
    assert span.args == {"bucket": 7}
    assert span.duration_ns >= 0


def test_spans_within_each_other_end_from_the_inside_out() -> None:
    timeline = Timeline()
    with timeline.span("outer", "update"), timeline.span("inner", "update"):
        pass
    inner, outer = timeline.take()[0]
    assert (inner.name, outer.name) == ("inner", "outer")
    assert outer.begun_ns <= inner.begun_ns
    assert inner.begun_ns + inner.duration_ns <= outer.begun_ns + outer.duration_ns


def test_memory_is_bounded_and_what_came_beyond_is_counted_once() -> None:
    timeline = Timeline(max_spans=3)
    for number in range(5):
        with timeline.span(str(number), "compute"):
            pass
    spans, dropped = timeline.take()
    assert ([span.name for span in spans], dropped) == (["0", "1", "2"], 2)
    with timeline.span("later", "compute"):
        pass
    spans, dropped = timeline.take()
    assert ([span.name for span in spans], dropped) == (["later"], 0)
    assert timeline.take() == ([], 0)


def test_threads_of_a_rank_share_it() -> None:
    timeline = Timeline()

    def work(number: int) -> None:
        for _ in range(200):
            with timeline.span(str(number), "exchange"):
                pass

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(span.name for span in timeline.take()[0]) == sorted("0123" * 200)


def test_where_nobody_wants_to_know_nothing_is_noted() -> None:
    with NO_TIMELINE.span("forward", "compute", shard=1):
        pass
    NO_TIMELINE.note("bucket", "exchange", time.perf_counter_ns())
    assert NO_TIMELINE.take() == ([], 0)
    assert (NO_TIMELINE.is_on, Timeline().is_on) == (False, True)
