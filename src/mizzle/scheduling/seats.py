"""Which executor has which rank, and which shards that rank holds, as executors go and come: pure.

Whoever is there keeps what he has as far as the balance allows, because to move a shard its rows must be read again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mizzle.collectives.tree import MAX_NODES, cover
from mizzle.scheduling.plan import spread


@dataclass(frozen=True, slots=True)
class Seat:
    """A rank's place.

    Attributes:
        executor: where it is.
        shards: what it holds, ascending.
    """

    executor: str
    shards: tuple[int, ...]


def reseat(seats: Sequence[Seat], slots: Mapping[str, int], most: int, share: int | None = None) -> list[Seat]:
    """The seats of the ranks that go on.

    Args:
        seats: by rank, those of before: all shards, each once.
        slots: by executor that lives, how many ranks it may have.
        most: ranks that are wanted.
        share: ranks that one executor may have while others have none; None: whoever is somewhere stays.

    Returns:
        By rank, as many as there are slots for, at most ``most`` and one a shard; none without executors. Every one
        holds V/N shards, rounded down or up. Ranks that stay keep their numbers where these are still in use.
    """
    num_shards = sum(len(seat.shards) for seat in seats)
    size = min(most, num_shards, sum(slots.values()))
    if size == 0:
        return []
    staying = _staying(seats, slots, size)
    if share is not None:
        staying = _spread_out(staying, seats, slots, size, share)
    taken = Counter(seats[rank].executor for rank in staying)
    executors = [seats[rank].executor for rank in staying]
    while len(executors) < size:
        # The emptiest executor first, so that ranks share one only where they must.
        free = [executor for executor in slots if taken[executor] < slots[executor]]
        executors.append(min(free, key=lambda executor: taken[executor]))
        taken[executors[-1]] += 1
    held = _balanced([seats[rank].shards for rank in staying] + [()] * (size - len(staying)), num_shards)
    if any(len(cover(shards, num_shards)) > MAX_NODES for shards in held):
        held = list(spread(num_shards, size))
    numbers = _numbers(staying, size)
    by_rank = {rank: Seat(executors[at], held[at]) for at, rank in enumerate(numbers)}
    return [by_rank[rank] for rank in range(size)]


def _staying(seats: Sequence[Seat], slots: Mapping[str, int], size: int) -> list[int]:
    """The ranks that keep their place."""
    taken: Counter[str] = Counter()
    found: list[int] = []
    for rank, seat in enumerate(seats):
        if taken[seat.executor] < slots.get(seat.executor, 0) and len(found) < size:
            taken[seat.executor] += 1
            found.append(rank)
    return found


def _spread_out(
    staying: Sequence[int], seats: Sequence[Seat], slots: Mapping[str, int], size: int, share: int
) -> list[int]:
    """Of the ranks that could keep their place those that do: others leave crowded executors for empty ones."""
    taken = Counter(seats[rank].executor for rank in staying)
    # Ranks that have no place at all come first.
    empty = sum(count > 0 and not taken[executor] for executor, count in slots.items()) - (size - len(staying))
    kept = list(staying)
    for rank in reversed(staying):
        if empty > 0 and taken[seats[rank].executor] > share:
            kept.remove(rank)
            taken[seats[rank].executor] -= 1
            empty -= 1
    return kept


def moves(seats: Sequence[Seat], slots: Mapping[str, int], share: int) -> bool:
    """Whether a rank would leave an executor that lives, where it is one of many, for an empty one."""
    found = reseat(seats, slots, len(seats), share)
    return len(found) == len(seats) and any(
        before.executor in slots and before.executor != after.executor
        for before, after in zip(seats, found, strict=True)
    )


def _balanced(held: Sequence[tuple[int, ...]], num_shards: int) -> list[tuple[int, ...]]:
    """All shards, those that are held stay as far as nobody has more than one more than another."""
    base, more = divmod(num_shards, len(held))
    # Who has most may have one more: fewest shards move.
    richest = sorted(range(len(held)), key=lambda at: (-len(held[at]), at))
    quota = {at: base + (turn < more) for turn, at in enumerate(richest)}
    kept = [set(shards[: quota[at]]) for at, shards in enumerate(held)]
    free = iter(sorted(set(range(num_shards)).difference(*kept)))
    for at, shards in enumerate(kept):
        shards.update(next(free) for _ in range(quota[at] - len(shards)))
    return [tuple(sorted(shards)) for shards in kept]


def _numbers(staying: Sequence[int], size: int) -> list[int]:
    """New numbers: of those that stay, then of those that come."""
    keep = {rank for rank in staying if rank < size}
    rest = iter(rank for rank in range(size) if rank not in keep)
    return [rank if rank in keep else next(rest) for rank in staying] + list(rest)
