"""The training benchmark as a user starts it: a process with its own Spark, output in files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TIMEOUT_S = 600.0


@pytest.mark.slow
@pytest.mark.timeout(660)
def test_the_command_measures_every_system_on_the_same_executors_and_leaves_nothing(tmp_path: Path) -> None:
    out, result = tmp_path / "out", tmp_path / "result.json"
    with out.open("wb") as stream:
        done = subprocess.run(
            [sys.executable, "-c", "from mizzle.cli import main; main()", "bench", "training", "--models", "mlp-7m",
             "--workers", "2", "--repeats", "2", "--warmup", "1", "--rounds", "1", "--json", result],
            cwd=tmp_path, env=os.environ | {"TMPDIR": str(tmp_path)}, stdin=subprocess.DEVNULL, stdout=stream,
            stderr=stream, timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
    assert done.returncode == 0, out.read_text()
    records = json.loads(result.read_text())
    assert [(record["system"], record["model"], record["workers"]) for record in records] == [
        ("single", "mlp-7m", 1), ("torch_distributor", "mlp-7m", 2), ("mizzle", "mlp-7m", 2),
    ]  # fmt: skip
    for record in records:
        assert list(record) == [
            "system", "model", "workers", "iteration_s", "samples_per_s", "compute_s", "exchange_s", "hidden_s",
        ]  # fmt: skip
        assert record["samples_per_s"] == 4 * record["workers"] / record["iteration_s"]
        assert record["compute_s"] > 0
        assert record["hidden_s"] >= 0
    alone, _, mizzle = records
    assert alone["exchange_s"] == 0.0
    assert 0 < mizzle["exchange_s"] < mizzle["iteration_s"]
    assert "x DDP" in out.read_text()
    assert "Reading a rank's 4 rows of mlp-7m" in out.read_text()
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("hsperf")) == [
        "out", "result.json",
    ]  # fmt: skip
