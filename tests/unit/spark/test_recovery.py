from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mizzle.errors import CollectiveTimeout, CorruptBlock, PeerLost, PeerUnreachable, TaskFailed
from mizzle.spark.explain import raise_cause
from mizzle.spark.ranks.outcome import Failure, Outcome
from mizzle.spark.recovery import Faults, Unreachable, await_verdict, cut_off


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


def test_where_nobody_hangs_deadlines_must_pass_for_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("mizzle.spark.recovery.time.monotonic", lambda: now)
    faults = Faults("r" * 32)
    faults.count(CollectiveTimeout("late"), hangs=False)
    now += 59
    faults.count(CollectiveTimeout("late"), hangs=False)
    now += 2
    with pytest.raises(CollectiveTimeout):
        faults.count(CollectiveTimeout("late"), hangs=False)


def test_connections_that_break_while_nobody_ends_must_do_so_for_two_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("mizzle.spark.recovery.time.monotonic", lambda: now)
    faults = Faults("r" * 32)
    for _ in range(100):
        faults.count(PeerLost(2, "the connection closed"), ended=False)
    now += 121
    with pytest.raises(PeerLost, match="tried 101 times"):
        faults.count(PeerLost(2, "the connection closed"), ended=False)


def test_two_minutes_of_breaking_connections_begin_behind_the_last_boundary(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("mizzle.spark.recovery.time.monotonic", lambda: now)
    faults = Faults("r" * 32)
    for _ in range(20):
        for _ in range(20):
            faults.count(PeerLost(2, "the connection closed"), ended=False)
            now += 5
        faults.forget()


def test_deadlines_that_pass_while_connections_break_are_the_networks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("mizzle.spark.recovery.time.monotonic", lambda: now)
    faults = Faults("r" * 32)
    faults.count(PeerLost(2, "the connection closed"), ended=False)
    for _ in range(20):
        faults.count(CollectiveTimeout("late"))
    now += 121
    with pytest.raises(CollectiveTimeout):
        faults.count(CollectiveTimeout("late"))


def test_broken_connections_excuse_nothing_else() -> None:
    faults = Faults("r" * 32)
    for _ in range(20):
        faults.count(PeerLost(2, "the connection closed"), ended=False)
    with pytest.raises(CorruptBlock):
        faults.count(CorruptBlock("bits"))


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


EXECUTORS = [str(number) for number in range(6)]
SIDES = st.integers(2, 6).flatmap(lambda size: st.lists(st.booleans(), min_size=size, max_size=size))


def between(sides: list[bool]) -> list[tuple[str, str]]:
    """What is reported when nobody of the one side reaches anybody of the other."""
    return [
        (EXECUTORS[a], EXECUTORS[b]) for a, one in enumerate(sides) for b, other in enumerate(sides) if one != other
    ]


@given(SIDES)
def test_of_a_network_in_two_parts_the_larger_one_is_left_when_all_have_been_given_up(sides: list[bool]) -> None:
    left = {EXECUTORS[at]: side for at, side in enumerate(sides)}
    while victim := cut_off([report for report in between(sides) if set(report) <= left.keys()]):
        del left[victim]
    smaller = min(sides.count(True), sides.count(False))
    assert len(left) == len(sides) - smaller
    assert len(set(left.values())) == 1, "and all of it reach each other"


@given(st.permutations(between([True, False, False, False])), st.integers(1, 6))
def test_who_is_cut_off_from_all_others_is_given_up_however_many_have_said_so_yet(
    reports: list[tuple[str, str]], most: int
) -> None:
    about = [report for report in reports if report[1] == "0"]
    assert cut_off(about[:most]) == "0"
    assert cut_off(reports) == "0", "although it says the same of everybody else"


def test_for_one_broken_link_one_is_given_up_and_for_none_nobody() -> None:
    assert cut_off([("3", "1"), ("1", "3")]) in {"1", "3"}
    assert cut_off([("3", "1")]) == "1"
    assert cut_off([]) is None
    assert cut_off([("1", "1")]) is None


def failed(executor: str, error: Exception) -> Outcome:
    return Outcome(0, -1, executor, failure=Failure.of(error))


def test_an_executor_is_replaced_when_it_cannot_be_reached_twice_in_a_row() -> None:
    replaced: list[str] = []
    unreachable = Unreachable("r" * 32, replaced.append)
    outcomes = [
        failed("7", PeerUnreachable(1, "executor 8 cannot be reached")),
        failed("9", PeerUnreachable(1, "executor 8 cannot be reached")),
        failed("8", PeerUnreachable(0, "executor 7 cannot be reached")),
        failed("6", PeerLost(2, "it could not join")),
        Outcome(0, 4, "5"),
    ]
    executors = ["7", "8", "9", "6", "5"]
    assert unreachable.give_up(outcomes, executors) == ()
    assert unreachable.give_up([], executors) == (), "all have reached all in between"
    assert unreachable.give_up(outcomes, executors) == ()
    assert unreachable.give_up(outcomes, executors) == ("8",)
    assert replaced == ["8"]


def late(rank: int, *missing: int, heard: tuple[int, ...] = ()) -> Outcome:
    error = CollectiveTimeout("waited", missing=missing, heard=heard)
    return Outcome(0, rank, EXECUTORS[rank], failure=Failure.of(error))


ISOLATED = [late(0, 2, heard=(1, 3)), late(1, 2, heard=(3,)), late(2, 0, 1, 3)]
HALVES = [late(0, 2, 3, heard=(1,)), late(2, 0, 1, heard=(3,))]
ONE_LINK = [late(0, 3, heard=(1, 2)), late(3, 0)]


@pytest.mark.parametrize(
    ("outcomes", "replaced"),
    [
        (ISOLATED, ["2"]),
        (ISOLATED[1:], ["2"]),
        (HALVES, ["2"]),
        (ONE_LINK, ["3"]),
        # One that computes, or hangs, waits for nobody.
        ([late(0, 2, heard=(1,)), late(1, 2, heard=(0,)), late(3, 2, heard=(0,))], []),
        # Nobody had anything from anybody.
        ([late(0, 1), late(1, 0)], []),
        ([late(0, 1, 2), late(1, 0, 2), late(2, 0, 1)], []),
        ([], []),
    ],
)
def test_ranks_that_wait_for_each_other_in_vain_are_out_of_touch(outcomes: list[Outcome], replaced: list[str]) -> None:
    told: list[str] = []
    assert Unreachable("r" * 32, told.append).give_up_missed(outcomes, EXECUTORS) == tuple(replaced)
    assert told == replaced


def test_ranks_that_hang_beside_others_of_their_executors_are_not_out_of_touch() -> None:
    told: list[str] = []
    executors = ["1", "1", "2", "2", "3", "3"]
    # Ranks 0 and 2 hang; rank 1 is beside the one, rank 3 beside the other.
    outcomes = [late(1, 0, 2, heard=(4,)), late(3, 0, 2, heard=(4,))]
    assert Unreachable("r" * 32, told.append).give_up_missed(outcomes, executors) == ()
    assert not told


def test_a_second_one_is_given_up_only_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    unreachable = Unreachable("r" * 32, told.append)
    unreachable.give_up_missed(HALVES, EXECUTORS)
    unreachable.give_up_missed(ONE_LINK, EXECUTORS)
    assert told == ["2"]
    monkeypatch.setattr("mizzle.blocks.deadline.Deadline.passed", property(lambda _: True))
    unreachable.give_up_missed(ONE_LINK, EXECUTORS)
    assert told == ["2", "3"]


def test_a_deadline_for_which_somebody_was_given_up_is_no_sign_of_code_that_hangs() -> None:
    faults = Faults("r" * 32)
    for _ in range(9):
        faults.count(CollectiveTimeout("late"), given_up=True)
    with pytest.raises(CollectiveTimeout):
        faults.count(CollectiveTimeout("late"), given_up=True)


def test_a_deadline_says_who_was_missing_behind_its_journey_too() -> None:
    error = pickle.loads(pickle.dumps(CollectiveTimeout("late", missing=[2], heard=[1])))  # noqa: S301 - just made
    assert (str(error), error.missing, error.heard) == ("late", (2,), (1,))


def test_nobody_is_replaced_whose_work_nobody_else_can_do() -> None:
    unreachable = Unreachable("r" * 32, None)
    outcomes = [failed("7", PeerUnreachable(1, "gone"))]
    assert [unreachable.give_up(outcomes, ["7", "8"]) for _ in range(3)] == [()] * 3


def test_who_cannot_reach_a_peer_says_more_than_the_peer_that_waits_in_vain() -> None:
    waited = Outcome(0, 0, "7", failure=Failure.of(CollectiveTimeout("rank 0 waited")))
    told = [waited, failed("8", PeerUnreachable(0, "no route")), failed("9", PeerLost(0, "it could not join"))]
    with pytest.raises(PeerUnreachable, match="no route"):
        raise_cause(told)
    with pytest.raises(TaskFailed, match="of the user's"):
        raise_cause([*told, failed("6", ZeroDivisionError("of the user's"))])


def test_an_error_that_names_a_peer_is_of_the_same_kind_behind_its_journey() -> None:
    error = pickle.loads(pickle.dumps(PeerUnreachable(2, "no route")))  # noqa: S301 - just made
    assert (type(error), error.rank, error.why) == (PeerUnreachable, 2, "no route")
