"""What users hand to a collective, as a flat tensor in host memory, and back again in the form it came in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import TypeAlias, TypeVar

import numpy as np
import torch

from mizzle.blocks.ids import DType
from mizzle.collectives.wire import Wire
from mizzle.errors import ConfigError

Array: TypeAlias = "np.ndarray | torch.Tensor"
ArrayT = TypeVar("ArrayT", bound="np.ndarray | torch.Tensor")

BLOCK_DTYPES: Mapping[torch.dtype, DType] = {
    torch.float32: DType.FLOAT32, torch.float64: DType.FLOAT64, torch.bfloat16: DType.BFLOAT16,
    torch.float16: DType.FLOAT16, torch.int32: DType.INT32, torch.int64: DType.INT64,
}  # fmt: skip
_NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in BLOCK_DTYPES}


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` and so on."""
    return str(dtype).removeprefix("torch.")


def dtype_named(name: str) -> torch.dtype:
    """The element type of that name.

    Raises:
        ConfigError: it does not travel; names those that do.
    """
    if name not in _NAMES:
        raise ConfigError(f"arrays of {name} do not travel: convert to one of {', '.join(_NAMES)} first")
    return _NAMES[name]


@dataclass(frozen=True, slots=True)
class Form:
    """How an array looked.

    Attributes:
        is_numpy: a numpy array, otherwise a torch tensor.
        shape: its shape.
        dtype: its element type.
        device: where the tensor was.
    """

    is_numpy: bool
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def on_host(cls, shape: tuple[int, ...], dtype: torch.dtype, *, is_numpy: bool) -> Form:
        """The form of an array in host memory; bfloat16, which numpy does not know, is always a tensor."""
        return cls(is_numpy and dtype is not torch.bfloat16, shape, dtype, torch.device("cpu"))

    @property
    def num_elements(self) -> int:
        """Product of the shape."""
        return prod(self.shape)

    def reshaped(self, *shape: int) -> Form:
        """The same kind of array in another shape."""
        return replace(self, shape=shape)

    def restore(self, flat: torch.Tensor) -> Array:
        """An array of this form over ``flat`` (n,); on another device it is a copy."""
        if self.is_numpy:
            array: np.ndarray = flat.numpy().reshape(self.shape)
            return array
        return flat.view(self.shape).to(self.device)


def flatten(array: Array) -> tuple[torch.Tensor, Form]:
    """A flat tensor (n,) in host memory with the array's elements, not copied where possible, and the array's form.

    Raises:
        ConfigError: it is no array or tensor, or of an element type that does not travel; says what to do.
    """
    if isinstance(array, torch.Tensor):
        if array.layout != torch.strided:
            raise ConfigError(f"a tensor of layout {array.layout} does not travel: call .to_dense() first")
        form = Form(
            is_numpy=False, shape=tuple(array.shape), dtype=dtype_named(dtype_name(array.dtype)), device=array.device
        )
        return array.detach().cpu().reshape(-1), form
    if not isinstance(array, np.ndarray | np.generic):
        raise ConfigError(f"a {type(array).__name__} is not an array: pass np.asarray(value) or torch.as_tensor(value)")
    whole = np.asarray(array)
    if not whole.dtype.isnative:
        raise ConfigError(
            f"the array has foreign byte order {whole.dtype}: convert with .astype({whole.dtype.name!r}) first"
        )
    form = Form.on_host(whole.shape, dtype_named(whole.dtype.name), is_numpy=True)
    flat = np.ascontiguousarray(whole).reshape(-1)
    # torch warns of memory that it must not write to, and knows no negative strides
    return torch.from_numpy(flat if flat.flags.writeable else flat.copy()), form


@dataclass(frozen=True, slots=True)
class Formats:
    """The element types that a reduction goes through.

    Attributes:
        native: of the array.
        contribution: on the way to the owner of a slice.
        accumulator: in which is added: never 16 bits.
        result: on the way back.
    """

    native: torch.dtype
    contribution: torch.dtype
    accumulator: torch.dtype
    result: torch.dtype

    @classmethod
    def of(cls, native: torch.dtype, wire: str | Wire | None = None, *, pre_added: bool = False) -> Formats:
        """For arrays of ``native``, rounded to ``wire`` on their way.

        With ``pre_added``, contributions are sums already: they travel unrounded, so that placement does not show.

        Raises:
            ConfigError: a wire type was given for something that is not float32.
        """
        accumulator = torch.float32 if native in (torch.float16, torch.bfloat16) else native
        moved = native
        if wire is not None:
            moved = Wire.of(wire).dtype
            if native is not torch.float32 and moved is not native:
                raise ConfigError(
                    f"wire={Wire.of(wire).value!r} is for float32 arrays; one of {dtype_name(native)} travels as is"
                )
        return cls(native, accumulator if pre_added else moved, accumulator, moved)
