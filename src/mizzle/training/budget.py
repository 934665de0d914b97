"""A rank's time for an iteration, where nobody waits for slow ones: its own computation stops when it is over.

Slow tasks are dropped as in BigDL (Dai et al., SoCC 2019, https://arxiv.org/abs/1804.05839) and in backup-worker SGD
(Chen et al., "Revisiting Distributed Synchronous SGD", 2016, https://arxiv.org/abs/1604.00981): the mean is that of the
gradients that arrived. But the slow rank itself gives up, so no rank has to guess who will still come, and all see the
same set.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch.utils.hooks import RemovableHandle

T = TypeVar("T")


class OverBudget(BaseException):  # not an Exception: a model that catches those must not swallow it
    """The rank's time for this iteration is over; never leaves the rank."""


class TimeBudget:
    """Ends a computation at the next module that begins, or the next gradient that is done.

    What runs in between, a single kernel or the reading of rows, is not interrupted.

    Args:
        model: its modules and parameters get hooks; `close` takes them away.
        clock: seconds, from anywhere on.
    """

    def __init__(self, model: torch.nn.Module, clock: Callable[[], float]) -> None:
        """See the class."""
        self._clock = clock
        self._until = math.inf
        self._is_running = False
        self._hooks: list[RemovableHandle] = [
            module.register_forward_pre_hook(self._at_module) for module in model.modules()
        ]
        self._hooks += [
            parameter.register_post_accumulate_grad_hook(self._at_gradient)  # type: ignore[no-untyped-call]
            for parameter in model.parameters()
            if parameter.requires_grad
        ]

    def begin(self, limit_s: float | None) -> None:
        """From now on there is so much time; None: any."""
        self._until = math.inf if limit_s is None else self._clock() + limit_s

    def within(self, compute: Callable[[], T]) -> T | None:
        """What ``compute`` returns; None: the time was over before it was done, or before it began."""
        self._is_running = True
        try:
            self._check()
            return compute()
        except OverBudget:
            return None
        finally:
            self._is_running = False

    def close(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()

    def _check(self) -> None:
        if self._is_running and self._clock() > self._until:
            raise OverBudget

    def _at_module(self, _module: torch.nn.Module, _inputs: object) -> None:
        self._check()

    def _at_gradient(self, _parameter: torch.Tensor) -> None:
        self._check()
