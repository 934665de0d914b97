"""A rank that is where it is not wanted costs its peers no deadline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pyspark import cloudpickle

from mizzle.errors import Misplaced
from mizzle.spark.ranks.orders import Committed, JoinTerms, StartOrder
from mizzle.spark.ranks.resident import _Residence


class Told:
    """A client on executor 9, the context that it is admitted with, and the store there."""

    executor_id = "9"
    rank = 1

    def __init__(self) -> None:
        self.aborted: list[str] = []
        self.joined = False
        self.store = self

    def abort(self, why: str) -> None:
        self.aborted.append(why)

    def join(self, *_: object, **__: object) -> Told:
        self.joined = True
        return self


class Work:
    def start(self, *_: object) -> str:
        return "started"


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    made = Told()
    monkeypatch.setattr("mizzle.spark.ranks.resident.BridgeClient.connect", lambda _: made)
    monkeypatch.setattr("mizzle.spark.ranks.resident.RankContext.join", made.join)
    return made


def opened(tmp_path: Path, *executors: str) -> Any:
    (tmp_path / "work").write_bytes(cloudpickle.dumps(Work()))  # type: ignore[no-untyped-call]
    terms = JoinTerms("r" * 32, 1, 0, 2, "auto", 5.0)
    order = StartOrder(terms, -1, Committed(), executors, str(tmp_path / "work"), None, ())
    residence = _Residence(order)
    residence.open(order)
    return residence._part


def test_a_rank_in_an_executor_that_has_none_joins_and_tells_its_peers_at_once(told: Told, tmp_path: Path) -> None:
    with pytest.raises(Misplaced, match="executor 9 has no rank"):
        opened(tmp_path, "3", "7")
    assert told.joined, "or the others would wait for it"
    assert len(told.aborted) == 1


@pytest.mark.parametrize("executors", [(), ("3", "9")])
def test_a_rank_that_may_be_there_starts(told: Told, tmp_path: Path, executors: tuple[str, ...]) -> None:
    assert opened(tmp_path, *executors) == "started"
    assert not told.aborted
