"""Evaluations come back from their file as they were, to the bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mizzle.errors import ConfigError
from mizzle.training.evaluate import Evaluation
from mizzle.training.evaluation_log import pack_evaluations, unpack_evaluations
from mizzle.training.state import pack_state

WHOLE = st.integers(0, 2**62)
FLOATS = st.floats(allow_nan=False)
METRICS = st.dictionaries(st.sampled_from(["accuracy", "ä", "has.x", "metric.x", ""]), FLOATS)


@settings(max_examples=30)
@given(st.lists(st.builds(Evaluation, WHOLE, WHOLE, WHOLE, FLOATS, METRICS), max_size=5))
def test_what_is_packed_is_unpacked_whatever_metrics_each_has(evaluations: list[Evaluation]) -> None:
    found = unpack_evaluations(pack_evaluations(evaluations).to_bytes())
    assert list(found) == evaluations
    for one, other in zip(found, evaluations, strict=True):
        assert repr((one.loss, sorted(one.metrics.items()))) == repr((other.loss, sorted(other.metrics.items())))


@pytest.mark.parametrize(
    "tensors",
    [
        {}, {"numbers": torch.zeros(2, 3)}, {"numbers": torch.zeros(2, 3), "loss": torch.zeros(1)},
        {"numbers": torch.zeros(2, 2), "loss": torch.zeros(2)}, {"numbers": torch.zeros(()), "loss": torch.zeros(1)},
        {"numbers": torch.zeros(1, 3), "loss": torch.zeros(1), "metric.x": torch.zeros(1)},
    ],
)  # fmt: skip
def test_what_are_no_evaluations_is_refused(tensors: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ConfigError, match="given as evaluations are none"):
        unpack_evaluations(pack_state(tensors, {}))
