"""What `Trainer.fit` refuses before anything starts, and how a failure on a rank comes back."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pyspark import cloudpickle
from pyspark.errors import PySparkAttributeError
from pyspark.sql import SparkSession
from torch import nn

from cluster.trainings import Fragile, assert_equal_bits, fit, frame, iteration_of, mark, trainer
from harness import eventually
from mizzle.config import RunConfig
from mizzle.errors import BridgeMissing, ConfigError, DataError, MizzleError, ModelError, TaskFailed
from mizzle.spark.driver import DriverSide, classic_context
from mizzle.spark.session import check_session, session
from mizzle.spark.trainer import Trainer
from unit.training.runs import Mlp, Training, digits

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]


def sgd(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.1)


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No run is begun while the test runs."""
    begun = []
    real = DriverSide.run

    def run(driver: DriverSide) -> Any:
        begun.append(driver)
        return real(driver)

    monkeypatch.setattr(DriverSide, "run", run)
    yield
    assert not begun


def make(
    model: nn.Module | None = None,
    loss: Any = nn.functional.cross_entropy,
    optimizer: Any = sgd,
    run: RunConfig | None = None,
    **how: Any,
) -> Trainer:
    return Trainer(model or nn.Linear(2, 3), loss, optimizer, **{"global_batch_size": 4, "run": run} | how)


GOOD = [([1.0, 2.0], k % 3) for k in range(8)]


@pytest.mark.usefixtures("nothing_starts")
@pytest.mark.parametrize(
    ("rows", "schema", "how", "message"),
    [
        (GOOD, "x array<float>, y int", {"features": "z"}, r"there is no column 'z'"),
        ([("a", 1)], "x string, y int", {}, r"column 'x' is string, which has no numbers"),
        ([*GOOD, ([1.0], 1)], "x array<float>, y int", {}, r"row \d+ of partition \d+: column 'x' has 1 elements"),
        ([*GOOD, (None, 1)], "x array<float>, y int", {}, r"row \d+ of partition \d+: column 'x' is null"),
        ([*GOOD, ([1.0, None], 1)], "x array<float>, y int", {}, r"column 'x' has a null inside its array"),
        ([], "x array<float>, y int", {}, r"the DataFrame has no rows"),
        ([*GOOD, ([1.0, 2.0], 3)], "x array<float>, y int", {"num_classes": 3}, r"column 'y' is 3, .*0\.\.2"),
    ],
    ids=["missing column", "wrong type", "ragged", "null", "null inside", "empty", "label out of range"],
)
def test_data_that_cannot_be_trained_on_is_named(
    spark_local: SparkSession, rows: list[Any], schema: str, how: dict[str, Any], message: str
) -> None:
    df = spark_local.createDataFrame(rows, schema)
    with pytest.raises(DataError, match=message):
        make().fit(df, **{"features": "x", "label": "y"} | how)


def vector_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(output, target, reduction="none")


@pytest.mark.usefixtures("nothing_starts")
@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"loss": vector_loss}, ModelError, r"the loss returned a tensor of shape \(1,\): reduce it to a scalar"),
        ({"model": nn.Linear(7, 3)}, ModelError, r"\(inputs \(1, 2\) float32; targets .*mat1 and mat2 shapes cannot"),
        (
            {"model": nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))}, ModelError,
            r"tried on the driver, with 1 row.*Expected more than 1 value per channel",
        ),
        ({"run": RunConfig(ranks=64)}, ConfigError, r"64 ranks need 64 task slots, but .* has 4: .*local\[n\]"),
    ],
    ids=["loss is no scalar", "wrong input shape", "batch norm of one row", "fewer slots than ranks"],
)  # fmt: skip
def test_a_model_that_cannot_be_trained_is_found_on_the_driver(
    spark_local: SparkSession, how: dict[str, Any], error: type[MizzleError], message: str
) -> None:
    df = spark_local.createDataFrame(GOOD[:5], "x array<float>, y int").coalesce(1)
    begun = time.monotonic()
    with pytest.raises(error, match=message):
        make(**{"run": RunConfig(ranks=2)} | how).fit(df, features="x", label="y")
    assert time.monotonic() - begun < 30, "embedded Spark gets no more slots: there is nothing to wait for"


def with_lock() -> nn.Module:
    model = nn.Linear(2, 3)
    model.lock = threading.Lock()  # type: ignore[assignment]
    return model


class WithFile(nn.Module):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.file = path.open("w")


def test_a_model_a_loss_or_a_collate_that_cannot_be_sent_is_named(spark_local: SparkSession, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"the model cannot be sent to the executors .*'_thread.lock'"):
        make(with_lock())
    model = WithFile(tmp_path / "open")
    with pytest.raises(ModelError, match=r"the model cannot be sent to the executors .*Cannot pickle files"):
        make(model)
    model.file.close()
    lock = threading.Lock()
    with pytest.raises(ModelError, match=r"the loss cannot be sent"):
        make(loss=lambda output, target: (output.mean(), target, lock)[0])
    df = spark_local.createDataFrame(GOOD, "x array<float>, y int")
    with pytest.raises(ModelError, match=r"collate cannot be sent"):
        make().fit(df, features="x", label="y", collate=lambda rows: (rows, lock))


def test_a_lambda_can_be_sent(spark_local: SparkSession) -> None:
    df = spark_local.createDataFrame(GOOD, "x array<float>, y int")
    made = make(
        loss=lambda output, target: nn.functional.cross_entropy(output, target, label_smoothing=0.1),
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1),
        run=RunConfig(ranks=2),
    )
    result = made.fit(
        df, features="x", label="y", collate=lambda rows: tuple(torch.tensor(c.to_pylist()) for c in rows)
    )
    assert len(result.history.losses) == 2


def to_tensor(column: Any) -> torch.Tensor:
    return torch.tensor(column.to_pylist())


def lbfgs(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.LBFGS(groups)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"optimizer": lbfgs}, r"LBFGS evaluates the loss in its step"),
        ({"scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau}, r"ReduceLROnPlateau waits for a metric"),
    ],
)
def test_what_needs_more_than_a_gradient_is_refused(how: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        make(**how)


class Connect:
    """A session as Spark Connect has it."""

    @property
    def sparkContext(self) -> object:  # noqa: N802 - Spark's name
        raise PySparkAttributeError(errorClass="JVM_ATTRIBUTE_NOT_SUPPORTED", messageParameters={"attr_name": "x"})


class Java:
    """The JVM's side of a context."""

    def __init__(self, *, stopped: bool) -> None:
        self._stopped = stopped

    def sc(self) -> Java:
        return self

    def isStopped(self) -> bool:  # noqa: N802 - Spark's name
        return self._stopped


class Plain:
    """A context that was started without the plugin."""

    def __init__(self, *, stopped: bool = False) -> None:
        self._jsc = Java(stopped=stopped)

    def getConf(self) -> dict[str, str]:  # noqa: N802 - Spark's name
        return {"spark.plugins": "org.example.Other"}


def test_a_session_that_mizzle_cannot_use_is_refused() -> None:
    with pytest.raises(ConfigError, match="Spark Connect session, which has no sparkContext"):
        classic_context(Connect())  # type: ignore[arg-type]
    with pytest.raises(BridgeMissing, match=r"spark.plugins is 'org.example.Other'.*mizzle.spark_conf\(\)"):
        check_session(Plain())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="has been stopped: make a new one"):
        check_session(Plain(stopped=True))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"fit takes a Spark DataFrame, not list"):
        make().fit([1], features="x", label="y")  # type: ignore[arg-type]


def test_another_master_than_the_running_one_is_not_silently_ignored(spark_local: SparkSession) -> None:
    with pytest.raises(ConfigError, match=r"master 'local\[4\]' runs already, so master='local\[2\]' would be ignored"):
        session("local[2]")
    assert session().sparkContext is spark_local.sparkContext


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"model": torch.nn.Linear}, ModelError, "give an instance of torch.nn.Module"),
        ({"loss": "mse"}, ConfigError, "loss is 'mse'; give a function"),
        ({"loss": torch.nn.MSELoss}, ConfigError, r"MSELoss'>; give a function"),
        ({"run": {"ranks": 2}}, ConfigError, r"run is \{'ranks': 2\}: give a mizzle.RunConfig"),
        ({"global_batch_size": 8.0}, ConfigError, "global_batch_size is 8.0; give a whole number"),
    ],
)
def test_an_argument_of_the_wrong_kind_is_named(how: dict[str, Any], error: type[Exception], message: str) -> None:
    given: dict[str, Any] = {"model": torch.nn.Linear(2, 2), "loss": torch.nn.functional.cross_entropy}
    given |= {"optimizer": sgd, "global_batch_size": 8, **how}
    with pytest.raises(error, match=message):
        Trainer(**given)


def left_behind(spark: SparkSession) -> list[str]:
    """Files and directories of runs in the executor's local directories."""
    local = Path(spark.sparkContext.getConf().get("spark.local.dir") or "")
    return [str(path) for path in local.glob("blockmgr-*/mizzle-*") if path.is_dir()]


def test_an_error_on_one_rank_names_it_ends_all_and_leaves_nothing(spark_local: SparkSession) -> None:
    training = Training(lambda: Fragile(raises=True), mark(digits(), 43), sgd, batch_size=8)
    assert iteration_of(training, 43) > 1
    begun = time.monotonic()
    assert eventually(lambda: not left_behind(spark_local), within_s=10), "other tests' runs have ended"
    with pytest.raises(TaskFailed) as found:
        fit(spark_local, training, run={"timeout_s": 100.0}, max_iterations=None, max_epochs=1)
    assert time.monotonic() - begun < 60, "peers waited for their deadline"
    message = str(found.value)
    assert message.startswith("rank 1 (executor driver on ")  # row 43 is in shard 3, which rank 1 of 2 holds
    assert "ValueError: boom at the marked row" in message
    assert 'raise ValueError("boom at the marked row")' in message, "the traceback shows the line"
    assert isinstance(found.value.__cause__, ValueError)
    assert eventually(lambda: not left_behind(spark_local), within_s=10)

    results = [fit(spark_local, Training(Mlp, digits(), sgd), max_iterations=2) for _ in range(2)]
    assert_equal_bits(*results)
    assert eventually(lambda: not left_behind(spark_local), within_s=10)


def test_fewer_ranks_than_slots_are_chosen_when_there_are_fewer_shards(spark_local: SparkSession) -> None:
    training = Training(Mlp, digits(), sgd)
    made: Callable[..., Any] = trainer(training, run={"ranks": None, "shards": 2}, max_iterations=2).fit
    result = made(frame(spark_local, training.data), features="x", label="y")
    assert (result.report["ranks"], result.report["shards"]) == (2, 2)
