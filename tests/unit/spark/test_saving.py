"""When checkpoints are wanted, counted and given up: the driver's side, with ranks that write real parts."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mizzle.blocks.deadline import Deadline
from mizzle.config import Checkpoints
from mizzle.errors import CheckpointError, ConfigError
from mizzle.spark.origin import Origin, open_store, shards_of
from mizzle.spark.ranks.part_writer import PartWriter, Progress, Told, Wanted
from mizzle.training.checkpoint import CheckpointStore
from mizzle.training.evaluate import Evaluation
from mizzle.training.manifest import EVALUATIONS as EVALUATIONS_FILE
from mizzle.training.manifest import Manifest
from unit.spark.saved import EVALUATIONS, FIXED, RANKS, SPEC, model_with, owned, save, saving, state, written


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


def fixed_of(model: nn.Module) -> set[float]:
    return {value for one in model.parameters() if not one.requires_grad for value in one.flatten().tolist()}


def test_what_is_not_trained_comes_from_the_checkpoint(tmp_path: Path) -> None:
    name = save(saving(tmp_path), 5)
    model = model_with(-1.5)
    one = saving(tmp_path, model)
    assert one.newest() is not None
    assert fixed_of(model) == {FIXED}
    again = save(one, 10)
    assert one.store.read(again).frozen == one.store.read(name).frozen, "the next one has them too"


def test_a_run_whose_ranks_have_their_model_takes_no_checkpoint_with_another_one(tmp_path: Path) -> None:
    save(saving(tmp_path), 5)
    other = save(saving(tmp_path, model_with(-1.5)), 10)  # as nobody does: it never looked for the one before
    one = saving(tmp_path)
    newest = one.newest()
    assert newest is not None
    assert newest.checkpoint == other
    one.refuse(other, CheckpointError("damaged"))
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints"):
        one.newest()


def test_another_model_of_what_is_not_trained_is_named(tmp_path: Path) -> None:
    save(saving(tmp_path), 5)
    with pytest.raises(ConfigError, match=r"float32 \(2,\) in the checkpoint and float64 \(2,\) in the model"):
        saving(tmp_path, model_with(FIXED).apply(_double_if_fixed)).newest()
    longer = model_with(FIXED).append(nn.Linear(2, 2).requires_grad_(requires_grad=False))
    with pytest.raises(ConfigError, match=r"'2.bias', '2.weight' of its state_dict\(\) are not the same"):
        saving(tmp_path, longer).newest()
    none = nn.Sequential(model_with(FIXED)[0])
    with pytest.raises(ConfigError, match=r"'1.bias', '1.weight' of its state_dict\(\) are not the same"):
        saving(tmp_path, none).newest()


def _double_if_fixed(module: nn.Module) -> None:
    if isinstance(module, nn.Linear) and not module.weight.requires_grad:
        module.double()


class Own(torch.optim.SGD):
    """Nobody knows whether it is elementwise: it runs whole."""


@pytest.mark.parametrize(
    ("optimizer", "told"),
    [
        (torch.optim.Adam, "torch.optim.sgd.SGD, sharded' there, 'torch.optim.adam.Adam, sharded' here"),
        (Own, "Own, whole' here"),
        (partial(torch.optim.SGD, fused=True), "SGD, sharded' there, 'torch.optim.sgd.SGD, whole' here"),
    ],
)
def test_another_optimizer_is_refused_by_name(tmp_path: Path, optimizer: Any, told: str) -> None:
    save(saving(tmp_path), 5)
    with pytest.raises(ConfigError, match=f"optimizer '.*{told}.*Make them equal"):
        saving(tmp_path, spec=replace(SPEC, optimizer=lambda groups: optimizer(groups, lr=0.1))).newest()


def test_the_same_optimizer_may_have_other_hyper_parameters(tmp_path: Path) -> None:
    save(saving(tmp_path), 5)
    spec = replace(SPEC, optimizer=lambda groups: torch.optim.SGD(groups, lr=0.5, momentum=0.9))
    assert saving(tmp_path, spec=spec).newest() is not None


def test_an_option_with_which_the_optimizer_keeps_more_is_refused_by_name(tmp_path: Path) -> None:
    plain = replace(SPEC, optimizer=torch.optim.AdamW)
    save(saving(tmp_path, spec=plain), 5)
    more = replace(SPEC, optimizer=lambda groups: torch.optim.AdamW(groups, amsgrad=True))
    with pytest.raises(ConfigError, match=r"AdamW, sharded' there, '.*AdamW, sharded, amsgrad' here"):
        saving(tmp_path, spec=more).newest()


def test_another_model_is_named_by_what_differs(tmp_path: Path) -> None:
    save(saving(tmp_path), 5)
    other = model_with(FIXED)
    other[0] = nn.Linear(4, 3)
    with pytest.raises(
        ConfigError, match=r"parameter '0.bias' of shape \(2,\) there, of shape \(3,\) here; .*Make them"
    ):
        saving(tmp_path, other).newest()


def test_what_was_given_up_is_removed_before_the_next_one_begins(tmp_path: Path) -> None:
    one = saving(tmp_path)
    for iteration in (5, 10, 15, 20):
        wanted = one.due(Origin(iteration), 0)
        assert wanted is not None
        assert [path.name for path in tmp_path.iterdir()] == [wanted.name]
        one.take([*written(one.store, wanted, iteration)[1:], Told(iteration, Progress.FAILED, why="no room")], 0)
    assert [record.fault for record in one.records] == ["no room"] * 4
    name = save(saving(tmp_path), 25)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_cannot_be_removed_keeps_no_checkpoint_from_being_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError("of a library that nobody knows")

    one = saving(tmp_path)
    monkeypatch.setattr(CheckpointStore, "sweep", refused)
    save(one, 5)
    assert one.records[0].fault == ""


def test_a_part_that_hangs_costs_the_checkpoints_until_its_time_is_over(tmp_path: Path) -> None:
    one = saving(tmp_path, timeout_s=60)
    assert one.due(Origin(5), 0) is not None
    assert one.due(Origin(10), 0) is None
    one = saving(tmp_path, timeout_s=1e-9)
    assert one.due(Origin(5), 0) is not None
    wanted = one.due(Origin(10), 0)
    assert wanted is not None
    assert "timeout_s" in one.records[0].fault
    one.take([Told(5, Progress.UNDER_WAY), Told(5, Progress.UNDER_WAY)], 0)
    assert "ranks were replaced" in one.records[1].fault
    assert [path.name for path in tmp_path.iterdir()] == [wanted.name]


def test_a_commit_that_hangs_is_given_up_and_its_files_stay_until_it_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go_on, real = threading.Event(), threading.Event(), CheckpointStore.commit

    def hangs_once(store: CheckpointStore, manifest: Manifest) -> None:
        if manifest.iteration == 5:
            reached.set()
            assert go_on.wait(20)
        real(store, manifest)

    monkeypatch.setattr(CheckpointStore, "commit", hangs_once)
    one = saving(tmp_path, timeout_s=1e-9)
    first = one.due(Origin(5), 0)
    assert first is not None
    one.take(written(one.store, first, 5), generation=0)
    assert reached.wait(20)
    second = one.due(Origin(10), 0)
    assert second is not None
    assert "timeout_s" in one.records[0].fault
    assert len(list((tmp_path / first.name).iterdir())) == RANKS + 1
    told = written(one.store, second, 10)
    hanging = one._given_up[0].commit
    assert hanging is not None
    go_on.set()
    hanging.result(20)
    assert one.store.newest_valid() is not None, "it is whole, though late"
    one.take(told, generation=0)
    assert one._save is not None
    assert one._save.commit is not None
    one._save.commit.result(20)  # what came late has left it alone


def test_as_many_evaluations_as_a_long_training_has_are_saved_and_found(tmp_path: Path) -> None:
    evaluations = tuple(Evaluation(at, 0, 37, 1 / (at + 1), {"accuracy": 0.1 * at}) for at in range(60_000))
    one = saving(tmp_path)
    name = save(one, 5, evaluations=evaluations)
    assert one.records[0].fault == ""
    assert one.store.read(name).evaluations is not None
    again = saving(tmp_path).newest()
    assert again is not None
    assert again.evaluations == evaluations


@pytest.mark.parametrize("content", [b"", bytes(5000)])
def test_a_checkpoint_whose_evaluations_are_damaged_is_passed_over(tmp_path: Path, content: bytes) -> None:
    one = saving(tmp_path)
    old, new = (save(one, iteration, evaluations=EVALUATIONS) for iteration in (5, 10))
    (tmp_path / new / EVALUATIONS_FILE).write_bytes(content)
    newest = saving(tmp_path).newest()
    assert newest is not None
    assert newest.checkpoint == old


@pytest.mark.parametrize("shards", [10**9, 9, 0, -1, True, 2.0, "2", None])
def test_a_number_of_shards_that_no_training_on_these_rows_has_is_refused(tmp_path: Path, shards: object) -> None:
    one = saving(tmp_path)
    one._trained["shards"] = shards
    name = save(one, 5)
    with pytest.raises(CheckpointError, match=f"{name} is of a training on {shards} shards, the DataFrame has 8 rows"):
        shards_of(one.store, SPEC.num_rows)


def test_without_checkpoints_nobody_says_how_many_shards(tmp_path: Path) -> None:
    assert shards_of(CheckpointStore(str(tmp_path)), SPEC.num_rows) is None


def test_storage_that_hangs_holds_a_training_up_for_a_while_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mizzle.spark.saving._MAKE_S", 0.2)
    one, hangs = saving(tmp_path), threading.Event()
    begin = one.store.begin

    def hung(iteration: int) -> str:
        assert hangs.wait(30)
        return begin(iteration)

    monkeypatch.setattr(one.store, "begin", hung)
    assert one.due(Origin(5), 0) is None
    assert "has not answered for 0.2 s" in one.records[-1].fault
    monkeypatch.setattr("mizzle.spark.saving._MAKE_S", 60.0)
    assert one.due(Origin(10), 0) is None
    assert "still does not answer" in one.records[-1].fault
    hangs.set()
    assert one._making is not None
    one._making.result(10)
    save(one, 15)
    assert one.records[-1].fault == ""
