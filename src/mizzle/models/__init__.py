"""The reference networks. A leaf: torch only, no other room."""

from mizzle.models.lenet5 import LeNet5

__all__ = ["LeNet5"]
