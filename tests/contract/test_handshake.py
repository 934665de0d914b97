"""A rank that would train something else is refused on all ranks, at once, before a block of numbers is written."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from harness import memory_stores, outcomes
from mizzle.blocks.ids import BlockId
from mizzle.blocks.memory import MemoryStore
from mizzle.blocks.region import Span
from mizzle.blocks.store import BlockStore
from mizzle.errors import MizzleError, PeerLost
from mizzle.training import handshake
from mizzle.training.rank import RankTrainer
from unit.training.runs import PLACEMENTS, Mlp, Training, digits, exchange_of, train

ODD = 2


class Swapped(nn.Module):
    """The parameters of `Mlp`, those of the second layer first."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(200, 3)
        self.first = nn.Linear(16, 200)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(torch.tanh(self.first(inputs)))
        return out


def sgd(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.1)


CASES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "another shape": (lambda: Mlp(features=17), "elements=|model"),
    "another dtype": (lambda: Mlp().double(), "float64"),
    "another order": (Swapped, r"ranks \[0, 1, 3\]: model \w+ of \d+ elements, mizzle .*; ranks \[2\]: model"),
    "another mizzle": (Mlp, r"ranks \[0, 1, 3\]: .* mizzle 1\.0; ranks \[2\]: .* mizzle 2\.0"),
}


@pytest.fixture(scope="module", autouse=True)
def _warm() -> None:
    """The first optimizer of a process loads a part of torch, for seconds."""
    training = Training(Mlp, digits(), sgd)
    train(training, PLACEMENTS[1], training.plans(1))


@pytest.mark.parametrize("near", [False, True], ids=["other hosts", "one host"])
@pytest.mark.parametrize("case", CASES)
def test_a_rank_that_differs_is_refused_within_two_seconds_and_nothing_is_written(
    case: str, monkeypatch: pytest.MonkeyPatch, *, near: bool
) -> None:
    odd, message = CASES[case]
    training = Training(Mlp, digits(), sgd)
    written: list[int] = []
    put = MemoryStore.put

    def noted(self: MemoryStore, block: BlockId, payload: Span | None, *args: Any, **kwargs: Any) -> Any:
        written.append(0 if payload is None else payload.length)
        return put(self, block, payload, *args, **kwargs)

    monkeypatch.setattr(MemoryStore, "put", noted)
    if case == "another mizzle":
        monkeypatch.setattr(
            handshake, "_version", lambda: "2.0" if threading.current_thread().name == f"rank-{ODD}" else "1.0"
        )

    def rank_main(store: BlockStore) -> None:
        model = odd() if store.rank == ODD else training.model()
        spec = training.spec(model)
        exchange = exchange_of(store, spec, model, PLACEMENTS[4])
        trainer = RankTrainer(spec, model, exchange, {store.rank: training.shards()[store.rank]})
        trainer.run(training.plans(1))

    stores = memory_stores(4, in_place=near, islands=((0, 1, 2, 3),) if near else None)
    begun = time.monotonic()
    found = outcomes(stores, rank_main)
    assert time.monotonic() - begun < 2
    assert all(isinstance(error, MizzleError) for error in found), found
    causes = [error for error in found if not isinstance(error, PeerLost)]
    assert causes
    assert all(re.search(message, str(error)) for error in causes), causes
    assert not any(written), "no number left any rank"
