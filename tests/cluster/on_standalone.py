"""Started by test_elastic: iterations under dynamic allocation and speculation, on workers that look like two hosts."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from pyspark import SparkContext, cloudpickle

import harness
from cluster.speculation import SPECULATION, superfluous_attempts
from harness import eventually
from mizzle.config import RunConfig
from mizzle.spark.driver import num_executors
from mizzle.spark.iterate import iterate
from mizzle.spark.ranks.step import StepContext, StepFunction
from mizzle.spark.session import session

for module in (harness, sys.modules[__name__]):
    cloudpickle.register_pickle_by_value(module)  # type: ignore[no-untyped-call]

GROUP = 10
"""Iterations; the second group, which begins with this one, is the slow one."""


def slow_until(speculated: Path) -> StepFunction:
    """A step whose rank 1 ends its second group only when Spark has started its task, or another rank's, again."""

    def step(ctx: StepContext, _batch: object) -> None:
        ctx.state = ctx.state + ctx.all_reduce(np.full(3, ctx.rank + ctx.iteration, np.float64))
        if ctx.rank == 1 and ctx.iteration == 2 * GROUP - 1:
            eventually(speculated.exists, within_s=40)

    return step


def where(ctx: StepContext, _batch: object) -> Any:
    return ctx.host, ctx.executor_id, os.getpid(), ctx.state.tolist()


def main(master: str, out: Path) -> None:
    """Run, and write down what was seen."""
    conf = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "ERROR",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.local.dir": str(out.parent / "local"),
        "spark.executor.cores": "4",
        "spark.executor.memory": "512m",
        "spark.dynamicAllocation.enabled": "true",
        "spark.dynamicAllocation.shuffleTracking.enabled": "true",
        "spark.dynamicAllocation.initialExecutors": "0",
    }
    spark = session(master, app_name="mizzle tests", conf=conf | SPECULATION)
    context = spark.sparkContext
    before = num_executors(context)
    how: dict[str, Any] = {
        "iterations": 30, "group_size": GROUP, "state": np.zeros(3), "finish": where, "spark": spark,
        "run": RunConfig(timeout_s=60),
    }  # fmt: skip
    seen: dict[str, Any] = {"before": before, "speculated": []}
    for ranks in (2, 4):
        speculated = out.parent / f"{ranks}-speculated"
        with _told_when_speculated(context, speculated):
            seen[str(ranks)] = iterate(None, slow_until(speculated), ranks=ranks, **how).values
        seen["speculated"].append(speculated.exists())
    out.write_text(json.dumps(seen), encoding="utf-8")
    spark.stop()


@contextmanager
def _told_when_speculated(context: SparkContext, speculated: Path) -> Iterator[None]:
    """While the body runs: touch the file once Spark has started a second attempt in the slow group."""
    over, before = threading.Event(), superfluous_attempts(context).get(GROUP, 0)

    def watch() -> None:
        while not over.wait(0.1):
            if superfluous_attempts(context).get(GROUP, 0) > before:
                speculated.touch()
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join(10)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
