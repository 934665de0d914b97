"""The evaluations of a training as a file of a checkpoint: safetensors, as there may be as many as iterations. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mizzle.errors import ConfigError
from mizzle.training.evaluate import Evaluation
from mizzle.training.state import PackedState, unpack_state

_NUMBERS, _LOSS, _METRIC, _HAS = "numbers", "loss", "metric.", "has."


def pack_evaluations(evaluations: Sequence[Evaluation]) -> PackedState:
    """Lay evaluations out, floats to the bit.

    Returns:
        "numbers", (n, 3) int64: iteration, epoch, rows; "loss", (n,) float64; for every name that some of them have
        "metric.NAME", (n,) float64, and "has.NAME", (n,) bool: whether the evaluation has it.
    """
    numbers = [(one.iteration, one.epoch, one.rows) for one in evaluations]
    tensors = {
        _NUMBERS: torch.tensor(numbers, dtype=torch.int64).view(-1, 3),
        _LOSS: torch.tensor([one.loss for one in evaluations], dtype=torch.float64),
    }
    for name in sorted({name for one in evaluations for name in one.metrics}):
        values = [one.metrics.get(name, 0.0) for one in evaluations]
        tensors[_METRIC + name] = torch.tensor(values, dtype=torch.float64)
        tensors[_HAS + name] = torch.tensor([name in one.metrics for one in evaluations], dtype=torch.bool)
    return PackedState(tensors, {})


def unpack_evaluations(raw: bytes | bytearray) -> tuple[Evaluation, ...]:
    """What `pack_evaluations` was given.

    Raises:
        ConfigError: these are no evaluations.
    """
    tensors, _ = unpack_state(raw)
    try:
        numbers: list[list[int]] = tensors[_NUMBERS].tolist()
        losses: list[float] = tensors[_LOSS].tolist()
        metrics: list[dict[str, float]] = [{} for _ in numbers]
        for name in (key.removeprefix(_METRIC) for key in tensors if key.startswith(_METRIC)):
            values, there = tensors[_METRIC + name].tolist(), tensors[_HAS + name].tolist()
            for found, value, has in zip(metrics, values, there, strict=True):
                found.update({name: value} if has else {})
        return tuple(
            Evaluation(iteration, epoch, rows, loss, found)
            for (iteration, epoch, rows), loss, found in zip(numbers, losses, metrics, strict=True)
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{len(raw)} bytes given as evaluations are none: {type(error).__name__}: {error}") from error
