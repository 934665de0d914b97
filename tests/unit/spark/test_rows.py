"""Masks over record batches: which rows are bad, and what is said about the first."""

from __future__ import annotations

import pyarrow as pa

from mizzle.spark.rows import Rule, check_rows

NAN = float("nan")


def test_the_earliest_fault_of_a_batch_is_reported_whatever_its_kind() -> None:
    rules = (Rule("x", array=True, numeric=True, uniform=True), Rule("y", numeric=True, classes=3))
    x = pa.array([[1.0], [1.0, NAN], [1.0], None], pa.list_(pa.float32()))
    batch = pa.RecordBatch.from_arrays([x, pa.array([0, 1, 5, 1])], ["x", "y"])
    good, lengths, first = check_rows(batch.slice(0), rules)
    assert good.tolist() == [True, False, False, False]
    assert lengths.tolist() == [[1], [2], [1], [0]]
    assert first == (1, "column 'x' has an element that is NaN or infinite as float32")
    good, _, first = check_rows(batch.slice(2), rules)
    assert good.tolist() == [False, False]
    assert first == (0, "column 'y' is 5, which is no class number in 0..2")
