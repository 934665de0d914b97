"""First weights of deep networks without batch norm.

After X. Glorot, Y. Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS 2010,
https://proceedings.mlr.press/v9/glorot10a.html.
"""

from __future__ import annotations

from torch import nn


def draw_weights(module: nn.Module) -> None:
    """Draw the weights of one layer anew, if it has any: with torch's defaults signals die out in deep networks."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        assert module.bias is not None, f"{module} has no bias"
        nn.init.zeros_(module.bias)
