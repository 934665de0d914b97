"""When checkpoints are wanted, counted and given up: the driver's side, with ranks that write real parts."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mizzle.blocks.deadline import Deadline
from mizzle.config import Checkpoints
from mizzle.errors import CheckpointError, ConfigError
from mizzle.spark.origin import Origin, open_store, shards_of
from mizzle.spark.part_writer import PartWriter, Progress, Told, Wanted
from mizzle.training.checkpoint import CheckpointStore
from unit.spark.saved import EVALUATIONS, RANKS, SPEC, owned, save, saving, state, written


def test_a_checkpoint_counts_when_all_ranks_have_written(tmp_path: Path) -> None:
    one = saving(tmp_path)
    wanted = one.due(Origin(5), 0)
    assert wanted is not None
    told = written(one.store, wanted, 5)
    one.take([told[0], Told(5, Progress.UNDER_WAY)], generation=0)
    assert one.due(Origin(7), 0) is None
    assert one.newest() is None
    one.take(told, generation=0)
    one.await_commit()
    assert [(record.iteration, record.fault) for record in one.records] == [(5, "")]
    assert one.store.newest_valid() is not None


def test_it_keeps_what_the_driver_goes_on_with_bit_for_bit(tmp_path: Path) -> None:
    evaluations = EVALUATIONS
    stopping = {"best": 1e-310, "waited": 2}
    save(saving(tmp_path), 5, groups=3, evaluations=evaluations, stopping=stopping)
    again = saving(tmp_path).newest()
    assert again is not None
    assert replace(again, checkpoint="") == Origin(5, 3, "", evaluations, stopping)
    assert not again.boundary.is_start
    assert shards_of(CheckpointStore(str(tmp_path)), SPEC.num_rows) == SPEC.num_shards


def test_nothing_is_due_off_the_trigger_or_at_the_start(tmp_path: Path) -> None:
    one = saving(tmp_path)
    assert [one.due(Origin(iteration), 0) for iteration in (0, 1, 4, 6)] == [None] * 4


def test_one_checkpoint_is_under_way_at_a_time(tmp_path: Path) -> None:
    one = saving(tmp_path)
    assert one.due(Origin(5), 0) is not None
    assert one.due(Origin(10), 0) is None


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ([Told(5, Progress.WRITTEN), Told()], "ranks were replaced"),
        ([Told(5, Progress.WRITTEN), Told(5, Progress.FAILED, why="no room")], "no room"),
        ([Told(5, Progress.WRITTEN, 10, bytes(32)), Told(5)], "part-00000"),
    ],
)
def test_it_is_given_up_with_its_reason_and_the_next_one_comes(tmp_path: Path, told: list[Told], why: str) -> None:
    one = saving(tmp_path)
    one.due(Origin(5), 1)
    one.take(told, generation=1)
    one.abandon()
    assert why in one.records[0].fault
    assert one.newest() is None
    save(one, 10)
    assert one.records[-1].fault == ""


def test_at_the_end_what_is_missing_is_wanted_once(tmp_path: Path) -> None:
    one = saving(tmp_path)
    save(one, 5)
    assert one.wanted_at_the_end(Origin(5), 0) is None
    wanted = one.wanted_at_the_end(Origin(7), 0)
    assert wanted is not None
    assert wanted[1] == 7
    one.take(written(one.store, *wanted), generation=0)
    assert one.wanted_at_the_end(Origin(7), 0) is None


def test_a_refused_checkpoint_is_not_offered_again(tmp_path: Path) -> None:
    one = saving(tmp_path)
    names = [save(one, iteration) for iteration in (5, 10)]
    newest = one.newest()
    assert newest is not None
    assert newest.checkpoint == names[1]
    one.refuse(names[1], CheckpointError("damaged"))
    newest = one.newest()
    assert newest is not None
    assert newest.checkpoint == names[0]
    one.refuse(names[0], CheckpointError("damaged"))
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints"):
        one.newest()


def test_another_training_is_told_what_differs(tmp_path: Path) -> None:
    save(saving(tmp_path), 5)
    with pytest.raises(ConfigError, match="seed 3 there, 4 here"):
        saving(tmp_path, spec=replace(SPEC, seed=4)).newest()


def test_a_folder_with_checkpoints_is_gone_on_from_or_refused(tmp_path: Path) -> None:
    save(saving(tmp_path), 5)
    with pytest.raises(ConfigError, match="resume='auto'"):
        open_store(Checkpoints(path=tmp_path), "never")


def test_a_place_where_nothing_can_be_written_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file"):
        open_store(Checkpoints(path=tmp_path / "file"), "never")


def test_a_part_is_written_from_memory_that_is_let_go_of_afterwards(tmp_path: Path) -> None:
    store, memory, done = CheckpointStore(str(tmp_path)), state(0), threading.Event()
    writer = PartWriter(store, 0)
    writer.begin(store.begin(5), 5, memoryview(memory), [owned(0)], done.set)
    assert writer.wait(Deadline.after(20)).progress is Progress.WRITTEN
    assert done.wait(5)
    memory.clear()  # nobody looks at it any more


def test_a_part_that_is_there_already_is_not_written_again(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    wanted = Wanted(store.begin(5), 0)
    first = written(store, wanted, 5)
    again = written(store, wanted, 5)
    assert [one.progress for one in first] == [Progress.WRITTEN] * RANKS
    assert [one.progress for one in again] == [Progress.FAILED] * RANKS


class Stalling(CheckpointStore):
    """Storage that takes nothing until it is told to."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.opened = threading.Event()

    def write_part(self, *args: Any, **kwargs: Any) -> Any:
        assert self.opened.wait(20)
        return super().write_part(*args, **kwargs)


def test_a_part_that_takes_too_long_is_told_as_failed_and_costs_nothing_else(tmp_path: Path) -> None:
    store = Stalling(tmp_path)
    writer = PartWriter(store, 0)
    writer.begin(store.begin(5), 5, memoryview(state(0)), [owned(0)], lambda: None)
    told = writer.wait(Deadline.after(0.05))
    assert (told.iteration, told.progress) == (5, Progress.FAILED)
    assert "timeout_s" in told.why
    store.opened.set()


def test_a_part_that_was_given_up_lets_go_of_its_state_alone_and_the_next_one_is_written(tmp_path: Path) -> None:
    store, let_go = Stalling(tmp_path), []
    writer = PartWriter(store, 0)
    writer.begin(store.begin(5), 5, memoryview(state(0)), [owned(0)], lambda: let_go.append(5))
    assert writer.told.progress is Progress.UNDER_WAY
    writer.break_off()
    store.opened.set()
    writer.begin(store.begin(10), 10, memoryview(state(0)), [owned(0)], lambda: let_go.append(10))
    told = writer.wait(Deadline.after(20))
    assert (told.iteration, told.progress) == (10, Progress.WRITTEN)
    assert let_go == [5, 10]


def test_a_part_is_refused_while_the_one_before_hangs(tmp_path: Path) -> None:
    store, let_go = Stalling(tmp_path), []
    writer = PartWriter(store, 0)
    writer.begin(store.begin(5), 5, memoryview(state(0)), [owned(0)], lambda: let_go.append(5))
    writer.break_off()
    writer.begin(store.begin(10), 10, memoryview(state(0)), [owned(0)], lambda: let_go.append(10))
    assert (writer.told.iteration, writer.told.progress) == (10, Progress.FAILED)
    assert let_go == [10]
    store.opened.set()


@pytest.mark.parametrize("error", [CheckpointError("somebody reads it"), RuntimeError("of a library")])
def test_a_checkpoint_counts_though_older_ones_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refused(*_args: object, **_kwargs: object) -> None:
        raise error

    monkeypatch.setattr(CheckpointStore, "retain", refused)
    one = saving(tmp_path)
    save(one, 5)
    assert one.records[0].fault == ""
    assert one.wanted_at_the_end(Origin(5), 0) is None


@pytest.mark.parametrize("error", [OSError("no route"), RuntimeError("of a library that nobody knows")])
def test_storage_that_raises_anything_costs_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(*_args: object, **_kwargs: object) -> None:
        raise error

    one = saving(tmp_path)
    monkeypatch.setattr(CheckpointStore, "commit", broken)
    save(one, 5)
    monkeypatch.setattr(CheckpointStore, "begin", broken)
    assert one.due(Origin(10), 0) is None
    assert [str(error) in record.fault for record in one.records] == [True, True]


def test_what_a_rank_tells_survives_its_bytes() -> None:
    told = Told(7, Progress.WRITTEN, 123, bytes(range(32)), "")
    assert Told.unpack(told.pack()) == told
    failed = Told(7, Progress.FAILED, why="ä" * 200)
    assert len(failed.pack()) < 150
    assert Told.unpack(failed.pack()).progress is Progress.FAILED
