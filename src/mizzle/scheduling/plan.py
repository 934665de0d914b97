"""Who computes what, when: the iterations of a run, cut into groups, and its shards, spread over its ranks.

One group is one Spark job (after Drizzle, SOSP 2017, section 3.2). It never crosses the end of an epoch, where the
driver may have something to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Group:
    """Consecutive iterations of one epoch.

    Attributes:
        number: of the group within the run, 0-based.
        first: its first iteration, counted from the start of the run.
        size: how many iterations.
        epoch: the epoch they are in, 0-based.
        first_in_epoch: number of ``first`` within its epoch.
    """

    number: int
    first: int
    size: int
    epoch: int
    first_in_epoch: int

    @property
    def stop(self) -> int:
        """The boundary behind the group: the iteration that comes next."""
        return self.first + self.size


def plan_groups(iterations_per_epoch: int, num_iterations: int, group_size: int) -> Iterator[Group]:
    """All groups of a run, in order: together they are iterations 0..num_iterations - 1, each once.

    Args:
        iterations_per_epoch: at least 1.
        num_iterations: of the whole run, >= 0; the last epoch may be cut short.
        group_size: K, the longest a group may be, at least 1.
    """
    first = number = 0
    while first < num_iterations:
        epoch, in_epoch = divmod(first, iterations_per_epoch)
        size = min(group_size, iterations_per_epoch - in_epoch, num_iterations - first)
        yield Group(number, first, size, epoch, in_epoch)
        first += size
        number += 1


def spread(shards: int, ranks: int) -> tuple[tuple[int, ...], ...]:
    """The shards of every rank: neighbours together, so that ranks hold whole subtrees of the sum; balanced to one.

    Args:
        shards: V, at least ``ranks``.
        ranks: N.
    """
    starts = [rank * shards // ranks for rank in range(ranks + 1)]
    return tuple(tuple(range(starts[rank], starts[rank + 1])) for rank in range(ranks))
