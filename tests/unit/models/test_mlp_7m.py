from __future__ import annotations

import torch

from mizzle.models import Mlp7M


def test_seven_million_parameters_are_28_megabytes() -> None:
    with torch.device("meta"):
        model = Mlp7M()
        assert model(torch.empty(3, Mlp7M.width)).shape == (3, Mlp7M.width)
    assert sum(p.numel() for p in model.parameters()) == 7_008_936
    assert round(7_008_936 * 4 / 1e6) == 28
