"""Separate executor processes give the same bits as embedded Spark. A SparkContext is one a process: hence a child."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import safetensors.torch
import torch
from pyspark.sql import SparkSession

from cluster import on_cluster
from cluster.trainings import fit

TESTS = Path(__file__).parents[1]


def test_two_executors_train_to_the_same_bits_as_embedded_spark(spark_local: SparkSession, tmp_path: Path) -> None:
    local = fit(spark_local, on_cluster.training())
    out = tmp_path / "result"
    child = subprocess.run(
        [sys.executable, str(TESTS / "cluster" / "on_cluster.py"), str(out)],
        env={**os.environ, "PYTHONPATH": str(TESTS), "PYSPARK_PYTHON": sys.executable},
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr[-4000:]
    for transport in ("auto", "blocks"):
        found = safetensors.torch.load_file(out.with_suffix(f".{transport}"))
        assert found.pop("losses").tolist() == local.history.losses
        assert found.pop("ranks") == 2, "one rank an executor"
        for name, value in local.model.state_dict().items():
            assert torch.equal(found.pop(name), value), name
        assert not found
