"""A network that is little more than its gradient: 7 million parameters, few operations for each.

It has the size of Inception-v1 and a small share of its work, so that with a small batch the exchange weighs the most.
"""

from __future__ import annotations

import torch
from torch import nn


class Mlp7M(nn.Module):
    """Three square linear layers; 7,008,936 parameters, 28 MB."""

    width = 1528
    """Length of input and output."""

    def __init__(self) -> None:
        """See the class."""
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(self.width, self.width),
            nn.ReLU(),
            nn.Linear(self.width, self.width),
            nn.ReLU(),
            nn.Linear(self.width, self.width),
        )

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Logits (n, 1528) of rows (n, 1528) fp32."""
        logits: torch.Tensor = self.layers(rows)
        return logits
