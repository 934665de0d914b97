"""VGG-16 against tables 1 and 2 of https://arxiv.org/abs/1409.1556. On torch's meta device, without arithmetic."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mizzle.models import VGG16
from mizzle.models.glorot import draw_weights


@pytest.fixture
def model() -> VGG16:
    with torch.device("meta"):
        return VGG16()


def test_there_are_as_many_parameters_as_configuration_d_has(model: VGG16) -> None:
    assert sum(p.numel() for p in model.parameters()) == 138_357_544
    assert round(138_357_544 / 1e6) == 138, "table 2 of the paper"


def test_thirteen_convolutions_and_three_linear_layers_have_the_channels_of_configuration_d(model: VGG16) -> None:
    widths = [
        layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features
        for layer in model.modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    assert widths == [64, 64, 128, 128, *[256] * 3, *[512] * 6, 4096, 4096, 1000]
    kernels = {layer.kernel_size for layer in model.modules() if isinstance(layer, nn.Conv2d)}
    assert kernels == {(3, 3)}


def test_a_photograph_becomes_logits_of_any_number_of_classes() -> None:
    with torch.device("meta"):
        model = VGG16(num_classes=7)
        pictures = torch.empty(2, 3, 224, 224)
    assert model.features(pictures).shape == (2, 512, 7, 7)
    assert model(pictures).shape == (2, 7)


def test_drawn_weights_keep_the_size_of_a_signal_and_biases_are_zero() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(512, 512)
    draw_weights(layer)
    assert float(layer(torch.randn(64, 512)).detach().std()) == pytest.approx(1.0, abs=0.05)
    assert layer.bias.count_nonzero() == 0
