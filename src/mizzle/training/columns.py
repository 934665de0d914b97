"""Which columns are trained on, and how rows become tensors.

Kept apart from `shards`, so that the executors' data tasks, which only write rows, never wait for torch to load.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from mizzle.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Inputs = torch.Tensor | tuple[torch.Tensor, ...]
Batch = tuple[Inputs, torch.Tensor | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Which columns are fed to the model and how rows become tensors.

    Attributes:
        features: names of the input columns: one column of arrays, or any number of numeric columns.
        label: name of the target column; None when the loss needs no target.
        shape: shape of one row's input, for example ``(1, 8, 8)``; None leaves arrays flat.
        collate: takes the rows of a mini-batch, ``pyarrow.RecordBatch`` with the selected columns, and returns
            ``(inputs, targets)``. Needed for anything that is not numeric, such as JPEG bytes. It is sent to the
            executors, so it must be a top-level function of a module they have, or picklable by cloudpickle.
    """

    features: tuple[str, ...]
    label: str | None = None
    shape: tuple[int, ...] | None = None
    collate: Callable[[pa.RecordBatch], Batch] | None = None

    def __post_init__(self) -> None:
        """Refuse what could never be trained on, before a DataFrame is looked at."""
        if not self.features:
            raise DataError("features names no column; name one, or a list of them")
        twice = sorted({name for name in self.features if self.features.count(name) > 1})
        if twice:
            raise DataError(f"features lists the column {twice[0]!r} twice; list each column once")
        if self.shape is not None and (not self.shape or min(self.shape) < 1):
            raise DataError(
                f"shape={self.shape} must have positive sizes; it is the shape of one row, without the batch"
            )
        if self.shape is not None and self.collate is not None:
            raise DataError("shape and collate exclude each other: let collate give the tensor its shape")

    @classmethod
    def of(
        cls,
        features: str | Sequence[str],
        label: str | None = None,
        *,
        shape: Sequence[int] | None = None,
        collate: Callable[[pa.RecordBatch], Batch] | None = None,
    ) -> Columns:
        """The same from what users write: a name or a list of names.

        Raises:
            DataError: no feature, one listed twice, or an impossible shape; the message says which.
        """
        names = (features,) if isinstance(features, str) else tuple(features)
        return cls(features=names, label=label, shape=None if shape is None else tuple(shape), collate=collate)

    @property
    def names(self) -> tuple[str, ...]:
        """The columns to select, each once: features in their order, then the label."""
        return tuple(dict.fromkeys([*self.features, *([] if self.label is None else [self.label])]))

    @property
    def row_elements(self) -> int | None:
        """Numbers in one row's input as ``shape`` demands it; None when any length will do."""
        return None if self.shape is None else math.prod(self.shape)

    def tensors(self, rows: pa.RecordBatch) -> Batch:
        """Turn rows into tensors that own their memory.

        Args:
            rows: pyarrow.RecordBatch with the columns `names`, without nulls, lists of one column equally long.

        Returns:
            ``(inputs, targets)``. Inputs: float32 of shape (rows, length) for a column of arrays, (rows, features)
            for numeric columns, or (rows, *shape). Targets: int64 (rows,) for whole numbers, float32 (rows,) for
            fractions, float32 (rows, length) for arrays, None without a label. Or whatever ``collate`` returns.
        """
        if self.collate is not None:
            return self.collate(rows)
        columns = [_numbers(rows.column(name)) for name in self.features]
        if columns[0].ndim == 2 and len(columns) > 1:
            raise DataError(
                f"columns {list(self.features)} cannot be stacked; use one array column, or pass collate=..."
            )
        matrix = columns[0] if columns[0].ndim == 2 else np.stack(columns, axis=1)
        inputs = torch.from_numpy(np.array(matrix, dtype=np.float32))
        if self.shape is not None:
            inputs = inputs.reshape(len(inputs), *self.shape)
        if self.label is None:
            return inputs, None
        label = _numbers(rows.column(self.label))
        whole = label.ndim == 1 and np.issubdtype(label.dtype, np.integer)
        return inputs, torch.from_numpy(np.array(label, dtype=np.int64 if whole else np.float32))


def _numbers(column: pa.Array) -> npt.NDArray[Any]:
    """A column as numpy: (rows,) for numbers, (rows, length) for lists."""
    kind = column.type
    if not (pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return np.asarray(column.to_numpy(zero_copy_only=False))
    values = column.flatten().to_numpy(zero_copy_only=False)
    if pa.types.is_fixed_size_list(kind):
        return np.asarray(values).reshape(len(column), kind.list_size)
    return np.asarray(values).reshape(len(column), len(values) // max(1, len(column)))
