"""The judge is judged: it accepts a good history, and refuses one that breaks any single promise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from chaos.checker import History, Seen, Wait, complaints, recomputed
from chaos.stage import assert_kept

ROWS, SHARDS, PER_EPOCH = 6, 2, 3
ROWS_OF = {(t, s): (s + 2 * t,) for t in range(PER_EPOCH) for s in range(SHARDS)}


def meets(generation: int, first: int, iteration: int, shard: int) -> Seen:
    return Seen(generation, first, iteration, shard, ROWS_OF[iteration % PER_EPOCH, shard])


SEEN = tuple(meets(generation, first, iteration, shard)
             for generation, first, stop in ((0, 0, 2), (1, 2, 4)) for iteration in range(first, stop)
             for shard in range(SHARDS))  # fmt: skip
GOOD = History(
    losses=(3.0, 2.0, 1.0, 0.5), model={"w": "00ff"}, num_rows=ROWS, num_shards=SHARDS, per_epoch=PER_EPOCH,
    committed=((0, 0, 2), (1, 2, 4)), tried=((0, 0), (0, 2), (1, 2)), waits=(Wait("verdict", 3.0, 3.0),),
    # In generation 0 the second group was begun as well, and does not count.
    seen=(*SEEN, meets(0, 2, 2, 0), meets(0, 2, 2, 1)),
)  # fmt: skip


def test_a_run_that_was_struck_and_kept_every_promise_is_accepted() -> None:
    assert complaints(GOOD, replace(GOOD, tried=(), waits=(), committed=(), seen=())) == []


TOLD: dict[str, Any] = {
    "losses": [3.0, 2.0, 1.0, 0.5], "model": {"w": "00ff"}, "num_rows": ROWS, "num_shards": SHARDS,
    "per_epoch": PER_EPOCH, "committed": [[0, 0, 2], [1, 2, 4]], "tried": [[0, 0], [0, 2], [1, 2]],
    "seen": [[one.generation, one.first, one.iteration, one.shard, list(one.rows)] for one in GOOD.seen],
    "waits": [["verdict", 3.0, 3.0]], "left": [], "error": "",
}  # fmt: skip


def test_a_history_survives_json() -> None:
    assert History.of(TOLD) == GOOD


STRUCK = "backward.kill_rank.0"
OUTCOME: dict[str, Any] = {"history": TOLD, "struck": [STRUCK], "unseen": [], "faults": ["its end"], "group": 2}


def test_a_run_that_was_struck_once_and_did_one_group_again_has_kept_what_it_should() -> None:
    assert_kept(OUTCOME, OUTCOME, strikes=1)
    assert_kept(OUTCOME | {"struck": ["deal.stop_executor.0"], "unseen": ["deal.stop_executor.0"]}, OUTCOME, strikes=1)


def test_a_fault_that_costs_more_than_its_group_is_refused() -> None:
    begun: list[Any] = [[0, 0, iteration, 0, []] for iteration in (2, 3)]
    with pytest.raises(AssertionError, match=r"iterations \[2, 3\] were computed again"):
        assert_kept(OUTCOME | {"history": TOLD | {"seen": TOLD["seen"] + begun}, "group": 1}, OUTCOME, strikes=1)


def test_an_end_that_the_driver_has_not_seen_is_refused() -> None:
    with pytest.raises(AssertionError, match="the driver saw no fault"):
        assert_kept(OUTCOME | {"unseen": [STRUCK]}, OUTCOME, strikes=1)


BROKEN = {
    "I1: 4 losses differ .* first in 2": replace(GOOD, losses=(3.0, 2.0, 1.0 + 2**-52, 0.5)),
    "I1: 3 losses differ": replace(GOOD, losses=GOOD.losses[:3], committed=((0, 0, 2), (1, 2, 3))),
    "I1: bits of w differ": replace(GOOD, model={"w": "00fe"}),
    "I1: bits of v, w differ": replace(GOOD, model={"v": "00ff"}),
    r"I2: iterations \[2, 3\] were not committed": replace(GOOD, committed=((0, 0, 2), (0, 2, 4), (1, 2, 4))),
    r"I2: iterations \[3\] were not committed": replace(GOOD, committed=((0, 0, 2), (1, 2, 3))),
    r"I2: .*\(1, 0, 0\).* were met more than once": replace(GOOD, seen=(*GOOD.seen, meets(1, 2, 3, 0))),
    r"I2: .*\(0, 1, 5\).* were never met": replace(GOOD, seen=tuple(one for one in GOOD.seen if 5 not in one.rows)),
    r"I2: rows \[1\] are not of shard 0": replace(GOOD, seen=(replace(GOOD.seen[0], rows=(0, 1)), *GOOD.seen[1:])),
    r"I3: .* from \(1, 2\) to \(0, 4\)": replace(GOOD, tried=(*GOOD.tried, (0, 4))),
    r"I3: .* from \(1, 2\) to \(2, 0\)": replace(GOOD, tried=(*GOOD.tried, (2, 0))),
    "I4: verdict took 4.1 s, 3 s are allowed": replace(GOOD, waits=(Wait("verdict", 4.1, 3.0),)),
    "I5: ten seconds after the run there is a process": replace(GOOD, left=("a process",)),
    "I6: the run ended with KeyError": replace(GOOD, error="KeyError"),
}


@pytest.mark.parametrize("promise", BROKEN)
def test_a_history_that_breaks_one_promise_is_refused_for_that(promise: str) -> None:
    found = complaints(BROKEN[promise], GOOD)
    assert found, "it was accepted"
    number = promise[:2]
    assert {one[:2] for one in found} == {number}
    assert any(_matches(promise, one) for one in found), found


def _matches(pattern: str, text: str) -> bool:
    import re

    return re.match(pattern, text) is not None


def test_an_error_that_is_documented_is_no_complaint_whatever_the_bits() -> None:
    assert complaints(replace(GOOD, error="StateLost", losses=(), model={}, committed=()), GOOD) == []


def test_a_calm_run_without_a_result_is_nothing_to_compare_with() -> None:
    assert any("nothing to compare" in one for one in complaints(GOOD, History()))


def test_what_was_begun_and_does_not_count_was_computed_again() -> None:
    assert recomputed(GOOD) == [2]
    assert recomputed(replace(GOOD, seen=SEEN)) == []
