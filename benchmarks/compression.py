"""What a 16-bit wire does to a real training: a small CNN on CIFAR-10, the same seed over every kind of wire.

    python benchmarks/compression.py --data DIRECTORY --wires fp32,bf16,fp16 --json compression.json

DIRECTORY holds cifar10-train.parquet and cifar10-test.parquet with the columns image (32x32 JPEG bytes) and label (A.
Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009). Pictures are decoded on the executors before
training. Ranks are executors of their own and reach each other through the BlockManager, so everything is rounded that
travels. One more training over the fp32 wire starts from another seed: what differs less than that one is noise.

A wire is GRADIENTS, GRADIENTS/WEIGHTS, or either with +feedback for error feedback: fp32, bf16, fp16/bf16+feedback.

The JSON is a list of {gradients, weights, error_feedback, seed, iterations, losses, loss_difference_mean,
loss_difference_max, test_accuracy, accuracy_difference, iteration_s, exchange_s}: ``losses`` are means over 100
iterations, differences are to the first training in the list.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch
from pyspark.sql import DataFrame, SparkSession
from torch import nn

from mizzle.cli.quiet import quiet_session
from mizzle.config import RunConfig
from mizzle.spark.trainer import Trainer, TrainingResult

KINDS = ("fp32", "bf16", "fp16")
SHAPE = (3, 32, 32)
CLASSES = 10
LEARNING_RATE = 0.1
MEAN_OF = 100
"""Iterations whose losses are averaged: single ones are as noisy as their mini-batches."""


@dataclasses.dataclass(frozen=True)
class Wire:
    """What travels how.

    Attributes:
        gradients: element type of gradients.
        weights: of new weights; their owner keeps fp32 ones.
        error_feedback: whether what rounding took from a gradient is added to the next one.
    """

    gradients: str
    weights: str = "fp32"
    error_feedback: bool = False

    @classmethod
    def parse(cls, text: str) -> Wire:
        """Read a wire as it is typed."""
        kinds = "|".join(KINDS)
        found = re.fullmatch(rf"({kinds})(?:/({kinds}))?(\+feedback)?", text)
        if found is None:
            raise SystemExit(f"{text!r} is no wire: write fp32, bf16, fp16, or as in fp16/bf16+feedback")
        return cls(found[1], found[2] or "fp32", found[3] is not None)

    def options(self) -> dict[str, Any]:
        """Arguments of a Trainer; what is at its default is not named."""
        options: dict[str, Any] = {"wire": self.gradients}
        options |= {"weights_wire": self.weights} if self.weights != "fp32" else {}
        options |= {"error_feedback": True} if self.error_feedback else {}
        known = inspect.signature(Trainer).parameters
        if not options.keys() <= known.keys():
            raise SystemExit(f"there is no {', '.join(sorted(options.keys() - known.keys()))}: try other --wires")
        return options


class SmallCnn(nn.Module):
    """Three convolutions, two linear layers; 620,362 parameters.

    No batch norm: its statistics would be rounded as well.
    """

    def __init__(self) -> None:
        """See the class."""
        super().__init__()
        layers: list[nn.Module] = []
        for channels, wider in ((3, 32), (32, 64), (64, 128)):
            layers += [nn.Conv2d(channels, wider, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        self.layers = nn.Sequential(
            *layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(128 * 4 * 4, 256), nn.ReLU(), nn.Linear(256, CLASSES)
        )

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Logits (n, 10) of pictures (n, 3, 32, 32) fp32."""
        return cast("torch.Tensor", self.layers(pictures))


def decode(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Runs on an executor: rows with JPEG bytes in, with 3072 bytes out, planes of red, green and blue."""
    from PIL import Image  # noqa: PLC0415 - only the executors need it

    for batch in batches:
        planes = [
            np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")).transpose(2, 0, 1).tobytes()
            for jpeg in batch.column("image").to_pylist()
        ]
        yield pa.RecordBatch.from_arrays([pa.array(planes, pa.binary()), batch.column("label")], ["pixels", "label"])


def collate(rows: pa.RecordBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (n, 3, 32, 32) in about [-2, 2] and classes (n,)."""
    raw = np.frombuffer(b"".join(rows.column("pixels").to_pylist()), dtype=np.uint8)
    pictures = torch.from_numpy(raw.astype(np.float32)).reshape(-1, *SHAPE)
    labels = torch.from_numpy(np.array(rows.column("label").to_numpy(zero_copy_only=False), dtype=np.int64))
    return pictures.sub_(120.0).div_(64.0), labels


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Share of pictures that are told right."""
    return (logits.argmax(dim=1) == labels).float().mean()


def pictures_of(spark: SparkSession, path: Path) -> DataFrame:
    """Decoded once and kept: all trainings read the same."""
    return spark.read.parquet(str(path)).mapInArrow(decode, "pixels binary, label tinyint").cache()


def train(train_on: DataFrame, test_on: DataFrame, wire: Wire, seed: int, given: argparse.Namespace) -> TrainingResult:
    """One training; all of it follows from seed and wire."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SmallCnn()
    iterations = given.epochs * -(-train_on.count() // given.batch)
    trainer = Trainer(
        model, nn.functional.cross_entropy,
        partial(torch.optim.SGD, lr=LEARNING_RATE, momentum=0.9, weight_decay=5e-4),
        scheduler=partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=LEARNING_RATE, total_steps=iterations),
        global_batch_size=given.batch, max_epochs=given.epochs, seed=seed,
        metrics={"accuracy": accuracy}, run=RunConfig(ranks=given.ranks, transport="blocks"), **wire.options(),
    )  # fmt: skip
    return trainer.fit(
        train_on, features="pixels", label="label", num_classes=CLASSES, collate=collate, validation=test_on
    )  # fmt: skip


def smooth(losses: Sequence[float]) -> list[float]:
    """Means over 100 iterations, the last one over what is left."""
    return [float(np.mean(losses[at : at + MEAN_OF])) for at in range(0, len(losses), MEAN_OF)]


def record(wire: Wire, seed: int, result: TrainingResult, first: dict[str, Any] | None) -> dict[str, Any]:
    """One training for the JSON, compared with the first."""
    history = result.history
    losses, found = smooth(history.losses), history.evaluations[-1].metrics["accuracy"]
    differences = np.abs(np.subtract(losses, losses if first is None else first["losses"]))
    groups_s = sum(group.wall_s for group in history.groups)
    return dataclasses.asdict(wire) | {
        "seed": seed, "iterations": history.iterations, "losses": losses,
        "loss_difference_mean": float(differences.mean()), "loss_difference_max": float(differences.max()),
        "test_accuracy": found, "accuracy_difference": 0.0 if first is None else found - first["test_accuracy"],
        "iteration_s": groups_s / history.iterations, "exchange_s": history.time.exchange_s / history.iterations,
    }  # fmt: skip


def show(records: Sequence[dict[str, Any]]) -> None:
    """A table in Markdown."""
    print("| gradients | weights | feedback | seed | last loss | difference mean / max | accuracy | ms | exchange ms |")
    print("|---|---|---|---|---|---|---|---|---|")
    for one in records:
        print(
            f"| {one['gradients']} | {one['weights']} | {'yes' if one['error_feedback'] else 'no'} | {one['seed']} "
            f"| {one['losses'][-1]:.4f} | {one['loss_difference_mean']:.4f} / {one['loss_difference_max']:.4f} "
            f"| {one['test_accuracy']:.2%} | {1e3 * one['iteration_s']:.1f} | {1e3 * one['exchange_s']:.1f} |"
        )


def arguments() -> argparse.Namespace:
    """Options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory of cifar10-{train,test}.parquet")
    parser.add_argument(
        "--wires", default="fp32,bf16,fp16", help="comma-separated; the others are compared to the first"
    )
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch", type=int, default=128, help="rows of an iteration over all ranks")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--rows", type=int, help="train on so many rows only, test on a fifth of that")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    """Train over every wire, and once more over the first from another seed."""
    given = arguments()
    wires = [Wire.parse(text) for text in given.wires.split(",")]
    for wire in wires:
        wire.options()
    records: list[dict[str, Any]] = []
    with quiet_session(f"local-cluster[{given.ranks},1,2048]", conf={"spark.app.name": "mizzle compression"}) as spark:
        train_on, test_on = (pictures_of(spark, given.data / f"cifar10-{part}.parquet") for part in ("train", "test"))
        if given.rows is not None:
            train_on, test_on = train_on.limit(given.rows).cache(), test_on.limit(given.rows // 5).cache()
        for wire, seed in [*((wire, given.seed) for wire in wires), (wires[0], given.seed + 1)]:
            print(f"{wire}, seed {seed}", flush=True)
            result = train(train_on, test_on, wire, seed, given)
            records.append(record(wire, seed, result, records[0] if records else None))
    show(records)
    if given.json is not None:
        given.json.write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
