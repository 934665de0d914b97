"""The options and the table of `mizzle bench training`."""

from __future__ import annotations

import pickle
import re

import pytest
from rich.console import Console
from typer.testing import CliRunner

from mizzle.bench.training import TrainingRecord
from mizzle.cli import app as entry
from mizzle.cli.bench_training import WORKLOADS, tables
from mizzle.errors import ConfigError


def test_the_workloads_have_the_published_sizes_and_can_be_sent_to_executors() -> None:
    found = {name: workload.num_parameters() for name, workload in WORKLOADS.items()}
    assert found == {"mlp-7m": 7_008_936, "inception_v1": 13_378_280, "vgg16": 138_357_544}
    assert pickle.loads(pickle.dumps(WORKLOADS)) == WORKLOADS  # noqa: S301 - made here


def test_a_table_compares_with_ddp_on_as_many_workers() -> None:
    def record(system: str, model: str, workers: int, iteration_s: float) -> TrainingRecord:
        return TrainingRecord(system, model, workers, iteration_s, 8 / iteration_s, 0.02, 0.01, 0.005)

    records = [
        record("single", "mlp-7m", 1, 0.03), record("torch_distributor", "mlp-7m", 2, 0.1),
        record("mizzle", "mlp-7m", 2, 0.04), record("mizzle", "mlp-7m", 4, 0.04), record("mizzle", "vgg16", 2, 12.0),
    ]  # fmt: skip
    console = Console(width=80)
    with console.capture() as shown:
        for table in tables(records, batch=4):
            console.print(table)
    lines = [line.replace("│", " ").split() for line in shown.get().splitlines() if line.startswith("│")]
    assert "one iteration of mlp-7m, 4 rows a rank" in shown.get()
    assert "iteration ┃ rows/s ┃ compute ┃ exchange ┃ hidden ┃ x DDP" in shown.get()
    assert lines == [
        ["1", "single", "30.0", "267", "20.0", "10.0", "5.0", "-"],
        ["2", "DDP", "100.0", "80", "20.0", "10.0", "5.0", "1.00"],
        ["2", "mizzle", "40.0", "200", "20.0", "10.0", "5.0", "2.50"],
        ["4", "mizzle", "40.0", "200", "20.0", "10.0", "5.0", "-"],
        ["2", "mizzle", "12000.0", "0.667", "20.0", "10.0", "5.0", "-"],
    ]


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        ("--models", "alexnet", "'alexnet' is no model"),
        ("--models", ",", "nothing to measure"),
        ("--workers", "2,x", "'x' is no number of workers"),
        ("--workers", ",", "nothing to measure"),
        ("--systems", "mizzle,horovod", "'horovod' is no system"),
        ("--systems", "", "nothing to measure"),
    ],
)
def test_a_bad_value_is_named_before_anything_starts(option: str, value: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        CliRunner().invoke(entry.app, ["bench", "training", option, value], catch_exceptions=False)


def test_help_names_every_option_and_what_is_measured() -> None:
    done = CliRunner().invoke(entry.app, ["bench", "training", "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert done.exit_code == 0
    wanted = ["--models", "--workers", "--systems", "--batch", "--threads", "--repeats", "--warmup", "--rounds",
              "--json", "TorchDistributor", "hidden_s"]  # fmt: skip
    plain = re.sub(r"\x1b\[[0-9;]*m", "", done.output)
    assert [text for text in wanted if text not in plain] == []
