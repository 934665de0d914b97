"""Learning-rate schedules ahead of time: the driver steps torch's own scheduler for the iterations of a group.

Ranks never own a scheduler; they are told hyper-parameters per iteration. The optimizer here has parameters without
memory, and the user's model is not touched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mizzle.errors import ModelError
from mizzle.training.flat import FlatParameters
from mizzle.training.groups import OptimizerFactory
from mizzle.training.optimizer import probe

SchedulerFactory = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]
"""Builds the user's scheduler, which is stepped once an iteration."""


_GROUP_BYTES, _NUMBER_BYTES = 32, 40
"""What a parameter group and one of its numbers (a pair of betas at most) take at most when pickled."""


class HyperSchedule:
    """Hyper-parameters of coming iterations.

    Args:
        flat: layout of the model, for its groups.
        optimizer: the user's factory.
        scheduler: the user's factory; None for constant hyper-parameters.

    Raises:
        ModelError: the optimizer cannot work here, or the scheduler waits for a metric.
    """

    def __init__(
        self, flat: FlatParameters, optimizer: OptimizerFactory, scheduler: SchedulerFactory | None = None
    ) -> None:
        """Build both; the first iteration sees the scheduler's first values."""
        self._optimizer = probe(optimizer, flat)
        self._first = [_numbers(group) for group in self._optimizer.param_groups]
        self._changed: list[set[str]] = [set() for _ in self._first]
        self._scheduler = scheduler(self._optimizer) if scheduler is not None else None
        if isinstance(self._scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            raise ModelError(
                "ReduceLROnPlateau waits for a metric, but the schedule of a group is made before it runs: use a "
                "scheduler that depends on the iteration only, such as CosineAnnealingLR or OneCycleLR"
            )
        self.position = 0

    def ahead(self, k: int) -> list[tuple[dict[str, Any], ...]]:
        """The next ``k`` iterations: per iteration and group, every hyper-parameter that ever changed so far.

        A fresh worker starts from the factory's values, so these, set on any worker, make it right.
        """
        planned = []
        for _ in range(k):
            planned.append(tuple(self._present(number) for number in range(len(self._first))))
            self.position += 1
            if self._scheduler is not None:
                self._optimizer.step()  # without gradients: does nothing, but torch warns when it is left out
                self._scheduler.step()
        return planned

    def skip(self, k: int) -> None:
        """Pass over the next ``k`` iterations, which a run that goes on from a checkpoint has done."""
        for _ in range(k):
            self.ahead(1)

    def fits(self, num_bytes: int) -> int:
        """How many iterations' hyper-parameters are sure to fit into so many bytes when pickled; at least 1."""
        numbers = sum(max(1, len(changed)) for changed in self._changed)
        return max(1, num_bytes // (_GROUP_BYTES * len(self._first) + _NUMBER_BYTES * numbers))

    def _present(self, number: int) -> dict[str, Any]:
        values = _numbers(self._optimizer.param_groups[number])
        first = self._first[number]
        self._changed[number] |= {key for key in first if values.get(key) != first[key]}
        return {key: values[key] for key in sorted(self._changed[number])}


def _numbers(group: dict[str, Any]) -> dict[str, Any]:
    """The numeric entries of a parameter group, as plain Python numbers and tuples of them."""
    found: dict[str, Any] = {}
    for key, value in group.items():
        parts = value if isinstance(value, tuple) else (value,)
        if key != "params" and all(isinstance(part, (bool, int, float)) for part in parts):
            plain = tuple(part if isinstance(part, (bool, int)) else float(part) for part in parts)
            found[key] = plain if isinstance(value, tuple) else plain[0]
    return found
