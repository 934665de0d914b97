"""The examples run as they stand, and are short."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    ("name", "arguments", "shown"),
    [
        ("01_all_reduce.py", [], "sum 28.0, mean 3.5, float32, 1,000,000 elements"),
        ("02_train_digits.py", ["local[2]", "2"], "test accuracy 0."),
        ("03_run_group.py", [], "largest eigenvalue 9"),
        ("04_kmeans.py", [], "inertia"),
        ("05_logistic_regression.py", [], "coefficients equal scikit-learn's"),
    ],
)
def test_an_example_runs_and_prints_its_result(name: str, arguments: list[str], shown: str) -> None:
    example = EXAMPLES / name
    assert len(example.read_text().splitlines()) < 80
    done = subprocess.run(
        [sys.executable, str(example), *arguments],
        env={**os.environ, "SPARK_LOCAL_IP": "127.0.0.1"},
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert shown in done.stdout


def test_every_example_is_tried() -> None:
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == [
        "01_all_reduce.py",
        "02_train_digits.py",
        "03_run_group.py",
        "04_kmeans.py",
        "05_logistic_regression.py",
    ]
