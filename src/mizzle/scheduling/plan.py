"""Who computes what, when: the iterations of a run, cut into groups, and its shards, spread over its ranks.

One group is one Spark job (after Drizzle, SOSP 2017, https://doi.org/10.1145/3132747.3132750). Between two
groups the driver may do something: validate, write a checkpoint, end the run. What it does falls on fixed iterations,
the triggers, and no group ever crosses one, so that K changes when the driver hears of a run but never its result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from mizzle.errors import ConfigError

GROUP_SIZE = "group size"
TIME_LIMIT = "time limit"
EPOCH_END = "epoch end"
END = "end"
_OWN_NAMES = (GROUP_SIZE, TIME_LIMIT, EPOCH_END, END)


@dataclass(frozen=True, slots=True)
class Group:
    """Consecutive iterations of one epoch.

    Attributes:
        number: of the group within the run, 0-based.
        first: its first iteration, counted from the start of the run.
        size: how many iterations.
        epoch: the epoch they are in, 0-based.
        first_in_epoch: number of ``first`` within its epoch.
        cut: why it ends there: the triggers that fall on its boundary, joined with ", ", else what limited its size.
    """

    number: int
    first: int
    size: int
    epoch: int
    first_in_epoch: int
    cut: str = GROUP_SIZE

    @property
    def stop(self) -> int:
        """The boundary behind the group: the iteration that comes next."""
        return self.first + self.size


@dataclass(frozen=True, slots=True)
class Triggers:
    """The boundaries of a run that no group crosses: the same ones whatever the group size.

    Attributes:
        num_iterations: of the whole run, >= 0; the last epoch may be cut short.
        iterations_per_epoch: at least 1. None: the run has no epochs, all of it is epoch 0.
        every: name and period in iterations of what else happens at boundaries. ``{"validation": 500}`` falls behind
            iterations 499, 999, ...; counted over the run, not within an epoch.
    """

    num_iterations: int
    iterations_per_epoch: int | None = None
    every: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.num_iterations < 0:
            raise ConfigError(f"num_iterations is {self.num_iterations}: give at least 0")
        if self.iterations_per_epoch is not None and self.iterations_per_epoch < 1:
            raise ConfigError(f"iterations_per_epoch is {self.iterations_per_epoch}: give at least 1, or None")
        for name, period in self.every.items():
            if name in _OWN_NAMES or "," in name or not name:
                raise ConfigError(f"a trigger is named {name!r}: give another name, without a comma")
            if period < 1:
                raise ConfigError(f"trigger {name!r} is every {period} iterations: give at least 1")

    def fires(self, stop: int) -> tuple[str, ...]:
        """What falls on the boundary before iteration ``stop``: epoch end, then `every` in its order, then the end."""
        if stop < 1:
            return ()
        periods = {EPOCH_END: self.iterations_per_epoch, **self.every}
        fired = [name for name, period in periods.items() if period is not None and stop % period == 0]
        return (*fired, END) if stop == self.num_iterations else tuple(fired)

    def next_boundary(self, first: int) -> int:
        """The nearest boundary behind iteration ``first`` on which something fires."""
        periods = [period for period in (self.iterations_per_epoch, *self.every.values()) if period is not None]
        return min([self.num_iterations, *(first + period - first % period for period in periods)])

    def next_group(self, number: int, first: int, size: int, *, limit: str = GROUP_SIZE) -> Group:
        """The group that starts at an iteration and ends where a trigger fires, or after ``size`` iterations.

        Args:
            number: of the group within the run.
            first: its first iteration, before the end of the run.
            size: K, the longest it may be, at least 1.
            limit: what limits ``size``, for `Group.cut`.
        """
        assert 0 <= first < self.num_iterations, f"iteration {first} is not in a run of {self.num_iterations}"
        assert size >= 1, f"a group of {size} iterations"
        stop = min(first + size, self.next_boundary(first))
        epoch, in_epoch = (0, first) if self.iterations_per_epoch is None else divmod(first, self.iterations_per_epoch)
        return Group(number, first, stop - first, epoch, in_epoch, ", ".join(self.fires(stop)) or limit)


def plan_groups(iterations_per_epoch: int, num_iterations: int, group_size: int) -> Iterator[Group]:
    """All groups of a run with one fixed K, in order: together they are iterations 0..num_iterations - 1, each once.

    Args:
        iterations_per_epoch: at least 1.
        num_iterations: of the whole run, >= 0; the last epoch may be cut short.
        group_size: K, the longest a group may be, at least 1.
    """
    triggers = Triggers(num_iterations, iterations_per_epoch)
    first = number = 0
    while first < num_iterations:
        group = triggers.next_group(number, first, group_size)
        yield group
        first, number = group.stop, number + 1


def spread(shards: int, ranks: int) -> tuple[tuple[int, ...], ...]:
    """The shards of every rank: neighbours together, so that ranks hold whole subtrees of the sum; balanced to one.

    Args:
        shards: V, at least ``ranks``.
        ranks: N.
    """
    starts = [rank * shards // ranks for rank in range(ranks + 1)]
    return tuple(tuple(range(starts[rank], starts[rank + 1])) for rank in range(ranks))
