"""A rank's state at a boundary as bytes: safetensors, with scalars as JSON in its metadata. No pickle.

Format: https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from mizzle.errors import ConfigError

_KEY = "mizzle"


def pack_state(tensors: Mapping[str, torch.Tensor], scalars: Mapping[str, Any]) -> bytes:
    """Copy tensors and scalars into bytes, bit for bit.

    Args:
        tensors: any shapes and dtypes, also views.
        scalars: what JSON can hold; floats come back with the same bits.
    """
    owned = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    return safetensors.torch.save(owned, metadata={_KEY: json.dumps(dict(scalars))})


def unpack_state(raw: bytes) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What `pack_state` was given.

    Raises:
        ConfigError: these are not the bytes of a state.
    """
    try:
        tensors = safetensors.torch.load(raw)
        (length,) = struct.unpack_from("<Q", raw)
        scalars: dict[str, Any] = json.loads(json.loads(raw[8 : 8 + length])["__metadata__"][_KEY])
    except (SafetensorError, KeyError, struct.error) as error:
        raise ConfigError(f"{len(raw)} bytes given as a state are not one: {error}") from error
    return tensors, scalars
