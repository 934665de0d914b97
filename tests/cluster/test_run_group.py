"""`mizzle.run_group` on a real Spark: ranks, collectives, and every way in which a function can fail."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import SparkSession

from harness import eventually
from mizzle.errors import CollectiveMismatch, ConfigError, ModelError, PeerLost, TaskFailed
from mizzle.spark.explain import root_cause
from mizzle.spark.groups import run_group
from mizzle.spark.ranks.outcome import Failure, Outcome
from mizzle.spark.ranks.worker import RankContext

# Functions are made inside the tests: executors cannot import the tests, and what is local travels by value.


def test_ranks_are_numbered_and_meet_in_collectives(spark_local: SparkSession) -> None:
    def body(context: RankContext) -> tuple[int, int, list[float], Any]:
        total = context.all_reduce(np.arange(3, dtype=np.float32) + context.rank)
        context.barrier()
        return context.rank, context.size, total.tolist(), context.broadcast(np.array([context.rank]), root=2).tolist()

    expected = [3.0, 6.0, 9.0]
    assert run_group(spark_local, body, ranks=3) == [(rank, 3, expected, [2]) for rank in range(3)]


def test_one_rank_alone_works_as_well(spark_local: SparkSession) -> None:
    assert run_group(spark_local, lambda c: float(c.all_reduce(np.ones(1, np.float32))[0]), ranks=1) == [1.0]


def test_an_error_names_rank_executor_and_line_and_the_session_goes_on(spark_local: SparkSession) -> None:
    def body(context: RankContext) -> None:
        context.all_reduce(np.ones(5, dtype=np.float32))
        if context.rank == 1:
            raise KeyError("no such thing")
        context.barrier()

    begun = time.monotonic()
    with pytest.raises(TaskFailed, match=r"^rank 1 \(executor driver on .*\) failed: KeyError: 'no such") as found:
        run_group(spark_local, body, ranks=3, timeout_s=100)
    assert time.monotonic() - begun < 50, "peers waited for their deadline"
    assert "in body" in str(found.value)
    assert isinstance(found.value.__cause__, KeyError)
    assert run_group(spark_local, lambda c: c.rank, ranks=2) == [0, 1]


def test_an_exception_that_cannot_be_pickled_or_read_keeps_its_message(spark_local: SparkSession) -> None:
    class Held(Exception):
        def __init__(self) -> None:
            super().__init__("it holds a lock")
            self.lock = threading.Lock()

    class Fussy(Exception):
        def __init__(self, first: int, second: int) -> None:
            super().__init__(f"wants two arguments: {first} {second}")

    def held(_context: RankContext) -> None:
        raise Held

    def fussy(_context: RankContext) -> None:
        raise Fussy(1, 2)

    def leaves(_context: RankContext) -> None:
        sys.exit("called exit")

    for body, message in ((held, "it holds a lock"), (fussy, "wants two arguments: 1 2"), (leaves, "called exit")):
        with pytest.raises(TaskFailed, match=rf"^rank \d .*{message}"):
            run_group(spark_local, body, ranks=2)


def test_a_result_that_cannot_be_pickled_is_refused(spark_local: SparkSession) -> None:
    with pytest.raises(TaskFailed, match=r"what the rank returned \(lock\) cannot be sent to the driver"):
        run_group(spark_local, lambda _: threading.Lock(), ranks=2)


def test_a_module_that_executors_cannot_import_is_named_with_the_remedy(
    spark_local: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").write_text("def body(context):\n    return context.rank\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import only_here  # type: ignore[import-not-found]

    with pytest.raises(TaskFailed, match=r"cannot import 'only_here': send it with SparkContext.addPyFile, or"):
        run_group(spark_local, only_here.body, ranks=2)


def test_different_collectives_are_refused_as_a_mismatch(spark_local: SparkSession) -> None:
    def body(context: RankContext) -> None:
        context.all_reduce(np.ones(4 + context.rank, dtype=np.float32))

    with pytest.raises(CollectiveMismatch, match=r"rank 0: .*shape=4.*rank 1: .*shape=5"):
        run_group(spark_local, body, ranks=2)


def test_what_cannot_start_is_refused(spark_local: SparkSession) -> None:
    lock = threading.Lock()
    with pytest.raises(ModelError, match="the function cannot be sent"):
        run_group(spark_local, lambda _: lock, ranks=2)
    with pytest.raises(ConfigError, match="99 ranks need 99 task slots"):
        run_group(spark_local, lambda c: c.rank, ranks=99)
    with pytest.raises(ConfigError, match="ranks is 0"):
        run_group(spark_local, lambda c: c.rank, ranks=0)


def outcome(rank: int, error: Exception) -> Outcome:
    return Outcome(rank, rank, failure=Failure.of(error))


def test_the_root_cause_is_the_rank_that_reported_nothing_or_failed_by_itself() -> None:
    lost = [outcome(0, PeerLost(1, "PeerLost: rank 2 is lost")), outcome(1, PeerLost(2, "the connection closed"))]
    assert root_cause(lost).rank == 1
    assert root_cause([*lost, outcome(3, ValueError("x"))]).rank == 3
    assert root_cause(lost[::-1]).rank == 1


def test_an_interrupt_cancels_exactly_this_group(spark_local: SparkSession, tmp_path: Path) -> None:
    def waits(context: RankContext) -> None:
        (tmp_path / f"waits {context.rank}").touch()
        threading.Event().wait(100)

    def survives(_context: RankContext) -> bool:
        (tmp_path / "survives").touch()
        pause = threading.Event()
        return any((tmp_path / "go").exists() or pause.wait(0.05) for _ in range(1000))

    def interrupt() -> None:
        marks = [tmp_path / name for name in ("waits 0", "waits 1", "survives")]
        assert eventually(lambda: all(mark.exists() for mark in marks), within_s=60)
        os.kill(os.getpid(), signal.SIGINT)

    # pyspark's own handler cancels all jobs of the application; what is tested is ours
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with ThreadPoolExecutor(2) as pool:
            other = pool.submit(run_group, spark_local, survives, ranks=1)
            watcher = pool.submit(interrupt)
            begun = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                run_group(spark_local, waits, ranks=2)
            assert time.monotonic() - begun < 90
            watcher.result(1)
            (tmp_path / "go").touch()
            assert other.result(60) == [True]
    finally:
        signal.signal(signal.SIGINT, previous)
    assert run_group(spark_local, lambda c: c.rank, ranks=4) == [0, 1, 2, 3]
