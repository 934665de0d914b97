from __future__ import annotations

import json
import math
import pickle
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mizzle.training.evaluate import Evaluation
from mizzle.training.group_metrics import MAX_STRAGGLERS, GroupMetrics
from mizzle.training.history import GroupRecord, TrainingHistory
from mizzle.training.loss_log import Dropped, LossLog
from mizzle.training.order import EpochOrder
from mizzle.training.spec import MAX_METRIC_NAME_BYTES, MAX_METRICS, IterationMetrics
from mizzle.training.stragglers import Straggler

NAN = float("nan")
ORDER = EpochOrder(num_rows_total=15, num_shards=2, global_batch_size=10, seed=0)  # iterations of 10 and 5 rows


def metrics(iteration: int, loss: float, rows: int, *, skipped: bool = False) -> IterationMetrics:
    return IterationMetrics(iteration, loss, rows, 1.0, 0.5, 0.25, skipped, hidden_s=0.125)


SEEN = [metrics(0, 2.0, 10), metrics(1, 5.0, 5), metrics(2, NAN, 10, skipped=True), metrics(3, 1.0, 5)]


def record_of(ranks: list[GroupMetrics], **changed: Any) -> GroupRecord:
    known: dict[str, Any] = {
        "number": 0,
        "first": 0,
        "epoch": 0,
        "cut": "end",
        "wall_s": 10.0,
        "driver_cpu_s": 0.5,
        "decision": "stays",
    }
    return GroupRecord.of(ranks, **(known | changed))


def test_a_group_is_added_up_from_its_iterations() -> None:
    group = GroupMetrics.of(SEEN, evaluate_s=0.1, boundary_s=0.2, span_s=8.0)
    assert (group.iterations, group.rows, group.skipped, group.last_loss) == (4, 30, 1, 1.0)
    assert group.mean_loss == (2.0 * 10 + 5.0 * 5 + 1.0 * 5) / 20
    assert (group.compute_s, group.exchange_s, group.update_s, group.iterating_s) == (4.0, 2.0, 1.0, 7.0)
    assert group.hidden_s == 0.5, "beside the others: it is part of compute"
    assert (group.evaluate_s, group.boundary_s, group.span_s) == (0.1, 0.2, 8.0)
    assert math.isnan(GroupMetrics.of(SEEN[2:3]).mean_loss)


NUMBERS = st.floats()
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)  # at most 4 bytes each
EVALUATIONS = st.builds(
    Evaluation, st.integers(0, 2**40), st.integers(0, 2**20), st.integers(1, 2**40), NUMBERS,
    st.dictionaries(NAMES, NUMBERS, max_size=8),
)  # fmt: skip

STRAGGLERS = st.builds(
    Straggler, st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.floats(width=32)
)


@settings(deadline=None)
@given(
    st.tuples(*[NUMBERS] * 9), st.integers(1, 10**6), st.none() | EVALUATIONS,
    st.lists(STRAGGLERS, max_size=MAX_STRAGGLERS).map(tuple),
)  # fmt: skip
def test_metrics_of_a_group_come_back_as_they_were_in_less_than_600_bytes(
    numbers: tuple[float, ...], count: int, evaluation: Evaluation | None, stragglers: tuple[Straggler, ...]
) -> None:
    names = (
        "last_loss", "mean_loss", "compute_s", "exchange_s", "update_s", "hidden_s", "evaluate_s", "boundary_s",
        "span_s",
    )  # fmt: skip
    given_: dict[str, Any] = dict(zip(names, numbers, strict=True))
    group = GroupMetrics(
        iterations=count, rows=count * 2**20, skipped=count // 2, evaluation=evaluation, stragglers=stragglers,
        dropped_shards=count, dropped_rows=count * 2**20, **given_,
    )  # fmt: skip
    assert len(group.pack()) < 600
    assert repr(GroupMetrics.unpack(group.pack())) == repr(group)


def test_the_longest_metrics_that_a_spec_allows_stay_below_a_task_result_of_1_kb() -> None:
    names = [chr(ord("a") + number) * MAX_METRIC_NAME_BYTES for number in range(MAX_METRICS)]
    slow = [Straggler(rank, 5, 3, 2.5) for rank in range(9)]
    evaluation = Evaluation(3, 1, 10, 0.5, dict.fromkeys(names, 0.5))
    group = GroupMetrics.of(SEEN, evaluation=evaluation, stragglers=slow)
    assert group.stragglers == tuple(slow[:MAX_STRAGGLERS])
    assert len(group.pack()) < 850
    assert GroupMetrics.unpack(group.pack()).evaluation == group.evaluation


def test_a_record_says_how_long_the_ranks_waited_for_the_driver_and_for_each_other() -> None:
    ranks = [GroupMetrics.of(SEEN, span_s=8.0, boundary_s=0.5), GroupMetrics.of(SEEN, span_s=9.5, evaluate_s=1.0)]
    record = record_of(ranks, first=20)
    assert (record.size, record.rows, record.stop, record.loss) == (4, 30, 24, 1.0)
    assert (record.launch_s, record.wait_s) == (0.5, 1.5)
    assert (record.compute_s, record.exchange_s, record.update_s, record.hidden_s) == (4.0, 2.0, 1.0, 0.5)
    assert (record.evaluate_s, record.boundary_s) == (0.5, 0.25)
    assert record.scheduling_s == 10.0 - 7.0 - 0.5
    assert record_of(ranks, wall_s=9.0).launch_s == 0.0, "clocks of two machines never make a time negative"
    assert record_of(ranks, wall_s=7.0).scheduling_s == 0.0


def filled() -> TrainingHistory:
    history = TrainingHistory()
    assert math.isnan(history.last_loss)
    assert history.iterations == 0
    first = [GroupMetrics.of(SEEN[:3], span_s=5.5, evaluation=Evaluation(2, 1, 6, NAN, {"accuracy": NAN}))] * 2
    history.add_group(record_of(first, wall_s=6.0), first)
    assert math.isnan(history.last_loss)
    second = [GroupMetrics.of(SEEN[3:], boundary_s=0.125)] * 2
    history.add_group(record_of(second, number=1, first=3, epoch=1, wall_s=2.0), second)
    return history


def log() -> LossLog:
    kept = LossLog()
    for one in SEEN:
        kept.append(one.iteration, one.loss, skipped=one.skipped)
    return kept


def test_history_follows_the_groups_and_is_completed_from_the_log() -> None:
    history = filled()
    assert (history.iterations, history.last_loss, history.losses, history.epochs) == (4, 1.0, [], [])
    assert [(group.first, group.stop) for group in history.groups] == [(0, 3), (3, 4)]
    assert [found.iteration for found in history.evaluations] == [2]
    time = history.time
    assert (time.compute_s, time.exchange_s, time.update_s, time.scheduling_s) == (4.0, 2.0, 1.0, 1.0)
    assert (time.boundary_s, time.evaluate_s, time.hidden_s) == (0.125, 0.0, 0.5)
    assert time.hidden_fraction == 0.5 / 2.5
    assert TrainingHistory().time.hidden_fraction == 0.0
    for _ in range(2):  # again: the same
        history.complete(log(), ORDER)
        assert repr(history.losses) == "[2.0, 5.0, nan, 1.0]"
        assert history.skipped == [2]
        assert [(e.epoch, e.rows, e.loss, e.iterations) for e in history.epochs] == [(0, 15, 3.0, 2), (1, 5, 1.0, 2)]


def test_rows_that_were_dropped_are_in_no_epoch() -> None:
    kept = LossLog()
    kept.append(0, 2.0, skipped=False, dropped_shards=1, dropped_rows=5)
    kept.append(1, 5.0, skipped=False)
    kept.append(2, NAN, skipped=True, dropped_shards=2, dropped_rows=10)
    history = TrainingHistory()
    history.complete(kept, ORDER)
    assert history.dropped == [Dropped(0, 1, 5), Dropped(2, 2, 10)]
    first, second = history.epochs
    assert (first.rows, first.loss, second.rows) == (10, (2.0 * 5 + 5.0 * 5) / 10, 0)
    assert json.loads(json.dumps(history.as_dict()))["dropped"][0] == {"iteration": 0, "shards": 1, "rows": 5}


def test_an_epoch_whose_iterations_were_all_skipped_has_no_loss() -> None:
    kept = LossLog()
    kept.append(0, 7.0, skipped=True)
    history = TrainingHistory()
    history.complete(kept, ORDER)
    assert repr(history.epochs) == "[EpochSummary(epoch=0, rows=0, loss=nan, iterations=1)]"
    assert (history.iterations, history.last_loss) == (1, 7.0)


def test_history_goes_to_json_and_through_pickle() -> None:
    history = filled()
    history.complete(log(), ORDER)
    found = json.loads(json.dumps(history.as_dict(), allow_nan=False))
    assert found["losses"] == [2.0, 5.0, None, 1.0]
    assert [group["loss"] for group in found["groups"]] == [None, 1.0]
    assert found["evaluations"] == [
        {"iteration": 2, "epoch": 1, "rows": 6, "loss": None, "metrics": {"accuracy": None}}
    ]
    assert pickle.loads(pickle.dumps(history)).epochs == history.epochs  # noqa: S301 - our own bytes


@pytest.mark.parametrize(
    "changed", [{"last_loss": 2.1}, {"dropped_rows": 4}, {"evaluation": Evaluation(0, 0, 1, 0.5, {})}]
)
def test_history_refuses_ranks_that_differ(changed: dict[str, Any]) -> None:
    one = GroupMetrics.of(SEEN)
    ranks = [one, replace(one, **changed)]
    with pytest.raises(AssertionError, match=r"ranks differ in group 3, iterations 0\.\."):
        TrainingHistory().add_group(record_of(ranks, number=3), ranks)


def test_a_log_that_begins_later_is_refused() -> None:
    kept = LossLog()
    kept.append(3, 1.0, skipped=False)
    with pytest.raises(AssertionError, match="the log begins with iteration 3"):
        TrainingHistory().complete(kept, ORDER)
