"""`mizzle demo`: LeNet-5 learns handwritten digits from a Spark DataFrame, on embedded Spark unless told otherwise."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from pyspark.sql import SparkSession

from mizzle.cli.digits import Digits, load_digits
from mizzle.cli.epoch_lines import EpochLines
from mizzle.cli.output import JsonFile, check_writable, write_json
from mizzle.cli.quiet import quiet_session
from mizzle.config import GroupSize, RunConfig, Transport
from mizzle.errors import ConfigError, MizzleError
from mizzle.models import LeNet5
from mizzle.spark.trainer import Trainer, TrainingResult

SEED = 7
BATCH = 72
"""1437 rows make 20 iterations an epoch of it, two whole groups of the default 10; 64 would cut groups of 10, 10, 3."""
EPOCHS = 20
LEARNING_RATE = 1e-2
WEIGHT_DECAY = 5e-2
LABEL_SMOOTHING = 0.1
ACCURACY = 0.97
SHARDS = 4
"""Fixed, so that 1, 2 and 4 ranks learn the same network to the last bit."""


@dataclass(frozen=True, slots=True)
class DemoReport:
    """What a demo's JSON holds.

    Attributes:
        accuracy: share of the test pictures that are told right.
        iterations: optimizer steps.
        ranks: physical workers.
        transport: as asked for.
        group_size: iterations per Spark job.
        losses: of every iteration.
        wall_s: seconds of ``Trainer.fit``.
        time_split: where the seconds of the groups went, mean over ranks.
    """

    accuracy: float
    iterations: int
    ranks: int
    transport: str
    group_size: GroupSize
    losses: list[float | None]
    wall_s: float
    time_split: dict[str, float]

    @classmethod
    def of(cls, result: TrainingResult, accuracy: float) -> DemoReport:
        """Pick it out of a result."""
        report, time = result.report, result.history.time
        return cls(
            accuracy=accuracy,
            iterations=report["iterations"],
            ranks=report["ranks"],
            transport=report["transport"],
            group_size=report["group_size"],
            losses=result.history.as_dict()["losses"],
            wall_s=report["wall_s"],
            time_split={
                "compute": time.compute_s, "exchange": time.exchange_s, "update": time.update_s,
                "scheduling": time.scheduling_s,
            },
        )  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the attributes, in their order."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def demo(
    *,
    master: Annotated[
        str | None, typer.Option(help="Spark master, e.g. 'local-cluster[2,1,1024]'.", show_default="local[RANKS]")
    ] = None,
    ranks: Annotated[int, typer.Option(min=1, help="Physical workers; needs as many task slots.")] = 2,
    transport: Annotated[Transport, typer.Option(help="How ranks reach each other.")] = "auto",
    group_size: Annotated[str, typer.Option(help="Iterations per Spark job, a number or 'auto'.")] = "auto",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the 1437 training pictures.")] = EPOCHS,
    require_accuracy: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Fail below this test accuracy; 0 accepts any.")
    ] = ACCURACY,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", dir_okay=False, help="Write what the ranks did when, for Perfetto.")
    ] = None,
    json: JsonFile = None,
) -> None:
    """Train LeNet-5 on scikit-learn's digits (8x8 pictures, 80 % to train, 20 % to test) and print the test accuracy.

    The JSON holds accuracy, iterations, ranks, transport, group_size, losses, wall_s (seconds of training, without
    starting Spark) and time_split (seconds: compute, exchange, update, scheduling). https://ui.perfetto.dev and
    chrome://tracing open what --trace writes.
    """
    check_writable(json)
    digits = load_digits()
    layout = RunConfig(
        ranks=ranks, shards=max(SHARDS, ranks), group_size=parse_group_size(group_size), transport=transport,
        trace=trace,
    )  # fmt: skip
    print(
        f"LeNet-5 on {len(digits.train)} handwritten digits, {ranks} ranks on {master or f'local[{ranks}]'}", flush=True
    )
    with quiet_session(master or f"local[{ranks}]", conf={"spark.app.name": "mizzle demo"}) as spark:
        result = train(spark, digits, layout, epochs=epochs)
    report = DemoReport.of(result, accuracy_of(result.model, digits))
    write_json(json, report.as_dict())
    split = ", ".join(f"{name} {seconds:.1f}" for name, seconds in report.time_split.items())
    groups = result.report["groups"]
    print(
        f"{report.iterations} iterations in {report.wall_s:.1f} s ({split}), {groups} groups, group size {group_size}"
    )
    print(f"test accuracy {report.accuracy:.2%} of {len(digits.test_labels)} pictures")
    check_accuracy(report.accuracy, require_accuracy)


def train(spark: SparkSession, digits: Digits, layout: RunConfig, *, epochs: int) -> TrainingResult:
    """Train LeNet-5 with progress: a bar on a terminal, elsewhere a line an epoch."""
    iterations = epochs * -(-len(digits.train) // BATCH)
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        model = LeNet5(image_size=8)
    trainer = Trainer(
        model,
        partial(torch.nn.functional.cross_entropy, label_smoothing=LABEL_SMOOTHING),
        partial(torch.optim.AdamW, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY),
        global_batch_size=BATCH,
        max_epochs=epochs,
        seed=SEED,
        scheduler=partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=LEARNING_RATE, total_steps=iterations),
        run=layout,
    )
    with EpochLines(enabled=not sys.stderr.isatty()):
        return trainer.fit(
            spark.createDataFrame(digits.train), features="image", label="label", shape=(1, 8, 8), num_classes=10
        )


def parse_group_size(text: str) -> GroupSize:
    """A group size as it is typed: a number, or "auto".

    Raises:
        ConfigError: it is neither.
    """
    if text == "auto":
        return "auto"
    if not text.isdecimal():
        raise ConfigError(f'--group-size is {text!r}: give a whole number of iterations, at least 1, or "auto"')
    return int(text)


def check_accuracy(accuracy: float, required: float) -> None:
    """Refuse a network that learnt too little.

    Raises:
        MizzleError: says what to change.
    """
    if accuracy < required:
        raise MizzleError(
            f"the test accuracy is {accuracy:.2%}, less than the required {required:.2%}: give more --epochs "
            f"(default {EPOCHS}), or a lower --require-accuracy"
        )


def accuracy_of(model: torch.nn.Module, digits: Digits) -> float:
    """Share of the test pictures that the model tells right."""
    with torch.inference_mode():
        told = model(torch.from_numpy(digits.test_images).view(-1, 1, 8, 8)).argmax(dim=1).numpy()
    return float(np.mean(told == digits.test_labels))
