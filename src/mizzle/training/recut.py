"""The states of a boundary, cut anew: what N ranks left behind, for a rank that owns other ranges than they did. Pure.

A state says of every tensor that was cut which range of the flat vector it is cut from; all others are the same on all
ranks. So states that were left by any number of ranks serve any other number (as checkpoints of ZeRO optimizer states
do in Universal Checkpointing, Lian et al. 2024, https://arxiv.org/abs/2406.18820, there by way of whole parameters).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from mizzle.collectives.slices import Slice
from mizzle.errors import ConfigError
from mizzle.training.manifest import WEIGHTS
from mizzle.training.state import Header

OWNED, SPANS = "owned", "spans"
"""Scalars of a state: its ranges; and for every tensor that holds elements of them, the range that these are cut to."""

State = tuple[Mapping[str, torch.Tensor], Mapping[str, Any]]
"""Tensors and scalars, as `mizzle.training.state.unpack_state` gives them."""


class Overlap(NamedTuple):
    """Elements that lie in both of two lists of ranges, where each list is laid end to end.

    Attributes:
        have: where they begin in the one.
        want: where they begin in the other.
        length: how many.
    """

    have: int
    want: int
    length: int


def overlaps(have: Sequence[Slice], want: Sequence[Slice]) -> Iterator[Overlap]:
    """What two lists of ranges have in common, both ascending and without overlaps of their own."""
    at, begin = 0, 0
    done = 0
    for wanted in want:
        while at < len(have) and have[at].stop <= wanted.start:
            begin += len(have[at])
            at += 1
        number, offset = at, begin
        while number < len(have) and have[number].start < wanted.stop:
            first, last = max(have[number].start, wanted.start), min(have[number].stop, wanted.stop)
            if first < last:
                yield Overlap(offset + first - have[number].start, done + first - wanted.start, last - first)
            offset += len(have[number])
            number += 1
        done += len(wanted)


def within(ranges: Sequence[Slice], whole: Slice) -> list[Slice]:
    """The parts of ranges that lie in another one, without empty ones."""
    cut = [Slice(max(one.start, whole.start), min(one.stop, whole.stop)) for one in ranges]
    return [one for one in cut if one.start < one.stop]


def common(one: Sequence[Slice], other: Sequence[Slice]) -> list[Slice]:
    """The elements that lie in both of two lists of ascending ranges, as ascending ranges."""
    starts = [0]
    for have in one:
        starts.append(starts[-1] + len(have))
    found = []
    for lap in overlaps(one, other):
        number = bisect_right(starts, lap.have) - 1
        start = one[number].start + lap.have - starts[number]
        found.append(Slice(start, start + lap.length))
    return found


def part_of(state: State, wanted: Sequence[Slice]) -> State:
    """What a state has of some ranges, as a state by itself; what is the same on all ranks is in it too."""
    return recut([state], common(owned_of(state), wanted))


def needed(then: Sequence[Sequence[Slice]], now: Sequence[Sequence[Slice]]) -> list[list[int]]:
    """Whose states each rank of today needs: the one that fits as it is, else all that have some of its elements.

    Args:
        then: the ranges of every rank that left a state.
        now: those of every rank of today.
    """
    return [_needed(then, wanted, rank) for rank, wanted in enumerate(now)]


def _needed(then: Sequence[Sequence[Slice]], wanted: Sequence[Slice], rank: int) -> list[int]:
    fitting = [of for of, owned in enumerate(then) if list(owned) == list(wanted)]
    if fitting:
        return [rank if rank in fitting else fitting[rank % len(fitting)]]
    found = [of for of, owned in enumerate(then) if any(overlaps(owned, wanted))]
    return found or [rank % len(then)]  # who owns nothing needs what is the same in all


def owned_of(state: State) -> list[Slice]:
    """The ranges that a state has."""
    return [Slice(start, stop) for start, stop in state[1][OWNED]]


def check_header(header: Header, owned: Sequence[tuple[int, int]]) -> None:
    """Refuse a state that does not hold what is said of it; its tensors need not be at hand.

    Args:
        header: of the state.
        owned: the ranges [start, stop) that it is said to hold.

    Raises:
        ValueError: says what is wrong. KeyError and TypeError: something is missing, or of another type.
    """
    if tuple((start, stop) for start, stop in header.scalars[OWNED] if start < stop) != owned:
        raise ValueError("it holds other ranges than its manifest says")
    for name, kind in (("signature", str), ("log", dict), ("scalars", dict)):
        if not isinstance(header.scalars[name], kind):
            raise TypeError(f"its {name!r} is no {kind.__name__}")
    spans = header.scalars[SPANS]
    for name, (first, last) in spans.items():
        length = sum(max(0, min(stop, last) - max(start, first)) for start, stop in owned)
        if header.tensors[name][1] != (length,):
            raise ValueError(f"{name!r} has shape {header.tensors[name][1]}, not {(length,)}")
    if WEIGHTS not in spans or header.tensors[WEIGHTS][0] != "F32":
        raise ValueError("it has no weights in float32")


def recut(states: Sequence[State], owned: Sequence[Slice]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The state that a rank with these ranges would have left at the boundary where the given ones were left.

    Args:
        states: of one boundary, at least one, each rank's at most once; only those with elements in ``owned`` count.
        owned: ascending ranges of the flat vector.

    Returns:
        Tensors and scalars. Where one state fits as it is, its own tensors, else new ones.

    Raises:
        ConfigError: some elements are in none of the states, or in two.
    """
    tensors, scalars = states[0]
    found, described = dict(tensors), {**scalars, OWNED: [[own.start, own.stop] for own in owned]}
    same = next((state for state in states if state[1][OWNED] == described[OWNED]), None)
    if same is not None:
        return dict(same[0]), described
    for name, (start, stop) in scalars[SPANS].items():
        found[name] = _assembled(name, states, within(owned, Slice(start, stop)), Slice(start, stop))
    return found, described


def _assembled(name: str, states: Sequence[State], want: Sequence[Slice], whole: Slice) -> torch.Tensor:
    """One tensor's elements in some ranges, end to end, from whoever has them."""
    into = torch.empty(sum(map(len, want)), dtype=states[0][0][name].dtype)
    got = 0
    for tensors, scalars in states:
        have = within(owned_of((tensors, scalars)), whole)
        for one in overlaps(have, want):
            into[one.want : one.want + one.length] = tensors[name][one.have : one.have + one.length]
            got += one.length
    if got != len(into):
        raise ConfigError(
            f"{len(states)} states hold {got} of the {len(into)} elements of {name!r} that are wanted: give the states "
            "of all ranks of the boundary, each once"
        )
    return into
