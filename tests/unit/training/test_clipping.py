from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mizzle.collectives.layout import ExchangeLayout
from mizzle.collectives.slices import ALIGNMENT
from mizzle.errors import ConfigError
from mizzle.training.clipping import ClipByNorm, ClipByValue, chunk_sums, global_norm, norm_message


def spread(num_chunks: int, seed: int) -> torch.Tensor:
    """Values over many orders of magnitude, so that another order of adding shows."""
    stream = torch.Generator().manual_seed(seed)
    values = torch.randn(num_chunks * ALIGNMENT, generator=stream)
    return values * torch.exp(4 * torch.randn(num_chunks * ALIGNMENT, generator=stream))


def norm_over(vector: torch.Tensor, num_ranks: int, stripe: int = 1 << 30) -> tuple[float, list[bytes]]:
    """The norm of all but the last chunk, which stands for buffers."""
    num_parameters = len(vector) - ALIGNMENT
    layout = ExchangeLayout(len(vector), num_ranks, tuple((rank,) for rank in range(num_ranks)), stripe=stripe)
    messages = []
    for rank in range(num_ranks):
        owned = layout.owned(rank)
        parts = [vector[one.start : min(one.stop, num_parameters)] for one in owned]
        messages.append(norm_message(torch.cat([vector[:0], *parts]), owned, num_parameters))
    return global_norm(messages, num_parameters), messages


def with_buffers(vector: torch.Tensor) -> torch.Tensor:
    return torch.cat([vector, torch.full((ALIGNMENT,), 1e30)])


@settings(deadline=None)
@given(st.integers(1, 70), st.integers(1, 80), st.integers(1, 80), st.integers(0, 1000))
def test_norm_has_the_same_bits_for_every_number_of_ranks_and_of_ranges(
    num_chunks: int, num_ranks: int, chunks_a_stripe: int, seed: int
) -> None:
    vector = spread(num_chunks, seed)
    alone, _ = norm_over(with_buffers(vector), 1)
    shared, _ = norm_over(with_buffers(vector), num_ranks)
    striped, _ = norm_over(with_buffers(vector), num_ranks, chunks_a_stripe * ALIGNMENT)
    assert shared == striped == alone
    assert alone == pytest.approx(float(vector.double().norm()), rel=1e-13)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(0, 1000))
def test_a_chunk_has_the_same_bits_whatever_stands_beside_it(num_chunks: int, seed: int) -> None:
    vector = spread(num_chunks, seed)
    alone = [float(chunk_sums(vector[i * ALIGNMENT : (i + 1) * ALIGNMENT])[0]) for i in range(num_chunks)]
    assert chunk_sums(vector).tolist() == alone


def test_messages_stay_small_for_a_large_model() -> None:
    ranks, elements = 7, 6800 * ALIGNMENT
    vector = with_buffers(torch.ones(elements))
    norm, messages = norm_over(vector, ranks)
    assert max(map(len, messages)) < 1024
    assert norm == math.sqrt(elements)
    norm, messages = norm_over(vector, ranks, 1 << 20)
    assert max(map(len, messages)) <= 270 * len(range(0, elements, 1 << 20))
    assert norm == math.sqrt(elements)


def test_a_value_that_is_not_finite_reaches_the_norm() -> None:
    vector = torch.zeros(4 * ALIGNMENT)
    vector[2000] = float("inf")
    assert norm_over(vector, 2)[0] == math.inf
    vector[2000] = float("nan")
    assert math.isnan(norm_over(vector, 2)[0])


@pytest.mark.parametrize("norm", [0.0, 0.5, 0.999999, 1.0, 3.7])
def test_coefficient_is_the_one_of_torch(norm: float) -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.grad = torch.tensor([norm])
    torch.nn.utils.clip_grad_norm_([parameter], 1.0)
    assert norm * ClipByNorm(1.0).coefficient(norm) == pytest.approx(float(parameter.grad), rel=1e-6)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan")])
def test_a_limit_that_leaves_nothing_is_refused(bad: float) -> None:
    with pytest.raises(ConfigError, match="above 0"):
        ClipByNorm(bad)
    with pytest.raises(ConfigError, match="above 0"):
        ClipByValue(bad)
