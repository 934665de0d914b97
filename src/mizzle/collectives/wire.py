"""What floats look like between ranks: fp32, or rounded to 16 bits to halve the traffic. Sums are never in 16 bits.

Rounding is to the nearest, ties to even. fp16 overflows to infinity above 65504 and loses what is below 6e-8: scaling
the loss is the caller's business. bf16 has the range of fp32 and 8 bits of precision.
"""

from __future__ import annotations

from enum import Enum

import torch

from mizzle.blocks.ids import DType
from mizzle.errors import ConfigError


class Wire(Enum):
    """Element type of contributions between ranks."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"

    @classmethod
    def of(cls, name: str | Wire) -> Wire:
        """The wire type of that name.

        Raises:
            ConfigError: there is none; write "fp32", "bf16" or "fp16".
        """
        try:
            return cls(name)
        except ValueError as error:
            raise ConfigError(
                f"unknown wire type {name!r}: write one of {', '.join(repr(w.value) for w in cls)}"
            ) from error

    @property
    def dtype(self) -> torch.dtype:
        """As torch names it."""
        return _TORCH[self]

    @property
    def block_dtype(self) -> DType:
        """As block headers name it."""
        return _BLOCK[self]

    @property
    def element_bytes(self) -> int:
        """Bytes of one element."""
        return self.dtype.itemsize

    def encode(self, source: torch.Tensor, into: torch.Tensor) -> None:
        """Round ``source`` (n,) fp32 to the nearest, ties to even, into ``into`` (n,) of `dtype`. Allocates nothing."""
        into.copy_(source)

    def decode(self, source: torch.Tensor, into: torch.Tensor) -> None:
        """Widen ``source`` (n,) of `dtype` exactly into ``into`` (n,) fp32. Allocates nothing."""
        into.copy_(source)


_TORCH = {Wire.FP32: torch.float32, Wire.BF16: torch.bfloat16, Wire.FP16: torch.float16}
_BLOCK = {Wire.FP32: DType.FLOAT32, Wire.BF16: DType.BFLOAT16, Wire.FP16: DType.FLOAT16}
