"""VGG-16 for photographs of 224x224: the largest of the reference networks, nine tenths of it in three linear layers.

After K. Simonyan, A. Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015,
configuration D of table 1, https://arxiv.org/abs/1409.1556.
"""

from __future__ import annotations

import torch
from torch import nn

from mizzle.models.glorot import draw_weights

_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Output channels of the convolutions; a max pooling that halves the picture stands behind each block."""
_SIDE = 224 // 2 ** len(_BLOCKS)


class VGG16(nn.Module):
    """Thirteen convolutions, three linear layers; 138,357,544 parameters with 1000 classes.

    Weights are drawn by `draw_weights`: so, the paper says, it trains without a smaller network's to begin with.

    Args:
        num_classes: length of the output.
    """

    def __init__(self, num_classes: int = 1000) -> None:
        """See the class."""
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for block in _BLOCKS:
            for wider in block:
                layers += [nn.Conv2d(channels, wider, kernel_size=3, padding=1), nn.ReLU(inplace=True)]
                channels = wider
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * _SIDE * _SIDE, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(4096, num_classes),
        )
        self.apply(draw_weights)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Logits (n, num_classes) of pictures (n, 3, 224, 224) fp32."""
        logits: torch.Tensor = self.classifier(self.features(pictures))
        return logits
