"""Who keeps a second copy of whose state: pure.

Pairs, not a ring: two hosts that fail together then lose both copies with half the probability (as machines that
checkpoint to each other's memory are grouped in GEMINI, Wang et al., SOSP 2023, section 5.1,
https://doi.org/10.1145/3600006.3613145).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Place(NamedTuple):
    """Where a rank is.

    Attributes:
        host: equal for ranks that fail together with their machine.
        executor: equal for ranks that fail together with their executor.
    """

    host: str
    executor: str


def buddies(places: Sequence[Place]) -> tuple[int | None, ...]:
    """For every rank the one that keeps a copy of its state.

    On another host where there is one, else on another executor, else None. Ranks are paired as far as places allow;
    the odd one out is the second whose copy the first keeps.

    Args:
        places: by rank.
    """
    order = sorted(range(len(places)), key=lambda rank: (places[rank], rank))
    half = len(order) // 2
    found: dict[int, int] = {}
    # Neighbours share a host: half a list away is another one, unless one host has more than half of all.
    for first, second in zip(order[:half], order[half : 2 * half], strict=True):
        found[first], found[second] = second, first
    if len(order) % 2 and half:
        found[order[-1]] = order[0]
    return tuple(_checked(rank, found.get(rank), places) for rank in range(len(places)))


def _checked(rank: int, wanted: int | None, places: Sequence[Place]) -> int | None:
    """The wanted one, if no other is further away."""
    if len(places) == 1 or wanted is None:
        return None
    far = max(_distance(places[rank], place) for place in places)
    if far == 0:
        return None
    if _distance(places[rank], places[wanted]) == far:
        return wanted
    # Spread over all that are as far, by the number of the rank.
    able = [other for other, place in enumerate(places) if _distance(places[rank], place) == far]
    return able[rank % len(able)]


def _distance(one: Place, other: Place) -> int:
    return 2 if one.host != other.host else int(one.executor != other.executor)
