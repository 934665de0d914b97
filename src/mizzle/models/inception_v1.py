"""Inception-v1 (GoogLeNet) for photographs of 224x224, with its two auxiliary heads.

After C. Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, table 1, figure 3 and section 5,
https://arxiv.org/abs/1409.4842. No batch norm: that came later.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from mizzle.models.glorot import draw_weights

AUX_WEIGHT = 0.3
"""Of each auxiliary head's loss, section 5 of the paper."""


class Branches(NamedTuple):
    """Output channels within one inception module: a row of the paper's table 1.

    Attributes:
        one: of the 1x1 convolution.
        reduce_three: of the 1x1 convolution before the 3x3.
        three: of the 3x3 convolution.
        reduce_five: of the 1x1 convolution before the 5x5.
        five: of the 5x5 convolution.
        pool: of the 1x1 convolution behind the pooling.
    """

    one: int
    reduce_three: int
    three: int
    reduce_five: int
    five: int
    pool: int

    @property
    def width(self) -> int:
        """Output channels of the module: its four branches side by side."""
        return self.one + self.three + self.five + self.pool


class InceptionOutput(NamedTuple):
    """What the network returns in training mode, logits (n, num_classes) each.

    Attributes:
        logits: of the network.
        after_4a: of the auxiliary head behind module 4a.
        after_4d: of the one behind module 4d.
    """

    logits: torch.Tensor
    after_4a: torch.Tensor
    after_4d: torch.Tensor


class InceptionV1(nn.Module):
    """Nine inception modules on three convolutions; 6,998,552 parameters with 1000 classes, 13,378,280 with the heads.

    Train it with ``Trainer(InceptionV1(...), inception_loss, ...)``, whose loss has the heads' part while training and
    not in validation; metrics see plain logits. Without heads any loss will do. Pictures are (3, 224, 224), a few
    pixels more or less do no harm; small ones fail in a pooling layer.

    Args:
        num_classes: length of the output.
        aux_heads: whether there are auxiliary heads; they take part in training mode only.
    """

    def __init__(self, num_classes: int = 1000, *, aux_heads: bool = True) -> None:
        """See the class."""
        super().__init__()
        self.stem = nn.Sequential(
            *_convolution(3, 64, size=7, stride=2, padding=3),
            _halve(),
            nn.LocalResponseNorm(5),
            *_convolution(64, 64, size=1),
            *_convolution(64, 192, size=3, padding=1),
            nn.LocalResponseNorm(5),
            _halve(),
        )
        self.inception_3a = Inception(192, Branches(64, 96, 128, 16, 32, 32))
        self.inception_3b = Inception(256, Branches(128, 128, 192, 32, 96, 64))
        self.inception_4a = Inception(480, Branches(192, 96, 208, 16, 48, 64))
        self.inception_4b = Inception(512, Branches(160, 112, 224, 24, 64, 64))
        self.inception_4c = Inception(512, Branches(128, 128, 256, 24, 64, 64))
        self.inception_4d = Inception(512, Branches(112, 144, 288, 32, 64, 64))
        self.inception_4e = Inception(528, Branches(256, 160, 320, 32, 128, 128))
        self.inception_5a = Inception(832, Branches(256, 160, 320, 32, 128, 128))
        self.inception_5b = Inception(832, Branches(384, 192, 384, 48, 128, 128))
        self.halve = _halve()
        self.classifier = nn.Sequential(
            nn.AvgPool2d(7), nn.Flatten(), nn.Dropout(0.4), nn.Linear(1024, num_classes)
        )  # fmt: skip
        self.head_4a = _auxiliary_head(512, num_classes) if aux_heads else None
        self.head_4d = _auxiliary_head(528, num_classes) if aux_heads else None
        self.apply(draw_weights)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor | InceptionOutput:
        """Classify pictures.

        Args:
            pictures: (n, 3, 224, 224) fp32.

        Returns:
            Logits (n, num_classes); in training mode with auxiliary heads those of all three: see `inception_loss`.
        """
        found = self.halve(self.inception_3b(self.inception_3a(self.stem(pictures))))
        after_4a = self.inception_4a(found)
        after_4d = self.inception_4d(self.inception_4c(self.inception_4b(after_4a)))
        found = self.halve(self.inception_4e(after_4d))
        logits: torch.Tensor = self.classifier(self.inception_5b(self.inception_5a(found)))
        if not self.training or self.head_4a is None or self.head_4d is None:
            return logits
        return InceptionOutput(logits, self.head_4a(after_4a), self.head_4d(after_4d))


class Inception(nn.Module):
    """One module, figure 2b of the paper: 1x1, 3x3 and 5x5 convolutions and a pooling, side by side."""

    def __init__(self, channels: int, branches: Branches) -> None:
        """Make the module.

        Args:
            channels: of its input.
            branches: of its convolutions.
        """
        super().__init__()
        self.one = nn.Sequential(*_convolution(channels, branches.one, size=1))
        self.three = nn.Sequential(
            *_convolution(channels, branches.reduce_three, size=1),
            *_convolution(branches.reduce_three, branches.three, size=3, padding=1),
        )
        self.five = nn.Sequential(
            *_convolution(channels, branches.reduce_five, size=1),
            *_convolution(branches.reduce_five, branches.five, size=5, padding=2),
        )
        self.pool = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1), *_convolution(channels, branches.pool, size=1)
        )  # fmt: skip

    def forward(self, found: torch.Tensor) -> torch.Tensor:
        """Features (n, branches.width, height, width) of features (n, channels, height, width)."""
        return torch.cat([self.one(found), self.three(found), self.five(found), self.pool(found)], dim=1)


def inception_loss(output: torch.Tensor | InceptionOutput, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy, with 0.3 of each auxiliary head's where there are any.

    Args:
        output: of `InceptionV1`, in either mode.
        targets: classes, (n,) int64.
    """
    if isinstance(output, torch.Tensor):
        return functional.cross_entropy(output, targets)
    main, *heads = (functional.cross_entropy(logits, targets) for logits in output)
    return main + AUX_WEIGHT * sum(heads, start=torch.zeros_like(main))


def _convolution(
    channels: int, wider: int, *, size: int, stride: int = 1, padding: int = 0
) -> tuple[nn.Conv2d, nn.ReLU]:  # fmt: skip
    return nn.Conv2d(channels, wider, size, stride=stride, padding=padding), nn.ReLU(inplace=True)


def _halve() -> nn.MaxPool2d:
    """A pooling that keeps the rim, so that 112, 56, 28 and 14 become 56, 28, 14 and 7."""
    return nn.MaxPool2d(3, stride=2, ceil_mode=True)


def _auxiliary_head(channels: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.AvgPool2d(5, stride=3),
        *_convolution(channels, 128, size=1),
        nn.Flatten(),
        nn.Linear(128 * 4 * 4, 1024),
        nn.ReLU(inplace=True),
        nn.Dropout(0.7),
        nn.Linear(1024, num_classes),
    )
