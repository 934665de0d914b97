"""Started by test_small_disks in a mount namespace of its own: a fit where /dev/shm or Spark's directory is small."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from pyspark import cloudpickle
from pyspark.sql import DataFrame, SparkSession
from torch import nn

from cluster.trainings import frame, trainer
from mizzle.spark.session import session
from unit.training.runs import Mlp, Training, digits

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]

CRASH = "hs_err_"
"""What a JVM's last words are called."""
NO_ROOM = 1 << 20
"""Less than what is written at once."""


def sgd(groups: list[dict[str, object]]) -> Any:
    """An optimizer."""
    from torch.optim import SGD

    return SGD(groups, lr=0.1)


class Wide(Mlp):
    """A model whose gradients alone are 8 MB, so that they do not fit into a small /dev/shm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 60_000), nn.Linear(60_000, 3)


def many_rows(spark: SparkSession) -> DataFrame:
    """More than a small disk holds: 25 MB that cannot be compressed, made where they are read."""
    numbers = ", ".join(f"cast(rand({number}) as float)" for number in range(16))
    return spark.range(400_000).selectExpr(f"array({numbers}) as x", "cast(id % 3 as int) as y")


class Disk:
    """Watches the room there."""

    def __init__(self, where: Path) -> None:
        self._where, self._over = where, threading.Event()
        self._full_at: float | None = None
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while self._full_at is None and not self._over.wait(0.005):
            if shutil.disk_usage(self._where).free < NO_ROOM:
                self._full_at = time.monotonic()

    def full_s(self) -> float | None:
        """For how long it has been full, or was full for the first time; None: it never was."""
        self._over.set()
        self._thread.join()
        return None if self._full_at is None else time.monotonic() - self._full_at


def main(home: Path, local: Path, what: str) -> None:
    """One fit, and what came of it."""
    quiet = {
        "spark.ui.enabled": "false", "spark.ui.showConsoleProgress": "false", "spark.log.level": "WARN",
        "spark.driver.bindAddress": "127.0.0.1", "spark.driver.host": "127.0.0.1", "spark.local.dir": str(local),
        "spark.executorEnv.PYTHONPATH": os.environ["PYTHONPATH"],
        # Each JVM has another working directory, and would leave it there if it crashed.
        **{f"spark.{jvm}.extraJavaOptions": f"-XX:ErrorFile={home}/{CRASH}%p.log" for jvm in ("driver", "executor")},
    }  # fmt: skip
    found: dict[str, Any] = {}
    with session("local-cluster[2,1,1024]", app_name="mizzle tests", conf=quiet) as spark:
        training = Training(Wide if what == "memory" else Mlp, digits(), sgd)
        rows = frame(spark, training.data) if what == "memory" else many_rows(spark)
        disk = Disk(local)
        try:
            result = trainer(training, max_iterations=8).fit(rows, features="x", label="y")
            found["losses"] = np.asarray(result.history.losses).tolist()
            found["faults"] = [fault.cause for fault in result.history.faults]
        except Exception as error:  # noqa: BLE001 - the test judges it
            found["error"] = f"{type(error).__name__}: {error}"
        found["full_s"] = disk.full_s()
        found["executors"] = spark.sparkContext._jsc.sc().getExecutorMemoryStatus().size() - 1
    (home / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
