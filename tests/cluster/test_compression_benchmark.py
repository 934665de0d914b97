"""The compression benchmark: how wires are typed, what is compared, and a run on pictures of our own."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "compression.py"
TIMEOUT_S = 300.0


@pytest.fixture(scope="module")
def script() -> ModuleType:
    found = importlib.util.spec_from_file_location("compression", SCRIPT)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module  # dataclasses look their module up
    found.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("text", "wire"),
    [
        ("fp32", ("fp32", "fp32", False)),
        ("bf16", ("bf16", "fp32", False)),
        ("fp16/bf16", ("fp16", "bf16", False)),
        ("bf16+feedback", ("bf16", "fp32", True)),
        ("bf16/bf16+feedback", ("bf16", "bf16", True)),
    ],
)
def test_a_wire_is_read_as_it_is_typed(script: ModuleType, text: str, wire: tuple[str, str, bool]) -> None:
    found = script.Wire.parse(text)
    assert (found.gradients, found.weights, found.error_feedback) == wire


@pytest.mark.parametrize("text", ["", "fp8", "bf16/", "/bf16", "bf16+", "bf16+feedback/bf16"])
def test_any_other_wire_is_refused(script: ModuleType, text: str) -> None:
    with pytest.raises(SystemExit, match="is no wire"):
        script.Wire.parse(text)


def test_losses_are_averaged_over_a_hundred_iterations(script: ModuleType) -> None:
    assert script.smooth([1.0] * 100 + [3.0] * 50) == [1.0, 3.0]


def write_pictures(path: Path, count: int) -> None:
    """Pictures of one colour, which says the class."""
    rows = []
    for number in range(count):
        label = number % 10
        stream = io.BytesIO()
        Image.fromarray(np.full((32, 32, 3), 25 * label, dtype=np.uint8)).save(stream, format="JPEG")
        rows.append((stream.getvalue(), label))
    images, labels = zip(*rows, strict=True)
    pq.write_table(pa.table({"image": pa.array(images), "label": pa.array(labels, pa.int8())}), path)


def test_decoded_pictures_become_tensors_of_their_own_pixels(script: ModuleType, tmp_path: Path) -> None:
    write_pictures(tmp_path / "rows.parquet", 12)
    (decoded,) = script.decode(pq.read_table(tmp_path / "rows.parquet").to_batches())
    pictures, labels = script.collate(decoded)
    assert pictures.shape == (12, 3, 32, 32)
    assert labels.tolist() == [*range(10), 0, 1]
    for picture, label in zip(pictures, labels, strict=True):
        assert abs(picture * 64 + 120 - 25 * label).max() <= 2, "JPEG changes little where there is one colour"


@pytest.mark.slow
@pytest.mark.timeout(360)
def test_a_run_compares_every_wire_and_another_seed_with_the_first(script: ModuleType, tmp_path: Path) -> None:
    write_pictures(tmp_path / "cifar10-train.parquet", 80)
    write_pictures(tmp_path / "cifar10-test.parquet", 20)
    out, result = tmp_path / "out", tmp_path / "result.json"
    with out.open("wb") as stream:
        done = subprocess.run(
            [sys.executable, SCRIPT, "--data", tmp_path, "--wires", "fp32,bf16", "--epochs", "3", "--batch", "16",
             "--json", result],
            cwd=tmp_path, env=os.environ | {"TMPDIR": str(tmp_path)}, stdin=subprocess.DEVNULL, stdout=stream,
            stderr=stream, timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
    assert done.returncode == 0, out.read_text()
    first, rounded, other = json.loads(result.read_text())
    assert [(one["gradients"], one["seed"]) for one in (first, rounded, other)] == [
        ("fp32", 7), ("bf16", 7), ("fp32", 8),
    ]  # fmt: skip
    assert first["loss_difference_max"] == 0.0
    assert first["iterations"] == 15
    assert 0 < rounded["loss_difference_max"] < other["loss_difference_max"]
    assert 0 <= rounded["test_accuracy"] <= 1
    assert "| bf16 | fp32 | no | 7 " in out.read_text()


def test_only_what_differs_from_a_trainers_defaults_is_asked_for(script: ModuleType) -> None:
    assert script.Wire("fp32").options() == {"wire": "fp32"}
    assert script.Wire("bf16").options() == {"wire": "bf16"}


def test_options_that_this_version_lacks_are_named(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def trainer(*, wire: str) -> None:
        pass

    monkeypatch.setattr(script, "Trainer", trainer)
    with pytest.raises(SystemExit, match="there is no error_feedback, weights_wire"):
        script.Wire("bf16", "bf16", error_feedback=True).options()
