from __future__ import annotations

import pytest
import torch

from mizzle.models import LeNet5


@pytest.mark.parametrize(("image_size", "parameters"), [(8, 21386), (28, 61706)])
def test_lenet5_takes_both_sizes(image_size: int, parameters: int) -> None:
    model = LeNet5(image_size=image_size, num_classes=10)
    assert model(torch.zeros(3, 1, image_size, image_size)).shape == (3, 10)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="image_size is 9"):
        LeNet5(image_size=9)
