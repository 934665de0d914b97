"""Started by test_security: an application that other machines can reach, among what others left behind.

Nobody has configured logging. What is refused, and after how many seconds, goes to a file.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyspark.sql import SparkSession

import mizzle
from mizzle.errors import ConfigError
from mizzle.spark.driver import DriverSide

REQUIRED = mizzle.RunConfig(security="required", ranks=1)


def nothing(context: Any, batch: Any) -> None:
    """One iteration."""


def refusal(call: Callable[[], object]) -> tuple[str, float]:
    """What is said, and after how many seconds."""
    begun = time.monotonic()
    try:
        call()
    except ConfigError as error:
        return str(error), time.monotonic() - begun
    return "", time.monotonic() - begun


def jobs_of(spark: SparkSession) -> list[int]:
    """Those of no job group: mizzle's, and the caller's."""
    return list(spark.sparkContext.statusTracker().getJobIdsForGroup(None))


def main(home: Path) -> None:
    """Two functions that warn once, and four that are refused."""
    conf = {
        "spark.ui.enabled": "false", "spark.ui.showConsoleProgress": "false", "spark.log.level": "ERROR",
        "spark.driver.bindAddress": "0.0.0.0",  # noqa: S104 - in a network of its own
        "spark.driver.host": "127.0.0.1", "spark.local.dir": str(home / "local"),
        "spark.driver.extraJavaOptions": f"-Djava.io.tmpdir={home / 'tmp'}",
    }  # fmt: skip
    spark = mizzle.session("local[2]", conf=conf)
    sums = [mizzle.run_group(spark, lambda ctx: float(ctx.all_reduce(np.ones(3)).sum()), ranks=2) for _ in range(2)]
    rows = spark.createDataFrame([([1.0, 2.0], 1)] * 4, "x array<float>, y int")
    arrays = spark.sparkContext.parallelize([np.ones(3)] * 2, 2)
    trainer = mizzle.Trainer(
        torch.nn.Linear(2, 3), torch.nn.functional.cross_entropy, lambda p: torch.optim.SGD(p, lr=0.1),
        global_batch_size=2, run=REQUIRED,
    )  # fmt: skip
    jobs, asked = jobs_of(spark), DriverSide(spark.sparkContext).messages()
    refused = {
        "Trainer": refusal(lambda: trainer.fit(rows, features="x", label="y")),
        "iterate": refusal(lambda: mizzle.iterate(rows, nothing, iterations=1, run=REQUIRED)),
        "all_reduce": refusal(lambda: mizzle.all_reduce(arrays, security="required")),
        "run_group": refusal(lambda: mizzle.run_group(spark, lambda _: 1, ranks=1, security="required")),
    }
    started = len(jobs_of(spark)) - len(jobs) + DriverSide(spark.sparkContext).messages() - asked
    found = {"sums": sums, "refused": refused, "started": started, "jobs": len(jobs)}
    (home / "found.json").write_text(json.dumps(found))
    spark.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
