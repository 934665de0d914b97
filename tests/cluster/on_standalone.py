"""Started by test_elastic: iterations under dynamic allocation and speculation, on workers that look like two hosts."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
from pyspark import cloudpickle

from mizzle.config import RunConfig
from mizzle.spark.driver import num_executors
from mizzle.spark.iterate import iterate
from mizzle.spark.session import session
from mizzle.spark.step import StepContext

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]


def slow_on_rank_one(ctx: StepContext, _batch: object) -> None:
    """A group's tasks end together, but for what a rank does behind the last collective: Spark starts that again."""
    ctx.state = ctx.state + ctx.all_reduce(np.full(3, ctx.rank + ctx.iteration, np.float64))
    if ctx.rank == 1 and ctx.iteration == 19:
        threading.Event().wait(4)


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
        "spark.executor.cores": "2",
        "spark.executor.memory": "512m",
        "spark.dynamicAllocation.enabled": "true",
        "spark.dynamicAllocation.shuffleTracking.enabled": "true",
        "spark.dynamicAllocation.initialExecutors": "0",
        "spark.speculation": "true",
        "spark.speculation.interval": "50ms",
        "spark.speculation.multiplier": "1.0",
        "spark.speculation.quantile": "0.3",
        "spark.speculation.minTaskRuntime": "50ms",
    }
    spark = session(master, app_name="mizzle tests", conf=conf)
    context = spark.sparkContext
    before = num_executors(context)
    how: dict[str, Any] = {"iterations": 30, "group_size": 10, "state": np.zeros(3), "finish": where, "spark": spark}
    two = iterate(None, slow_on_rank_one, ranks=2, run=RunConfig(timeout_s=60), **how)
    four = iterate(None, slow_on_rank_one, ranks=4, run=RunConfig(timeout_s=60), **how)
    speculated = _speculated(context)
    out.write_text(
        json.dumps({"before": before, "two": two.values, "four": four.values, "speculated": speculated}),
        encoding="utf-8",
    )  # fmt: skip
    spark.stop()


def _speculated(context: Any) -> int:
    """How many attempts Spark started a second time, and then did not need."""
    arguments = (
        None,
        False,
        False,
        context._gateway.new_array(context._jvm.double, 0),
        context._jvm.java.util.ArrayList(),
    )
    stages = context._jsc.sc().statusStore().stageList(*arguments)
    # An attempt that is not wanted any more is killed.
    return sum(int(stages.apply(at).numKilledTasks()) for at in range(stages.size()))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
