"""States that N ranks left serve any other number of ranks, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mizzle.collectives.layout import ExchangeLayout
from mizzle.collectives.slices import Slice
from mizzle.errors import ConfigError
from mizzle.training.recut import OWNED, SPANS, State, needed, overlaps, part_of, recut, within
from unit.training.runs import PLACEMENTS, SCATTERED, Mlp, Training, digits, train


@st.composite
def ranges(draw: st.DrawFn, size: int = 60) -> list[Slice]:
    """Ascending ranges without overlaps; some may be empty or touch."""
    cuts = sorted(draw(st.lists(st.integers(0, size), max_size=12)))
    return [Slice(start, stop) for start, stop in zip(cuts[::2], cuts[1::2], strict=False)]


def elements(of: list[Slice]) -> list[int]:
    return [element for one in of for element in range(one.start, one.stop)]


@given(ranges(), ranges())
def test_overlaps_are_the_common_elements_where_each_list_has_them(have: list[Slice], want: list[Slice]) -> None:
    mine, wanted = elements(have), elements(want)
    found = [(o.have + k, o.want + k) for o in overlaps(have, want) for k in range(o.length)]
    assert found == sorted(
        ((mine.index(e), wanted.index(e)) for e in set(mine) & set(wanted)), key=lambda pair: pair[1]
    )  # fmt: skip


@given(ranges(), st.integers(0, 60), st.integers(0, 60))
def test_within_keeps_what_lies_inside(of: list[Slice], one: int, other: int) -> None:
    whole = Slice(min(one, other), max(one, other))
    found = within(of, whole)
    assert elements(found) == [element for element in elements(of) if whole.start <= element < whole.stop]
    assert all(len(part) for part in found)


SIZE, GROUP = 60, Slice(10, 40)


def state_of(owned: list[Slice]) -> State:
    """Elements that are their own numbers, in the whole vector and in a group."""
    vector = torch.arange(SIZE)
    tensors = {
        "weights": torch.tensor(elements(owned), dtype=torch.int64),
        "optimizer.0.momentum": vector[elements(within(owned, GROUP))] * 2,
        "optimizer.0.step": torch.tensor(3.0),
    }
    spans = {"weights": [0, SIZE], "optimizer.0.momentum": [GROUP.start, GROUP.stop]}
    return tensors, {OWNED: [[own.start, own.stop] for own in owned], SPANS: spans, "log": 7}


@given(st.lists(st.integers(0, 3), min_size=60, max_size=60), ranges())
def test_any_division_serves_any_ranges(owner: list[int], want: list[Slice]) -> None:
    states = [state_of([Slice(at, at + 1) for at in range(60) if owner[at] == rank]) for rank in range(4)]
    tensors, scalars = recut(states, want)
    expected, described = state_of(want)
    assert scalars == described
    assert {name: value.tolist() for name, value in tensors.items()} == {
        name: value.tolist() for name, value in expected.items()
    }


def test_what_nobody_has_is_refused_and_so_is_what_two_have() -> None:
    parts = [state_of([Slice(0, 20)]), state_of([Slice(20, 50)])]
    with pytest.raises(ConfigError, match="2 states hold 50 of the 60 elements of 'weights'"):
        recut(parts, [Slice(0, 60)])
    with pytest.raises(ConfigError, match="3 states hold 70 of the 50 elements"):
        recut([*parts, parts[0]], [Slice(0, 50)])


@given(st.integers(0, 9000), st.integers(1, 9), st.integers(1, 9))
def test_whoever_comes_gets_his_elements_from_those_he_needs(size: int, then: int, now: int) -> None:
    layout = ExchangeLayout(size, 1, ((0,),))
    before, after = ([list(layout.among(n).owned(rank)) for rank in range(n)] for n in (then, now))
    states = [state_of_range(size, owned) for owned in before]
    for wanted, needs in zip(after, needed(before, after), strict=True):
        parts = [part_of(states[of], wanted) if before[of] != wanted else states[of] for of in needs]
        tensors, _ = recut(parts, wanted)
        assert tensors["weights"].tolist() == elements(wanted)


def state_of_range(size: int, owned: list[Slice]) -> State:
    tensors = {"weights": torch.tensor(elements(owned), dtype=torch.int64)}
    return tensors, {OWNED: [[own.start, own.stop] for own in owned], SPANS: {"weights": [0, size]}}


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, lr=0.1, momentum=0.9), "adam": partial(torch.optim.Adam, lr=0.01),
    "rprop": partial(torch.optim.Rprop, lr=0.01), "nadam": partial(torch.optim.NAdam, lr=0.01),
    "unsharded": partial(torch.optim.Adafactor, lr=0.01),
}  # fmt: skip


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_training_goes_on_with_any_number_of_ranks(optimizer: str) -> None:
    training = Training(lambda: Mlp(norm=True, dropout=0.2), digits(), OPTIMIZERS[optimizer])
    plans = training.plans(8)
    [steady] = train(training, PLACEMENTS[1], plans)
    states = None
    losses: list[float] = []
    placements = [PLACEMENTS[4], SCATTERED, PLACEMENTS[2], PLACEMENTS[4], PLACEMENTS[1]]
    parts = [plans[:2], plans[2:4], plans[4:5], plans[5:7], plans[7:]]
    for placement, part in zip(placements, parts, strict=True):
        found = train(training, placement, part, states)
        states = [one.state for one in found]
        losses += found[0].losses
        if optimizer == "unsharded":
            states = states[:1]  # it is whole on every rank
    assert losses == steady.losses
    assert found[0].state == steady.state
