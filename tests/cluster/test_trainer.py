"""`Trainer.fit` on a real Spark: the same bits however it is laid out, and what plain PyTorch computes."""

from __future__ import annotations

import logging
import sys
import threading
from typing import Any

import pytest
import torch
from pyspark import cloudpickle
from pyspark.sql import SparkSession
from torch import nn

from cluster.trainings import (
    ITERATIONS,
    CountRows,
    Fragile,
    assert_close,
    assert_equal_bits,
    fit,
    frame,
    iteration_of,
    mark,
    trainer,
)
from mizzle.config import RunConfig
from mizzle.errors import DataError, NotFiniteError
from mizzle.spark.trainer import Trainer, TrainingResult
from mizzle.training.clipping import ClipByNorm
from unit.training.runs import Cnn, Mlp, Rows, Training, digits, plain

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]


def adam(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, lr=3e-3)


def sgd(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def two_groups(model: nn.Module) -> list[dict[str, Any]]:
    biases = [p for p in model.parameters() if p.dim() == 1]
    others = [p for p in model.parameters() if p.dim() > 1]
    return [{"params": others, "weight_decay": 0.01}, {"params": biases, "lr": 1e-2}]


@pytest.fixture(scope="module")
def reference(spark_local: SparkSession) -> TrainingResult:
    """The MLP with two ranks, which several tests compare with."""
    return fit(spark_local, Training(Mlp, digits(), sgd))


def test_group_sizes_1_10_and_50_and_a_second_fit_give_the_same_bits(spark_local: SparkSession) -> None:
    # 12 iterations an epoch; 14 make groups of 10, 2 and 2, or of 12 and 2. State and random numbers cross them.
    training = Training(lambda: Mlp(dropout=0.3), digits(), adam, batch_size=8)
    whole = trainer(training, run={"group_size": 50}, max_iterations=14)
    data = frame(spark_local, training.data).cache()
    results = [whole.fit(data, features="x", label="y") for _ in range(2)]
    results += [fit(spark_local, training, run={"group_size": size}, max_iterations=14) for size in (1, 10)]
    assert_equal_bits(*results)
    assert len(results[0].history.losses) == 14
    assert [epoch.rows for epoch in results[0].history.epochs] == [90, 16]
    assert [result.report["group_size"] for result in results] == [50, 50, 1, 10]


@pytest.mark.parametrize(
    "training",
    [
        Training(Mlp, digits(), sgd),
        Training(Cnn, digits(), sgd),
        Training(Mlp, digits(), adam, groups=two_groups, options={"clipping": ClipByNorm(0.1)}),
    ],
    ids=["mlp", "cnn", "adam with clipping and two groups"],
)
def test_1_2_and_4_ranks_give_the_same_bits_and_plain_pytorch_agrees(
    spark_local: SparkSession, training: Training
) -> None:
    results = [fit(spark_local, training, ranks) for ranks in (1, 2, 4)]
    assert_equal_bits(*results)
    clipping = training.options.get("clipping")
    clip = None if clipping is None else lambda model: nn.utils.clip_grad_norm_(model.parameters(), clipping.max_norm)
    assert_close(results[0], plain(training, training.plans(ITERATIONS), clip))
    assert [result.report["ranks"] for result in results] == [1, 2, 4]


@pytest.mark.parametrize("transport", ["shm", "blocks"])
def test_every_transport_gives_the_same_bits(
    spark_local: SparkSession, reference: TrainingResult, transport: str
) -> None:
    other = fit(spark_local, Training(Mlp, digits(), sgd), run={"transport": transport, "group_size": 3})
    assert_equal_bits(reference, other)
    assert other.report["transport"] == transport


def test_batch_norm_statistics_do_not_depend_on_the_ranks(spark_local: SparkSession) -> None:
    training = Training(lambda: Mlp(norm=True), digits(), sgd)
    results = [fit(spark_local, training, ranks) for ranks in (1, 4)]
    assert_equal_bits(*results)
    norm = results[0].model.state_dict()
    assert norm["norm.num_batches_tracked"] == ITERATIONS
    assert not torch.equal(norm["norm.running_mean"], training.fresh_model().state_dict()["norm.running_mean"])


def half_frozen() -> nn.Module:
    model = Mlp()
    model.first.requires_grad_(requires_grad=False)
    return model


def test_frozen_parameters_a_schedule_and_accumulation_agree_with_plain_pytorch(spark_local: SparkSession) -> None:
    training = Training(
        half_frozen, digits(), sgd, options={"accumulate": 3},
        scheduler=lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=ITERATIONS + 1),
    )  # fmt: skip
    result = fit(spark_local, training, run={"group_size": 3})
    assert_close(result, plain(training, training.plans(ITERATIONS)))
    frozen = training.fresh_model().state_dict()["first.weight"]
    assert torch.equal(result.model.state_dict()["first.weight"], frozen)
    assert not result.model.training


def mean(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return output.mean()


def test_every_row_comes_exactly_once_an_epoch_also_with_fewer_rows_than_shards(spark_local: SparkSession) -> None:
    # 13 rows in shards of 4, 3, 3, 3; 2 rows an iteration, 1 in the last. A learning rate equal to the rows makes
    # every row count 1, and all numbers are exact in fp32.
    rows = Rows(torch.eye(13), torch.zeros(13, dtype=torch.int64))
    training = Training(
        lambda: CountRows(13), rows, lambda groups: torch.optim.SGD(groups, lr=1.0), batch_size=2, loss=mean,
        scheduler=lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda i: 1 if i % 7 == 6 else 2),
    )  # fmt: skip
    for epochs in (1, 3):
        result = fit(spark_local, training, max_epochs=epochs, max_iterations=None, run={"group_size": 5})
        assert result.model.state_dict()["seen"].tolist() == [-float(epochs)] * 13
        assert [epoch.rows for epoch in result.history.epochs] == [13] * epochs
        assert result.report["rows"] == 13
        assert result.report["dropped_rows"] == 0


def test_rows_of_empty_and_uneven_partitions_come_exactly_once_and_bad_ones_never(spark_local: SparkSession) -> None:
    # Row n counts itself in element n; each third of the fifteen has a null among its numbers.
    parts = [[0], [], list(range(1, 13)), [13, 14]]
    spread = spark_local.sparkContext.parallelize(parts, 4).flatMap(lambda part: part)
    bad = {2, 7, 12}
    rows = spread.map(lambda n: ([None if n in bad and k == 0 else float(k == n) for k in range(15)], 0))
    df = spark_local.createDataFrame(rows, "x array<float>, y int")
    made = Trainer(
        CountRows(15), mean, lambda groups: torch.optim.SGD(groups, lr=3.0), global_batch_size=3, max_epochs=2,
        run=RunConfig(ranks=2, shards=4),
    )  # fmt: skip
    result = made.fit(df, features="x", label="y", bad_rows="skip")
    counted = [0.0 if n in bad else -2.0 for n in range(15)]
    assert result.model.state_dict()["seen"].tolist() == counted
    assert (result.report["rows"], result.report["skipped_rows"]) == (12, 3)
    with pytest.raises(DataError, match=r"row 1 of partition 2: column 'x' has a null inside its array"):
        made.fit(df, features="x", label="y")


@pytest.mark.parametrize("wire", ["bf16", "fp16"])
def test_a_16_bit_wire_gives_the_same_bits_from_run_to_run(
    spark_local: SparkSession, reference: TrainingResult, wire: str
) -> None:
    training = Training(Mlp, digits(), sgd, options={"wire": wire})
    results = [fit(spark_local, training, run={"transport": "blocks"}) for _ in range(2)]
    assert_equal_bits(*results)
    assert_equal_bits(reference, fit(spark_local, training, run={"transport": "shm"}))  # nothing travels there
    assert results[0].history.losses != reference.history.losses
    assert results[0].history.losses == pytest.approx(reference.history.losses, rel=0.02)


def test_autocast_gives_the_same_bits_on_1_and_2_ranks(spark_local: SparkSession, reference: TrainingResult) -> None:
    training = Training(Mlp, digits(), sgd, options={"autocast": True})
    results = [fit(spark_local, training, ranks) for ranks in (1, 2)]
    assert_equal_bits(*results)
    assert results[0].history.losses != reference.history.losses
    assert results[0].history.losses == pytest.approx(reference.history.losses, rel=0.02)


def test_a_loss_that_reaches_into_the_model_reaches_into_the_one_that_is_trained(spark_local: SparkSession) -> None:
    model = Mlp()

    def decayed(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(output, target) + 100 * model.last.weight.square().sum()

    training = Training(lambda: model, digits(), lambda groups: torch.optim.SGD(groups, lr=1e-3), loss=decayed)
    result = fit(spark_local, training, max_iterations=20)
    # 1 - 2 * 100 * 1e-3 = 0.8 an iteration, but for the other term of the loss
    assert result.model.state_dict()["last.weight"].norm() < 0.2 * model.last.weight.norm()
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_a_loss_that_is_nan_is_raised_or_skipped(spark_local: SparkSession, policy: str) -> None:
    training = Training(lambda: Fragile(raises=False), mark(digits(), 42), sgd, options={"not_finite": policy})
    when = iteration_of(training, 42)
    if policy == "raise":
        with pytest.raises(NotFiniteError, match=rf"iteration {when} \(epoch 0\): the loss of shard 2 is nan") as found:
            fit(spark_local, training)
        first, *others, last = found.value.__notes__
        assert "on rank 1" in str(found.value)  # of two, for shards 2 and 3
        assert any(
            note.startswith("r") and "rank 1 " in note and "executor driver on " in note for note in (first, *others)
        )
        assert last.startswith("the run was at: iterations ")
        return
    result = fit(spark_local, training)
    assert when in result.history.skipped
    assert [i for i, loss in enumerate(result.history.losses) if loss != loss] == result.history.skipped  # noqa: PLR0124
    assert all(value.isfinite().all() for value in result.model.state_dict().values())


class SlowWhereMarked(Mlp):
    """Takes a fifth of a second more where rows are marked."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if (inputs[:, 0] == 1234).any():
            threading.Event().wait(0.2)
        return super().forward(inputs.clamp(-9, 9))


def test_a_slow_rank_is_named_with_its_executor_and_host(
    spark_local: SparkSession, caplog: pytest.LogCaptureFixture
) -> None:
    rows = digits()
    rows.inputs[2::4, 0] = rows.inputs[3::4, 0] = 1234  # shards 2 and 3, which rank 1 of 2 holds
    with caplog.at_level(logging.WARNING, "mizzle.spark.slow"):
        result = fit(spark_local, Training(SlowWhereMarked, rows, sgd), run={"group_size": 3}, max_iterations=7)
    slow = max(result.history.stragglers, key=lambda one: one.iterations)
    assert (slow.rank, slow.executor) == (1, "driver")
    assert slow.since >= 2
    assert slow.iterations >= 3
    assert slow.factor > 2
    assert result.report["stragglers"] == 1
    (warning,) = [record.getMessage() for record in caplog.records]
    assert f"executor=driver host={slow.host} iteration=" in warning


def test_two_fits_from_two_threads_do_not_disturb_each_other(
    spark_local: SparkSession, reference: TrainingResult
) -> None:
    found: dict[int, TrainingResult] = {}
    training = Training(Mlp, digits(), sgd)
    # Made here: models are initialised from torch's global generator, which two threads would draw from in turn.
    trainers = [trainer(training, 2, run={"group_size": 2}) for _ in range(2)]
    data = frame(spark_local, training.data)

    def work(number: int) -> None:
        found[number] = trainers[number].fit(data, features="x", label="y")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert_equal_bits(reference, found[0], found[1])
    assert found[0].report["run"] != found[1].report["run"]


def test_progress_is_quiet_without_a_terminal_and_shown_when_asked_for(
    spark_local: SparkSession, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    training = Training(Mlp, digits(), sgd)
    fit(spark_local, training, max_iterations=2)
    assert capsys.readouterr() == ("", "")
    fit(spark_local, training, max_iterations=2, progress=True)
    shown = capsys.readouterr()
    assert "2/2" in shown.err
    assert "samples/s" in shown.err
    assert "scheduling" in shown.err
    assert shown.out == ""
