"""What a fit tells of its time and memory, and that neither watching nor overlapping changes a bit."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from pyspark import cloudpickle
from pyspark.sql import SparkSession

from cluster.trainings import ITERATIONS, assert_equal_bits, fit, put_away_once, trainer
from mizzle.config import RunConfig
from mizzle.errors import ConfigError
from mizzle.spark.iterate import iterate
from mizzle.spark.trainer import TrainingResult
from unit.training.runs import Mlp, Training, digits

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]


def adam(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, lr=3e-3)


TRAINING = Training(lambda: Mlp(norm=True, dropout=0.2), digits(), adam)


@pytest.fixture(scope="module")
def reference(spark_local: SparkSession) -> TrainingResult:
    return fit(spark_local, TRAINING, run={"overlap": False})


def spans_of(path: Path) -> list[dict[str, Any]]:
    return [event for event in json.loads(path.read_text())["traceEvents"] if event["ph"] == "X"]


def test_a_trace_shows_every_iteration_of_every_rank_and_changes_no_bit(
    spark_local: SparkSession, reference: TrainingResult, tmp_path: Path
) -> None:
    path = tmp_path / "trace.json"
    traced = fit(spark_local, TRAINING, 4, run={"trace": path, "overlap": True, "group_size": 3})
    assert_equal_bits(reference, traced)
    seen = Counter((span["pid"], span["cat"], span["name"]) for span in spans_of(path))
    for rank in range(4):
        for name in ("rows", "forward", "backward"):
            assert seen[rank, "compute", name] == ITERATIONS
        assert seen[rank, "exposed", "reduce"] == seen[rank, "exposed", "gather"] == ITERATIONS
        assert seen[rank, "update", "optimizer"] == ITERATIONS
        assert seen[rank, "boundary", "keep state"] == len(traced.history.groups)
    assert min(span["ts"] for span in spans_of(path)) == 0


def test_a_rank_that_settles_anew_goes_on_with_its_trace(
    spark_local: SparkSession, reference: TrainingResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = put_away_once(monkeypatch, (2,))
    traced = fit(spark_local, TRAINING, run={"trace": str(tmp_path / "trace.json"), "group_size": 2})
    assert len(given) == 1 + len(traced.history.groups) + 1, "one in vain, and the end"
    assert_equal_bits(reference, traced)
    updates = [span for span in spans_of(tmp_path / "trace.json") if span["name"] == "optimizer"]
    assert sorted(span["args"]["iteration"] for span in updates) == sorted(2 * [*range(ITERATIONS)])


def test_the_report_says_what_was_hidden_and_what_a_rank_held(reference: TrainingResult) -> None:
    report, time = reference.report, reference.history.time
    assert report["hidden_fraction"] == time.hidden_fraction == 0.0, "nothing was begun early"
    held = report["memory_bytes"]
    num_parameters = sum(p.numel() for p in TRAINING.fresh_model().parameters())
    assert held["gradients"] >= 4 * num_parameters
    assert 8 * num_parameters // 2 <= held["optimizer"] <= 8 * num_parameters
    assert held["recovery"] > held["optimizer"]
    assert min(held.values()) >= 0


def test_weights_in_16_bits_give_the_same_bits_on_1_and_2_ranks(
    spark_local: SparkSession, reference: TrainingResult
) -> None:
    one, two = (fit(spark_local, TRAINING, ranks, weights_wire="bf16", run={"group_size": 3}) for ranks in (1, 2))
    assert_equal_bits(one, two)
    assert one.history.losses != reference.history.losses
    weights = one.model.state_dict()["first.weight"]
    assert torch.equal(weights, weights.bfloat16().float())


def nothing(_context: Any, _batch: Any) -> None:
    return None


def test_settings_that_would_do_nothing_are_refused(spark_local: SparkSession, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the trace .*nowhere/trace.json cannot be written"):
        fit(spark_local, TRAINING, run={"trace": tmp_path / "nowhere" / "trace.json"})
    with pytest.raises(ConfigError, match="error_feedback keeps what a 16-bit wire rounds away"):
        trainer(TRAINING, error_feedback=True)
    for layout in (RunConfig(trace="trace.json"), RunConfig(overlap=True)):
        with pytest.raises(ConfigError, match=r"run.trace and run.overlap are for a Trainer"):
            iterate(None, nothing, iterations=1, run=layout, spark=spark_local)
