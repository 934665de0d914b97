"""What an executor does to look at rows: masks over record batches, and one report a partition.

A row is bad when a selected column is null, has a null inside an array, is NaN or infinite (as float32), or has a
label that is no class. Array lengths are only counted: which one is right, the driver decides (`validate`).
Loads neither torch nor pyspark.ml, so that a data task starts quickly.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyspark import TaskContext

from mizzle.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Mask = npt.NDArray[np.bool_]
Lengths = tuple[int, ...]
"""Array lengths of one row, one for each uniform column, in the order of the rules."""

MAX_LENGTHS = 1000
"""Different lengths that are counted; data with more is not ragged by accident."""
REPORT = (
    "partition int, rows bigint, fault_row bigint, fault string, lengths string, label_min double, label_max double"
)


@dataclass(frozen=True, slots=True)
class Rule:
    """What every row must keep in one column.

    Attributes:
        name: the column.
        array: whether it holds arrays of numbers (their elements are checked) rather than single values.
        numeric: whether values are numbers and must be finite; otherwise only nulls are refused.
        uniform: whether all arrays must be equally long.
        elements: the length they must have, where the user said it; None: the most frequent one.
        classes: the value must be a whole number in [0, classes); None: any number.
    """

    name: str
    array: bool = False
    numeric: bool = False
    uniform: bool = False
    elements: int | None = None
    classes: int | None = None


@dataclass(frozen=True, slots=True)
class CheckPartition:
    """Runs on an executor: record batches of one partition in, one report out.

    Attributes:
        rules: what to check.
        label: the label column, for its range; or None.
    """

    rules: tuple[Rule, ...]
    label: str | None

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Look at every row; memory is that of one record batch."""
        rows, fault_row, fault = 0, None, None
        counts: Counter[Lengths] = Counter()
        first: dict[Lengths, int] = {}
        label_range: list[float] = []
        for batch in batches:
            good, lengths, problem = check_rows(batch, self.rules)
            if problem is not None and fault is None:
                fault_row, fault = rows + problem[0], problem[1]
            for key, count, row in _tally(lengths, good):
                if key in counts or len(counts) < MAX_LENGTHS:
                    counts[key] += count
                    first.setdefault(key, rows + row)
            label_range = _widen(label_range, self._labels(batch), good)
            rows += batch.num_rows
        found = json.dumps([[list(key), count, first[key]] for key, count in counts.items()])
        low, high = label_range or (None, None)
        yield pa.RecordBatch.from_arrays(
            [
                pa.array([current_partition()], pa.int32()), pa.array([rows], pa.int64()),
                pa.array([fault_row], pa.int64()), pa.array([fault], pa.string()), pa.array([found], pa.string()),
                pa.array([low], pa.float64()), pa.array([high], pa.float64()),
            ],
            names=[part.split()[0] for part in REPORT.split(", ")],
        )  # fmt: skip

    def _labels(self, batch: pa.RecordBatch) -> npt.NDArray[Any] | None:
        for at, rule in enumerate(self.rules):
            if rule.name == self.label and rule.numeric and not rule.array:
                return _values(batch.column(at))
        return None


def current_partition() -> int:
    """Number of the partition that this task works on."""
    context = TaskContext.get()
    if context is None:
        raise ConfigError("this function works on a partition; call it inside a Spark task")
    return context.partitionId()


def _tally(lengths: npt.NDArray[np.int64], good: Mask) -> Iterator[tuple[Lengths, int, int]]:
    """Each combination of lengths among good rows: how many rows, and the first."""
    where = np.flatnonzero(good)
    if where.size == 0:
        return
    keys, index, count = np.unique(lengths[where], axis=0, return_index=True, return_counts=True)
    for key, at, number in zip(keys.tolist(), index, count, strict=True):
        yield tuple(key), int(number), int(where[at])


def _widen(bounds: list[float], labels: npt.NDArray[Any] | None, good: Mask) -> list[float]:
    """Smallest and largest good label so far."""
    if labels is None or not good.any():
        return bounds
    return [float(f([*bounds, f(labels[good])])) for f in (min, max)]


def check_rows(
    batch: pa.RecordBatch, rules: tuple[Rule, ...]
) -> tuple[Mask, npt.NDArray[np.int64], tuple[int, str] | None]:
    """Which rows are good, array lengths aside.

    Args:
        batch: pyarrow.RecordBatch with one column for each rule, in the same order.
        rules: what to check.

    Returns:
        A mask of shape (rows,), lengths of the uniform columns of shape (rows, columns), and the first bad row with
        the reason, or None.
    """
    bad: Mask = np.zeros(batch.num_rows, dtype=np.bool_)
    lengths = [_lengths(batch.column(at)) for at, rule in enumerate(rules) if rule.uniform]
    first: tuple[int, str] | None = None
    for at, rule in enumerate(rules):
        column = batch.column(at)
        for mask, describe in _problems(column, rule):
            if mask.any():
                row = int(np.argmax(mask))
                if first is None or row < first[0]:
                    first = (row, f"column {rule.name!r} {describe(row)}")
                bad |= mask
    # A row number axis first: (rows, columns), also when there are no uniform columns.
    return ~bad, np.array(lengths, dtype=np.int64).reshape(len(lengths), batch.num_rows).T, first


def _problems(column: pa.Array, rule: Rule) -> Iterator[tuple[Mask, Callable[[int], str]]]:
    """Every kind of fault: the rows that have it, and a sentence about one of them."""
    nulls = _as_mask(column.is_null())
    yield nulls, lambda _: "is null"
    if not rule.numeric:
        return
    if rule.array:
        yield from _array_problems(column)
        return
    values = _values(column)
    yield ~nulls & ~np.isfinite(values), lambda row: f"is {values[row]}, which is not a finite float32"
    if rule.classes is not None:
        last = rule.classes - 1
        with np.errstate(invalid="ignore"):
            strange = (values < 0) | (values > last) | (values != np.floor(values))
        yield ~nulls & strange, lambda row: f"is {values[row]}, which is no class number in 0..{last}"


def _array_problems(column: pa.Array) -> Iterator[tuple[Mask, Callable[[int], str]]]:
    """Rows with a null, NaN or infinite element."""
    flat = column.flatten()
    if flat.null_count:
        yield _rows_of(column, _as_mask(flat.is_null())), lambda _: "has a null inside its array"
    values = _values(flat)
    infinite = ~np.isfinite(values)
    if infinite.any():
        infinite &= ~_as_mask(flat.is_null())
        yield _rows_of(column, infinite), lambda _: "has an element that is NaN or infinite as float32"


def _rows_of(column: pa.Array, elements: Mask) -> Mask:
    """The rows to which the marked elements belong."""
    rows: Mask = np.zeros(len(column), dtype=np.bool_)
    rows[np.asarray(pc.list_parent_indices(column))[elements]] = True
    return rows


def _as_mask(values: pa.Array) -> Mask:
    return np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.bool_)


def _lengths(column: pa.Array) -> npt.NDArray[np.int64]:
    """Array lengths, 0 for null. Zero length is refused later: such arrays hold nothing to train on."""
    return np.asarray(pc.fill_null(pc.list_value_length(column), 0), dtype=np.int64)


def _values(array: pa.Array) -> npt.NDArray[Any]:
    """Numbers as numpy, with something finite in place of null."""
    if array.null_count:
        array = pc.fill_null(array, False if pa.types.is_boolean(array.type) else 0)
    if pa.types.is_decimal(array.type):
        array = array.cast(pa.float64())
    return np.asarray(array.to_numpy(zero_copy_only=False))
