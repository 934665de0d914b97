"""Started by test_trainer_cluster: one fit on separate executor processes; losses and weights go to a file."""

from __future__ import annotations

import sys
from pathlib import Path

import safetensors.torch
import torch
from pyspark import cloudpickle

from cluster.trainings import fit
from mizzle.spark.session import session
from unit.training.runs import Mlp, Training, digits

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]


def sgd(groups: list[dict[str, object]]) -> torch.optim.Optimizer:
    """The optimizer of both sides."""
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def training() -> Training:
    """What is trained on both sides."""
    return Training(lambda: Mlp(dropout=0.2), digits(), sgd)


def main(out: Path) -> None:
    """Fit with two ranks on two executors, over shared memory or blocks as it comes, and over blocks alone."""
    quiet = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "ERROR",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.local.dir": str(out.parent / "local"),
    }
    spark = session("local-cluster[2,1,1024]", app_name="mizzle tests", conf=quiet)
    for transport in ("auto", "blocks"):
        result = fit(spark, training(), run={"ranks": None, "transport": transport, "group_size": 3})
        tensors = dict(result.model.state_dict())
        tensors["losses"] = torch.tensor(result.history.losses, dtype=torch.float64)
        tensors["ranks"] = torch.tensor(result.report["ranks"])
        safetensors.torch.save_file(tensors, out.with_suffix(f".{transport}"))
    spark.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
