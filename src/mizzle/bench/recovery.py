"""`mizzle bench recovery` without its options: trainings on real executors, struck by real signals while they run."""

from __future__ import annotations

import logging
import os
import random
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from pyspark import cloudpickle
from pyspark.sql import DataFrame, SparkSession

from mizzle.blocks.deadline import Deadline
from mizzle.config import RunConfig
from mizzle.errors import ConfigError, MizzleError
from mizzle.spark.driver import DriverSide
from mizzle.spark.trainer import Trainer, TrainingResult
from mizzle.training.history import FaultRecord

# By value, as a model of a script's is: who unpickles it need not load all that is imported here.
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]

Fault = Literal["executor_kill", "executor_kill_spare", "executor_stop", "rank_kill"]
FAULTS = get_args(Fault)
_FEATURES, _HIDDEN, _CLASSES, _ROWS = 64, 512, 10, 4096
_COURSE = "mizzle.spark.course"
_GROUPS_BEFORE = 3
_REPLACED_S = 60.0
_TRIES = 3
_RESIDENT = b"mizzle.spark.ranks.resident"


@dataclass(frozen=True, slots=True)
class RecoveryPlan:
    """What to measure.

    Attributes:
        faults: which, each in turn.
        workers: executors of one rank each.
        repeats: trainings struck by each.
        group_size: K.
        iterations: of each training.
    """

    faults: tuple[Fault, ...]
    workers: int
    repeats: int
    group_size: int
    iterations: int

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        if self.workers < 2:
            raise ConfigError("one worker has nobody to keep a copy of its state: give at least 2")
        if self.iterations < 2 * _GROUPS_BEFORE * self.group_size:
            raise ConfigError(
                f"{self.iterations} iterations are too few to be struck in the middle: give at least "
                f"{2 * _GROUPS_BEFORE * self.group_size}, or a smaller group size"
            )


@dataclass(frozen=True, slots=True)
class RecoveryRecord:
    """What one kind of fault cost.

    Attributes:
        fault: which.
        repeats: how often.
        detect_s: from the signal until the driver knew, median.
        resume_s: from the signal until the first group after it was done: median.
        resume_p95_s: 95th percentile of the same.
        iterations_recomputed: at most: those of the group that was run again.
        bit_equal: whether every training ended with the losses and weights of one that nothing happened to.
    """

    fault: str
    repeats: int
    detect_s: float
    resume_s: float
    resume_p95_s: float
    iterations_recomputed: int
    bit_equal: bool

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the attributes, in their order."""
        return asdict(self)


def bench_recovery(
    spark: SparkSession, plan: RecoveryPlan, report: Callable[[str], None] = lambda _: None
) -> list[RecoveryRecord]:
    """Strike trainings, and compare each with one that nothing happened to.

    Args:
        spark: with executors on this machine, at least as many as workers; Spark replaces those that die.
        plan: what to measure.
        report: is told what is going on.
    """
    frame = _frame(spark)
    report("a training without a fault")
    calm = _fit(frame, plan, spare=False)
    records = []
    for fault in plan.faults:
        seen: list[_Seen] = []
        for seed in range(_TRIES * plan.repeats):
            report(f"{fault}: {len(seen) + 1} of {plan.repeats}")
            await_executors(spark, plan.workers)
            with _striking(spark, fault, seed=seed) as struck_at:
                result = _fit(frame, plan, spare=fault == "executor_kill_spare")
            if result.history.faults:  # otherwise it was over too soon, or a process was struck that was idle
                seen.append(_Seen.of(result, calm, struck_at))
            if len(seen) == plan.repeats:
                break
        else:
            raise MizzleError(f"{fault}: most trainings were over before they were struck: give them more iterations")
        records.append(_summed_up(fault, seen))
    return records


@dataclass(frozen=True, slots=True)
class _Seen:
    """One training that was struck."""

    detect_s: float
    resume_s: float
    recomputed: int
    equal: bool

    @classmethod
    def of(cls, result: TrainingResult, calm: TrainingResult, struck_at: Sequence[float]) -> _Seen:
        equal = result.history.losses == calm.history.losses and all(
            torch.equal(value, calm.model.state_dict()[name]) for name, value in result.model.state_dict().items()
        )
        faults: list[FaultRecord] = result.history.faults
        again = next(group for group in result.history.groups if group.first == faults[0].boundary)
        return cls(faults[0].noticed_at - struck_at[0], faults[-1].resumed_at - struck_at[0], again.size, equal)


def _summed_up(fault: str, seen: Sequence[_Seen]) -> RecoveryRecord:
    resumes = [one.resume_s for one in seen]
    return RecoveryRecord(
        fault, len(seen), statistics.median(one.detect_s for one in seen), statistics.median(resumes),
        float(np.quantile(resumes, 0.95, method="higher")), max(one.recomputed for one in seen),
        all(one.equal for one in seen),
    )  # fmt: skip


class _Model(torch.nn.Sequential):
    """Three layers, with dropout: random numbers must be the same the second time."""

    def __init__(self) -> None:
        super().__init__(
            torch.nn.Linear(_FEATURES, _HIDDEN), torch.nn.ReLU(), torch.nn.Dropout(0.1),
            torch.nn.Linear(_HIDDEN, _HIDDEN), torch.nn.ReLU(), torch.nn.Linear(_HIDDEN, _CLASSES),
        )  # fmt: skip


def _adam(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, lr=1e-3)


def _frame(spark: SparkSession) -> DataFrame:
    """Rows of noise, made by Spark where they are wanted: they must be there again when an executor is gone."""

    def rows(part: int) -> list[tuple[list[float], int]]:
        random_ = np.random.default_rng(part)
        inputs = random_.standard_normal((_ROWS // 8, _FEATURES)).round(3)
        return [(row.tolist(), int(abs(row.sum())) % _CLASSES) for row in inputs]

    parts = spark.sparkContext.parallelize(range(8), 8).flatMap(rows)
    return spark.createDataFrame(parts, "x array<double>, y int")


def _fit(frame: DataFrame, plan: RecoveryPlan, *, spare: bool) -> TrainingResult:
    """One training; with a spare rank it goes on with one less."""
    torch.manual_seed(5)
    ranks = (plan.workers - 1, plan.workers) if spare else plan.workers
    trainer = Trainer(
        _Model(), torch.nn.functional.cross_entropy, _adam, global_batch_size=64 * plan.workers, max_epochs=10**6,
        max_iterations=plan.iterations, seed=5, progress=False,
        run=RunConfig(ranks=ranks, shards=plan.workers, group_size=plan.group_size),
    )  # fmt: skip
    return trainer.fit(frame, features="x", label="y")


@contextmanager
def _striking(spark: SparkSession, fault: Fault, *, seed: int) -> Iterator[list[float]]:
    """The training in the body is struck once, some time in one of its middle groups; yields when, once it is so."""
    struck: list[float] = []
    striker = _Striker(spark, fault, random.Random(seed), struck)  # noqa: S311 - no secret
    log = logging.getLogger(_COURSE)
    level = log.level
    log.setLevel(logging.INFO)
    log.addHandler(striker)
    try:
        yield struck
    finally:
        log.removeHandler(striker)
        log.setLevel(level)
        striker.end()


class _Striker(logging.Handler):
    """Hears of every group, and strikes in the time of one after the third."""

    def __init__(self, spark: SparkSession, fault: Fault, chance: random.Random, struck: list[float]) -> None:
        super().__init__()
        self._spark, self._fault, self._chance, self._struck = spark, fault, chance, struck
        self._groups: list[float] = []
        self._timer: threading.Timer | None = None
        self._stopped: int | None = None

    def emit(self, _record: logging.LogRecord) -> None:
        self._groups.append(time.time())
        if len(self._groups) == _GROUPS_BEFORE:
            lasted = self._groups[-1] - self._groups[-2]
            self._timer = threading.Timer(self._chance.random() * lasted, self._strike)
            self._timer.start()

    def end(self) -> None:
        """What was only stopped goes on."""
        if self._timer is not None:
            self._timer.cancel()
        if self._stopped is not None:
            _send(self._stopped, signal.SIGCONT)

    def _strike(self) -> None:
        victim = self._chance.choice(executor_pids(self._spark))
        if self._fault == "rank_kill":
            victim = self._chance.choice(_resident_pids(self._spark))
        self._struck.append(time.time())
        if self._fault == "executor_stop":
            self._stopped = victim
            _send(victim, signal.SIGSTOP)
        else:
            _send(victim, signal.SIGKILL)


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # it has ended meanwhile
        os.kill(pid, number)


def executor_pids(spark: SparkSession) -> list[int]:
    """Of this application: their bridges told them."""
    return [int(one["pid"]) for one in DriverSide(spark.sparkContext).told().values()]


def _resident_pids(spark: SparkSession) -> list[int]:
    """Of this application: known by the directory that their environment names."""
    home = spark.sparkContext.getConf().get("spark.local.dir", "")
    found: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                is_resident = _RESIDENT in (entry / "cmdline").read_bytes().split(b"\0")
                if is_resident and f"SPARK_LOCAL_DIRS={home}".encode() in (entry / "environ").read_bytes():
                    found[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue  # it has ended, or is another user's
    return [pid for pid, parent in found.items() if parent not in found]  # standbys are children


def await_executors(spark: SparkSession, count: int) -> None:
    """Until Spark has replaced those that died."""
    driver, paused = DriverSide(spark.sparkContext), threading.Event()
    deadline = Deadline.after(_REPLACED_S)
    while len(driver.bridges()) < count:
        if deadline.passed:
            raise MizzleError(f"Spark has not replaced an executor in {_REPLACED_S:g} s: see its log")
        paused.wait(0.05)
