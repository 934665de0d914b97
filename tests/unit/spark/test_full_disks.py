"""A job that failed for want of room on a disk says so, and whose disk it was."""

from __future__ import annotations

import pytest
from pyspark.errors import PySparkException

from mizzle.errors import DiskFull
from mizzle.spark.data import raise_if_full

LOST = "Task 1 in stage 5.0 failed 4 times, most recent failure: Lost task 1.3 in stage 5.0 (TID 7) "


@pytest.mark.parametrize(
    ("said", "where"),
    [
        (
            f"{LOST}(10.0.0.2 executor 3): java.io.IOException: No space left on device\n\tat java.base/java.io",
            "spark.local.dir of executor 3 on 10.0.0.2: ",
        ),
        (
            f"{LOST}(h executor 3): java.io.FileNotFoundException: /data/7/shuffle_1 (No space left on device)",
            "/data/7/shuffle_1: ",
        ),
        (f"{LOST}(h executor 3): OSError: [Errno 28] No space left on device: '/data/x'", "/data/x: "),
        ("No space left on device", "spark.local.dir of an executor: "),
        (f"{LOST}(h executor 3): mizzle.errors.DiskFull: shard 3 needs 5 bytes in /data", "shard 3 needs 5 bytes in"),
    ],
)
def test_a_full_disk_is_named(said: str, where: str) -> None:
    with pytest.raises(DiskFull) as found:
        raise_if_full(PySparkException(said))
    assert where in str(found.value)


def test_any_other_failure_is_left_as_it_is() -> None:
    raise_if_full(PySparkException(f"{LOST}(h executor 3): java.lang.OutOfMemoryError: Java heap space"))
