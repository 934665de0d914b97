"""The training benchmark without Spark: plan, turns, records, what plain PyTorch measures, what is verified."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import nn
from torch.nn import functional

from mizzle.bench.application import Settings
from mizzle.bench.training import TrainingPlan, TrainingRecord, bench_training
from mizzle.bench.training_plain import (
    PlainSeries,
    TrainingSamples,
    Workload,
    checksum,
    combine,
    row,
    train_alone,
)
from mizzle.bench.training_systems import (
    GroupPlan,
    MakeRows,
    ReadingTask,
    TrainingTask,
    WeightsChecksum,
    read_s,
    record_batch,
    samples_of,
)
from mizzle.errors import ConfigError
from mizzle.spark.trainer import TrainingResult
from mizzle.training.evaluate import Evaluation
from mizzle.training.history import GroupRecord, TrainingHistory


def tiny() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 1000))


TINY = Workload("tiny", tiny, functional.cross_entropy, (2, 3), group_size=4)
LARGE = Workload("large", lambda: nn.Linear(10_000, 25_000, bias=False), functional.cross_entropy, (10_000,), 4)


def plan(**changes: Any) -> TrainingPlan:
    given: dict[str, Any] = {
        "workloads": (TINY,), "workers": (2, 4), "systems": ("single", "torch_distributor", "mizzle"), "batch": 4,
        "threads": 1, "repeats": 5, "warmup": 1, "rounds": 2,
    }  # fmt: skip
    return TrainingPlan(**(given | changes))


SECONDS = {"single": 3.0, "torch_distributor": 8.0, "mizzle": 4.0}


class Applications:
    """Instead of Spark: notes who ran what; an iteration takes 3 s alone, 8 s by DDP, 4 s by mizzle."""

    def __init__(self, *, finite: bool = True, agreed: bool = True) -> None:
        self.settings: list[Settings] = []
        self.ran: list[tuple[str, int, int]] = []
        self.finite, self.agreed = finite, agreed

    @contextmanager
    def start(self, settings: Settings) -> Iterator[Applications]:
        self.settings.append(settings)
        yield self

    def ask(self, question: object, *, within_s: float) -> Any:
        assert within_s > 60
        if isinstance(question, ReadingTask):
            return 0.25
        assert isinstance(question, TrainingTask)
        assert question.ranks == self.settings[-1].workers
        self.ran.append((question.system, question.ranks, question.series.repeats))
        seconds = [SECONDS[question.system]] * question.series.repeats
        of_mizzle = question.system == "mizzle"
        return TrainingSamples(
            seconds, [2.0], [1.0], [0.5], finite=self.finite, agreed=self.agreed or not of_mizzle
        )  # fmt: skip


def test_systems_take_turns_and_one_process_alone_is_measured_once() -> None:
    applications = Applications()
    bench_training(plan(), applications.start)
    assert applications.ran == [
        ("single", 2, 2), ("torch_distributor", 2, 2), ("mizzle", 2, 2),
        ("mizzle", 2, 3), ("torch_distributor", 2, 3), ("single", 2, 3),
        ("torch_distributor", 4, 2), ("mizzle", 4, 2),
        ("mizzle", 4, 3), ("torch_distributor", 4, 3),
    ]  # fmt: skip


def test_a_record_says_how_many_rows_a_second_all_ranks_had() -> None:
    result = bench_training(plan(workers=(2,)), Applications().start)
    assert [record.as_dict() for record in result.records] == [
        {"system": system, "model": "tiny", "workers": workers, "iteration_s": seconds, "samples_per_s": rate,
         "compute_s": 2.0, "exchange_s": 1.0, "hidden_s": 0.5}
        for system, workers, seconds, rate in (
            ("single", 1, 3.0, 4 / 3), ("torch_distributor", 2, 8.0, 1.0), ("mizzle", 2, 4.0, 2.0),
        )
    ]  # fmt: skip
    assert result.read_s == {"tiny": 0.25}
    assert result.wrong == []


def test_a_record_has_the_median_over_all_rounds() -> None:
    rounds = [TrainingSamples([1.0, 9.0], [1.0], [0.0], [0.0], finite=True, agreed=True),
              TrainingSamples([2.0], [4.0, 2.0], [0.0], [0.0], finite=True, agreed=True)]  # fmt: skip
    record = TrainingRecord.of("mizzle", TINY, 2, 4, rounds)
    assert (record.iteration_s, record.samples_per_s, record.compute_s) == (2.0, 4.0, 2.0)


def test_losses_that_are_not_finite_and_ranks_that_differ_are_told() -> None:
    broken = bench_training(plan(workers=(2,), systems=("mizzle",)), Applications(finite=False).start)
    assert broken.wrong == ["mizzle with tiny, 2 workers: losses that are not finite"]
    apart = bench_training(plan(workers=(2,)), Applications(agreed=False).start)
    assert apart.wrong == ["mizzle with tiny, 2 workers: ranks with different weights"]


@pytest.mark.parametrize("what", ["workloads", "workers", "systems"])
def test_a_plan_of_nothing_is_refused(what: str) -> None:
    with pytest.raises(ConfigError, match="nothing to measure"):
        plan(**{what: ()})


def test_heaps_have_room_for_the_largest_model_and_counting_it_makes_none() -> None:
    settings = plan(workloads=(TINY, LARGE)).settings(2)
    assert settings.executor_mb >= 2 * 1000
    assert settings.conf["spark.executor.memory"] == f"{settings.executor_mb}m"
    assert settings.conf["spark.driver.memory"] == f"{settings.driver_mb}m"
    assert settings.master == f"local-cluster[2,1,{settings.executor_mb}]"


def test_plain_pytorch_alone_is_timed_iteration_by_iteration_and_changes_no_random_numbers_of_the_caller() -> None:
    series, threads = PlainSeries(TINY, batch=3, threads=1, warmup=1, repeats=6), torch.get_num_threads()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    try:
        samples = train_alone(series)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(samples.iteration_s) == len(samples.compute_s) == 6
    assert all(0 < part < whole for part, whole in zip(samples.compute_s, samples.iteration_s, strict=True))
    assert samples.exchange_s == samples.hidden_s == [0.0] * 6
    assert samples.finite
    assert samples.agreed


def test_an_iteration_of_ddp_takes_as_long_as_its_slowest_rank_and_exchange_is_what_it_adds() -> None:
    first = ([1.0, 5.0], [0.9, 4.0], [0.5, 0.5, 0.5], 0.2, 7, True)
    second = ([2.0, 3.0], [1.9, 2.0], [1.5, 1.5, 1.5], 0.4, 7, True)
    samples = combine([first, second])
    assert samples.iteration_s == [2.0, 5.0]
    assert samples.compute_s == [1.0, 1.0, 1.0]
    assert samples.exchange_s == pytest.approx([0.4, 2.0])
    assert samples.hidden_s == pytest.approx([0.3])
    assert samples.finite
    assert samples.agreed
    other = ([2.0, 3.0], [1.9, 2.0], [1.5, 1.5, 1.5], 0.4, 8, False)
    assert not combine([first, other]).agreed
    assert not combine([first, other]).finite


def test_the_checksum_sees_one_bit() -> None:
    model, twin = TINY.fresh_model(), TINY.fresh_model()
    assert checksum(model) == checksum(twin)
    with torch.no_grad():
        next(twin.parameters()).view(torch.int32)[3, 2] ^= 1
    assert checksum(model) != checksum(twin)


def test_the_metric_of_weights_travels_with_its_model_and_sees_what_is_learnt() -> None:
    model = TINY.fresh_model()
    copied, metric = pickle.loads(pickle.dumps((model, WeightsChecksum(model))))  # noqa: S301 - made here
    assert metric(None, None) == checksum(model)
    with torch.no_grad():
        next(copied.parameters()).add_(1)
    assert metric(None, None) == checksum(copied) != checksum(model)


@pytest.mark.parametrize(("warmup", "repeats", "groups"), [(0, 1, (1, 1)), (4, 4, (1, 1)), (5, 9, (2, 3))])
def test_mizzle_does_whole_groups_and_one_iteration_more(warmup: int, repeats: int, groups: tuple[int, int]) -> None:
    found = GroupPlan.of(PlainSeries(TINY, 4, 1, warmup, repeats))
    assert (found.size, found.warmup, found.timed) == (4, *groups)
    assert found.iterations == sum(groups) * 4 + 1


def fitted(model: nn.Module, mean_checksum: float) -> TrainingResult:
    """A fit of one warm-up group, two timed ones and the last iteration, each slower than the one before."""
    history = TrainingHistory(losses=[1.0] * 13, evaluations=[Evaluation(12, 3, 2, 1.0, {"weights": mean_checksum})])
    for number, size in enumerate((4, 4, 4, 1)):
        history.groups.append(GroupRecord(
            number=number, first=4 * number, size=size, epoch=number, cut="", rows=8, loss=1.0,
            wall_s=4.0 + 4 * number, launch_s=0, wait_s=0, compute_s=2.0 + 4 * number, exchange_s=1.0, hidden_s=0.5,
            update_s=0, evaluate_s=0, boundary_s=0, driver_cpu_s=0, decision="",
        ))  # fmt: skip
    return TrainingResult(model, history, {})


def test_the_samples_of_a_fit_are_its_timed_groups_in_seconds_per_iteration() -> None:
    model = TINY.fresh_model()
    samples = samples_of(fitted(model, float(checksum(model))), GroupPlan(4, 1, 2))
    assert samples.iteration_s == [2.0, 3.0]
    assert samples.compute_s == [1.5, 2.5]
    assert samples.exchange_s == [0.25, 0.25]
    assert samples.hidden_s == [0.125, 0.125]
    assert samples.finite
    assert samples.agreed


def test_a_mean_checksum_that_is_not_the_returned_models_means_that_ranks_differ() -> None:
    model = TINY.fresh_model()
    assert not samples_of(fitted(model, checksum(model) + 0.5), GroupPlan(4, 1, 2)).agreed


def test_rows_depend_on_their_number_alone_and_keep_their_order() -> None:
    numbers = pa.RecordBatch.from_arrays([pa.array(range(20))], names=["id"])
    made = pa.Table.from_batches(list(MakeRows(TINY)([numbers])))
    assert made.column("image").to_pylist()[17] == row(TINY, 17)[0].ravel().tolist()
    assert made.column("label").to_pylist() == [row(TINY, number)[1] for number in range(20)]
    fixed = record_batch(TINY, [17], fixed=True)
    assert fixed.column(0).type.list_size == 6
    assert fixed.column(0).to_pylist() == made.column("image").to_pylist()[17:18]


def test_reading_is_timed_on_a_shard_file(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        assert read_s(PlainSeries(TINY, batch=4, threads=1, warmup=0, repeats=1), tmp_path) > 0
    finally:
        torch.set_num_threads(threads)
    assert [path.name for path in tmp_path.iterdir()] == ["shard.arrow"]
