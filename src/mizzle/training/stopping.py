"""When to stop a training that gets no better: a rule, and a pure state machine that follows it.

Knows no model and no clock. The same values give the same decision, so a run stops at the same iteration for every
number of ranks and every group size.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

from mizzle.errors import ConfigError
from mizzle.training.evaluate import Evaluation
from mizzle.training.spec import LOSS


@dataclass(frozen=True, slots=True)
class EarlyStopping:
    """Stop after ``patience`` evaluations in a row that were not better than the best one before.

    Attributes:
        patience: evaluations. 3 forgives a worse one or two, which small validation sets show by chance.
        min_delta: by how much the value must beat the best one to count as better; in the value's own unit.
        monitor: "loss", or the name of a metric.
        mode: "min" when lower is better, "max" when higher is.
    """

    patience: int = 3
    min_delta: float = 0.0
    monitor: str = LOSS
    mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if not _is(int, self.patience) or self.patience < 1:
            raise ConfigError(f"patience is {self.patience!r}: give a whole number of evaluations, at least 1")
        if not _is(Real, self.min_delta) or not 0 <= self.min_delta < math.inf:
            raise ConfigError(f"min_delta is {self.min_delta!r}: give a number, at least 0")
        if not _is(str, self.monitor) or not self.monitor:
            raise ConfigError(f"monitor is {self.monitor!r}: give 'loss' or the name of a metric")
        if self.mode not in {"min", "max"}:
            raise ConfigError(f"mode is {self.mode!r}: give 'min' when lower is better, 'max' when higher is")

    def check_monitor(self, metrics: Collection[str]) -> None:
        """Make sure that there will be something to look at.

        Args:
            metrics: names of those that are evaluated.

        Raises:
            ConfigError: names what there is.
        """
        if self.monitor != LOSS and self.monitor not in metrics:
            known = ", ".join(map(repr, (LOSS, *metrics)))
            raise ConfigError(f"early stopping monitors {self.monitor!r}, but evaluation gives {known}")

    def value(self, evaluation: Evaluation) -> float:
        """What is monitored.

        Raises:
            ConfigError: the evaluation does not have it.
        """
        self.check_monitor(evaluation.metrics)
        return evaluation.loss if self.monitor == LOSS else evaluation.metrics[self.monitor]


class StoppingState:
    """How long a training has not got better.

    Args:
        rule: when to stop.

    Attributes:
        best: the best finite value so far; None before there was one.
        waited: evaluations since then.
    """

    def __init__(self, rule: EarlyStopping) -> None:
        """See the class."""
        self.rule = rule
        self.best: float | None = None
        self.waited = 0

    def observe(self, value: float) -> bool:
        """Take in the next value; whether to stop now.

        NaN and infinity are never better, not even than nothing.
        """
        if math.isfinite(value) and self._better(value):
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        return self.is_over

    @property
    def is_over(self) -> bool:
        """Whether to stop."""
        return self.waited >= self.rule.patience

    def as_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: JSON-able, floats come back with the same bits."""
        return {"best": self.best, "waited": self.waited}

    @classmethod
    def of(cls, rule: EarlyStopping, saved: Mapping[str, Any] | None) -> StoppingState:
        """Go on from `as_dict`, or begin; the rule may be another."""
        state = cls(rule)
        if saved is not None:
            state.best, state.waited = saved["best"], saved["waited"]
        return state

    def _better(self, value: float) -> bool:
        if self.best is None:
            return True
        gain = self.best - value if self.rule.mode == "min" else value - self.best
        return gain > self.rule.min_delta


def _is(kind: type, value: object) -> bool:
    """Whether a caller kept to the type: nothing checked it before."""
    return isinstance(value, kind) and not isinstance(value, bool)
