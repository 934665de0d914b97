from __future__ import annotations

import pytest

from mizzle.errors import CollectiveTimeout, CorruptBlock, PeerLost
from mizzle.spark.recovery import Faults, await_verdict


def test_a_rank_that_is_lost_again_and_again_ends_the_run_with_the_cause() -> None:
    faults, lost = Faults("r" * 32), PeerLost(2, "its process ended: out of memory")
    faults.count(lost)
    faults.count(lost)
    with pytest.raises(PeerLost, match="out of memory"):
        faults.count(lost)


def test_faults_between_which_the_run_got_on_do_not_add_up() -> None:
    faults = Faults("r" * 32)
    for _ in range(5):
        faults.count(PeerLost(2, "gone"))
        faults.count(PeerLost(2, "gone"))
        faults.forget()


def test_many_different_faults_end_it_as_well() -> None:
    faults = Faults("r" * 32)
    for rank in range(9):
        faults.count(PeerLost(rank, "gone"))
    with pytest.raises(CorruptBlock):
        faults.count(CorruptBlock("bits"))


def test_a_deadline_that_passes_twice_ends_it() -> None:
    faults = Faults("r" * 32)
    faults.count(CollectiveTimeout("late"))
    with pytest.raises(CollectiveTimeout):
        faults.count(CollectiveTimeout("late"))


def test_a_fault_is_recorded_when_the_run_is_over_it_with_what_was_seen_first() -> None:
    faults = Faults("r" * 32)
    faults.over(3, 2)
    assert not faults.survived
    faults.notice("rank 1 is lost")
    faults.notice("nothing works")
    faults.over(8, 3)
    faults.over(9, 3)
    (record,) = faults.survived
    assert (record.boundary, record.cause, record.ranks) == (8, "rank 1 is lost", 3)
    assert record.noticed_at <= record.resumed_at


def test_a_verdict_comes_as_soon_as_somebody_is_known_to_be_gone() -> None:
    looks = iter([{"1", "2"}, {"1", "2"}, {"2"}])
    await_verdict(["1", "2"], lambda: next(looks))
    assert next(looks, None) is None
    await_verdict([], lambda: pytest.fail("nobody is suspected"))
