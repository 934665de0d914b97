"""Started by test_security: a fit on separate executors under a profile; then it stays, for strangers to try the doors.

Everything is told by files in a directory; the end of standard input ends it.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from pyspark import StorageLevel, cloudpickle

from cluster.trainings import fit
from mizzle.cli.profiles import Profile, secure_conf
from mizzle.config import RunConfig
from mizzle.spark.driver import DriverSide
from mizzle.spark.groups import run_group
from mizzle.spark.session import session
from unit.training.runs import Mlp, Training, digits

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]

RUN = RunConfig(security="required")


def sgd(groups: list[dict[str, object]]) -> torch.optim.Optimizer:
    """The optimizer of both sides."""
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def training() -> Training:
    """What is trained here and, by the test, on embedded Spark."""
    return Training(lambda: Mlp(dropout=0.2), digits(), sgd)


def exact(context: Any) -> bool:
    """Whether two ranks over blocks still find the exact sum."""
    ones = np.ones(300_000, np.float32)
    return bool((context.all_reduce(ones) == ones * 2).all())


def main(profile: Profile, home: Path) -> None:
    """Fit, tell where everything is, wait, and look whether all still works."""
    logging.basicConfig(level=logging.INFO)
    conf = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "ERROR",
        "spark.local.dir": str(home / "local"),
    } | secure_conf(profile, home)
    spark = session("local-cluster[2,1,1024]", app_name="mizzle tests", conf=conf)
    layout = {"transport": "blocks", "group_size": 3, "security": RUN.security, "ranks": 2}
    result = fit(spark, training(), run=layout)
    tensors = dict(result.model.state_dict())
    tensors["losses"] = torch.tensor(result.history.losses, dtype=torch.float64)
    safetensors.torch.save_file(tensors, home / "model")
    cached = spark.sparkContext.parallelize([b"for members only"] * 64, 2).persist(StorageLevel.MEMORY_ONLY)
    cached.count()
    told = {
        "bridges": DriverSide(spark.sparkContext).told(),
        "app": spark.sparkContext.applicationId,
        "block": f"rdd_{cached.id()}",
        "secrets": [value for name, value in conf.items() if name.endswith(("secret", "Password"))],
    }
    (home / "half").write_text(json.dumps(told))
    (home / "half").rename(home / "told")
    sys.stdin.read()
    healthy = all(run_group(spark, exact, ranks=2, transport="blocks", security=RUN.security))
    (home / "healthy").write_text(str(healthy))
    spark.stop()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))  # type: ignore[arg-type]
