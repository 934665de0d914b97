"""Tensors over bytes that are already there: regions and fetched payloads. Never copies."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mizzle.blocks.region import Region, Span


def over_region(region: Region, dtype: torch.dtype, count: int, offset: int = 0) -> torch.Tensor:
    """A writable tensor (count,) of ``dtype`` over the region's bytes from ``offset`` on."""
    if count == 0:  # torch.frombuffer refuses to look at nothing
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(region.buffer, dtype=dtype, count=count, offset=offset)


def over_span(span: Span, dtype: torch.dtype) -> torch.Tensor:
    """A writable tensor over the whole span."""
    return over_region(span.region, dtype, span.length // dtype.itemsize, span.offset)


def over_payload(payload: memoryview, dtype: torch.dtype, count: int | None = None) -> torch.Tensor:
    """A tensor over bytes that must only be read: all of them, or the first ``count`` elements.

    torch has no read-only tensors, and warns of a buffer that is one; so the address is handed over instead. The
    tensor keeps the memory alive.
    """
    if count is not None:
        payload = payload[: count * dtype.itemsize]
    if len(payload) == 0:
        return torch.empty(0, dtype=dtype)
    return torch.from_numpy(np.asarray(_Address(payload))).view(dtype)


class _Address:
    """A view's bytes under numpy's array interface, kept alive by it."""

    def __init__(self, payload: memoryview) -> None:
        self.payload = payload
        address = np.frombuffer(payload, dtype=np.uint8).__array_interface__["data"][0]
        self.__array_interface__: dict[str, Any] = {
            "data": (address, False), "shape": (len(payload),), "typestr": "|u1", "version": 3,
        }  # fmt: skip
