"""Rounding on the wire."""

from __future__ import annotations

import pytest
import torch

from mizzle.collectives.wire import Wire
from mizzle.errors import ConfigError


def through(wire: Wire, values: list[float]) -> list[float]:
    narrow = torch.empty(len(values), dtype=wire.dtype)
    wide = torch.empty(len(values))
    wire.encode(torch.tensor(values), narrow)
    wire.decode(narrow, wide)
    return [float(value) for value in wide]


def test_bf16_rounds_to_the_nearest_and_ties_to_even() -> None:
    step = 2.0**-7
    given = [1 + step / 2, 1 + 3 * step / 2, 1 + step * 0.51, 1 + step * 0.49]
    assert through(Wire.BF16, given) == [1.0, 1 + 2 * step, 1 + step, 1.0]


def test_fp16_rounds_to_the_nearest_even_and_overflows_to_infinity() -> None:
    step = 2.0**-10
    assert through(Wire.FP16, [1 + step / 2, 1 + 3 * step / 2]) == [1.0, 1 + 2 * step]
    assert through(Wire.FP16, [65504.0, 1e5, -1e5, 1e-9]) == [65504.0, float("inf"), float("-inf"), 0.0]


def test_fp32_changes_nothing() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(1)).tolist()
    assert through(Wire.FP32, values) == values


def test_names_and_widths() -> None:
    assert [(Wire.of(name).element_bytes, Wire.of(name).value) for name in ("fp32", "bf16", "fp16")] == [
        (4, "fp32"), (2, "bf16"), (2, "fp16"),
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"'fp8'.*'bf16'"):
        Wire.of("fp8")
