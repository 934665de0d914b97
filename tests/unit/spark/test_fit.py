"""Which checkpoint a fit goes back to, and when it no longer does: real checkpoints, without ranks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mizzle.errors import CheckpointError, MizzleError, StateLost
from mizzle.spark.fit import _Fit
from mizzle.spark.origin import Origin
from mizzle.spark.saving import Saving
from unit.spark.saved import save, saving


def fit_with(one: Saving, *, is_restoring: bool = True) -> _Fit:
    """One whose ranks only hear where they go back to."""
    runner: Any = SimpleNamespace(is_restoring=is_restoring, go_back=lambda _since, _cause: None)
    plan: Any = SimpleNamespace(saving=one)
    progress: Any = None
    return _Fit(plan, runner, lambda: progress, progress)


def newest(one: Saving) -> Origin:
    found = one.newest()
    assert found is not None
    return found


def after(fit: _Fit, origin: Origin, *errors: MizzleError) -> list[int]:
    """The iterations that it goes back to, one after the other."""
    found = []
    for error in errors:
        origin = fit._return(origin, error)
        found.append(origin.iteration)
    return found


def test_the_only_whole_one_of_many_checkpoints_is_found(tmp_path: Path) -> None:
    one = saving(tmp_path, keep=9)
    for iteration in (5, 10, 15, 20, 25, 30):
        save(one, iteration)
    fit, damaged = fit_with(one), CheckpointError("part-00000: SHA-256")
    assert after(fit, newest(one), *[damaged] * 5) == [25, 20, 15, 10, 5]
    with pytest.raises(CheckpointError, match="none of the 6 checkpoints"):
        fit._return(Origin(5, checkpoint=one.store.listed()[-1].name), damaged)


def test_states_that_are_lost_again_and_again_behind_one_checkpoint_end_the_run(tmp_path: Path) -> None:
    one = saving(tmp_path)
    save(one, 5)
    fit, lost = fit_with(one), StateLost("the state of rank 0")
    assert after(fit, newest(one), lost, lost, lost) == [5, 5, 5]
    with pytest.raises(StateLost, match="rank 0"):
        fit._return(newest(one), lost)


def test_damaged_checkpoints_do_not_wipe_out_how_often_states_were_lost(tmp_path: Path) -> None:
    one = saving(tmp_path, keep=9)
    for iteration in (5, 10):
        save(one, iteration)
    fit, lost = fit_with(one), StateLost("the state of rank 0")
    assert after(fit, newest(one), lost, lost, CheckpointError("damaged"), lost) == [10, 10, 5, 5]
    with pytest.raises(StateLost):
        fit._return(newest(one), lost)


def test_what_is_wrong_with_a_checkpoint_later_on_is_no_reason_to_refuse_the_one_gone_on_from(tmp_path: Path) -> None:
    one = saving(tmp_path)
    save(one, 5)
    with pytest.raises(CheckpointError, match="of something else"):
        fit_with(one, is_restoring=False)._return(newest(one), CheckpointError("of something else"))
    assert newest(one).iteration == 5
