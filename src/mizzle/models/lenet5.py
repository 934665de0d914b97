"""LeNet-5 for small grey pictures of digits.

After Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to document recognition", Proc. IEEE
86(11), 1998. As usual today: ReLU and max pooling instead of tanh and trainable subsampling, and a linear last layer.
"""

from __future__ import annotations

import torch
from torch import nn


class LeNet5(nn.Module):
    """Two convolutions, three linear layers; 61,706 parameters at 28x28, 21,386 at 8x8.

    Args:
        image_size: side of the square picture, 8 (scikit-learn's digits) or 28 (MNIST).
        num_classes: length of the output.
    """

    def __init__(self, image_size: int = 28, num_classes: int = 10) -> None:
        """See the class."""
        super().__init__()
        if image_size not in {8, 28}:
            raise ValueError(f"image_size is {image_size}: this network is laid out for 8 and 28")
        # a picture of 8x8 is too small for the second convolution to lose its rim as well
        padding, side = (2, 2) if image_size == 8 else (0, 5)
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, kernel_size=5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, kernel_size=5, padding=padding),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(16 * side * side, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, num_classes),
        )

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Logits (n, num_classes) of pictures (n, 1, image_size, image_size) fp32."""
        logits: torch.Tensor = self.classifier(self.features(pictures))
        return logits
