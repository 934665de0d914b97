"""Residents that begin to load torch before any rank wants one: while rows are dealt.

Loads no torch: a Python worker that does takes seconds to begin, and has a million objects to walk behind every task.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pyspark import SparkContext

from mizzle.spark.placement import drain, here, placed
from mizzle.spark.ranks.hiring import start_early


@dataclass(frozen=True, slots=True)
class _StartEarly:
    """A task that starts a resident, if it is where it should be."""

    executors: frozenset[str]

    def __call__(self, numbers: Iterable[int]) -> Iterator[int]:
        drain(numbers)
        if here() in self.executors:
            start_early()
        return iter(())


def start_residents_early(context: SparkContext, locations: Sequence[tuple[str, str]]) -> None:
    """Residents begin to load torch where there was no rank so far; `mizzle.spark.ranks.hiring` claims them later.

    The job is not waited for, and the dealing that comes behind it is not held up: while the only slot of an executor
    that has just begun is taken, the others read the rows. Should it fail, residents are started later, as ever.

    Args:
        context: the driver's Spark context.
        locations: Spark's names of hosts and executors.
    """
    work = _StartEarly(frozenset(executor for _, executor in locations))
    tasks: Any = placed(context, locations).mapPartitions(work)._jrdd  # noqa: SLF001 - PySpark has no asynchronous job
    tasks.countAsync()
