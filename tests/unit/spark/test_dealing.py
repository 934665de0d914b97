"""Who holds which shards as executors come, go and are busy: the dealing itself is played, Spark is not there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from mizzle.errors import Misplaced, PeerLost
from mizzle.spark import dealing
from mizzle.spark.data import ShardInfo
from mizzle.spark.dealing import Dealing
from mizzle.spark.runner import Staff


class Cluster:
    """Executors, of which some are busy: what is dealt to them lands on the first that is not.

    Attributes:
        alive: by executor, its host.
        busy: those whose slots others have.
        before_deal: called before rows are dealt.
        dealt: names of what was dealt, a job each.
        order: in which rows come.
        first: where shards go, by rank, as long as nobody says where.
    """

    def __init__(self, *executors: str) -> None:
        self.alive = dict.fromkeys(executors, "host")
        self.busy: set[str] = set()
        self.before_deal: Callable[[], None] = lambda: None
        self.dealt: list[str] = []
        self.order = 0
        self.first = list(executors)

    def hosts(self) -> dict[str, str]:
        return dict(self.alive)

    @contextmanager
    def replacing_hung(self) -> Iterator[None]:
        yield

    def deal(
        self, _frame: object, *, shards_of_rank: Sequence[Sequence[int]], name: str,
        locations: Sequence[tuple[str, str]] | None, **_more: object,
    ) -> list[ShardInfo]:  # fmt: skip
        self.before_deal()
        self.dealt.append(name)
        wanted = [executor for _, executor in locations] if locations else self.first
        free = [executor for executor in self.alive if executor not in self.busy]
        at = [executor if executor in free else free[0] for executor in wanted]
        return [
            ShardInfo(shard, 1, 1, f"/{name}/{shard}", at[rank], "host", f"{shard} {self.order}")
            for rank, shards in enumerate(shards_of_rank) for shard in shards
        ]  # fmt: skip


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Cluster, Dealing]]:
    def make(*executors: str, least: int, most: int, frames: Sequence[str] = ("train",)) -> tuple[Cluster, Dealing]:
        cluster = Cluster(*executors)
        monkeypatch.setattr(dealing, "shard_dataframe", cluster.deal)
        monkeypatch.setattr(dealing, "start_residents_early", lambda *_: None)
        monkeypatch.setattr(dealing, "task_slots", lambda _: len(cluster.alive))
        monkeypatch.setattr(dealing, "num_executors", lambda _: len(cluster.alive))
        monkeypatch.setattr(dealing, "_OPTIONAL_S", 0.1)
        nobody: Any = None
        driver: Any = cluster
        frame: Any = "rows"
        return cluster, Dealing(
            nobody, driver, "r" * 32, dict.fromkeys(frames, frame), lambda _shards, _files: b"work", least=least,
            most=most, one_each=True, timeout_s=0.5,
        )  # fmt: skip

    return make


Made = Callable[..., tuple[Cluster, Dealing]]
TWO = [(0, 1), (2, 3)]


def test_an_executor_whose_slots_others_have_is_left_alone_for_a_while(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, staff = made("1", "2", least=2, most=3)
    at = staff.begin(TWO).executors
    assert at == ("1", "2")
    cluster.alive["3"] = "host"
    cluster.busy.add("3")
    assert staff.wants(cluster.hosts())
    with pytest.raises(Misplaced, match="dealt to other executors"):
        staff.replace(at)
    assert not staff.wants(cluster.hosts())
    cluster.busy.clear()
    monkeypatch.setattr("mizzle.blocks.deadline.Deadline.passed", property(lambda _: True))
    assert staff.wants(cluster.hosts()), "it is free again, perhaps"
    assert len(staff.replace(at).executors) == 3


def test_whose_shards_were_lost_may_go_to_an_executor_that_was_busy(made: Made) -> None:
    cluster, staff = made("1", "2", least=2, most=3)
    at = staff.begin(TWO).executors
    cluster.alive["3"] = "host"
    cluster.busy.add("3")
    with pytest.raises(Misplaced):
        staff.replace(at)
    cluster.busy.clear()
    del cluster.alive["2"]
    assert set(staff.replace(at).executors) == {"1", "3"}


def test_an_executor_may_be_lost_before_its_first_rows_are_there(made: Made) -> None:
    cluster, staff = made("1", "2", "3", least=2, most=2)
    cluster.first = ["1", "1"]

    def lose(executor: str) -> None:
        if len(cluster.dealt) == 1:
            cluster.alive.pop(executor, None)

    cluster.before_deal = lambda: lose("2")
    found = staff.begin(TWO)
    assert sorted(found.executors) == ["1", "3"]


def test_one_that_always_loses_its_executors_is_given_up(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, staff = made("1", "2", least=2, most=2)
    cluster.first = ["1", "1"]
    tried: list[Sequence[str]] = []

    def lost(executors: Sequence[str]) -> Staff:
        tried.append(executors)
        raise PeerLost(-1, "gone")

    monkeypatch.setattr(staff, "replace", lost)
    with pytest.raises(PeerLost):
        staff.begin(TWO)
    assert len(tried) == 1 + dealing._MOST_LOST


def test_rows_of_validation_beside_no_rank_are_dealt_again_when_they_are_gone(made: Made) -> None:
    cluster, staff = made("1", "2", "3", least=2, most=2, frames=("train", "held out"))
    cluster.before_deal = lambda: setattr(cluster, "first", ["1", "3"] if cluster.dealt else ["1", "2"])
    at = staff.begin(TWO).executors
    assert at == ("1", "2")
    assert not staff.wants(cluster.hosts())
    del cluster.alive["3"]
    assert staff.wants(cluster.hosts())
    cluster.dealt.clear()
    assert staff.replace(at).executors == at
    assert cluster.dealt == ["held out"]
    assert not staff.wants(cluster.hosts())


def test_where_rows_do_not_come_again_as_they_came_all_are_dealt_anew(
    made: Made, caplog: pytest.LogCaptureFixture
) -> None:
    cluster, staff = made("1", "2", "3", least=2, most=2)
    cluster.first = ["1", "2"]
    at = staff.begin(TWO).executors
    del cluster.alive["2"]
    cluster.order = 1
    assert set(staff.replace(at).executors) == {"1", "3"}
    assert len(cluster.dealt) == 3, "once for all, then for what was lost, then for all again"
    assert {info.digest for info in staff._files["train"].values()} == {f"{shard} 1" for shard in range(4)}
    assert "in another order (shards 2, 3): all of them are dealt anew" in caplog.text


def test_where_they_do_only_those_that_were_lost_are_dealt_again(made: Made) -> None:
    cluster, staff = made("1", "2", "3", least=2, most=2)
    cluster.first = ["1", "2"]
    at = staff.begin(TWO).executors
    del cluster.alive["2"]
    staff.replace(at)
    assert len(cluster.dealt) == 2
