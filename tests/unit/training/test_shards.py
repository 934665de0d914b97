"""Shard files: any order in, row order out; rows by position; tensors."""

from __future__ import annotations

import itertools
import os
import stat
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mizzle.errors import BlockNotFound, CorruptBlock, DataError, DiskFull
from mizzle.training.columns import Columns
from mizzle.training.shards import ShardFile, ShardWriter

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = pa.schema([("x", pa.list_(pa.float32(), 4)), ("y", pa.int32())])
COLUMNS = Columns.of("x", "y")


def rows_from(start: int, count: int) -> pa.RecordBatch:
    """Rows whose features and label tell their number."""
    numbers = range(start, start + count)
    return pa.RecordBatch.from_pydict(
        {"x": [[i, i + 0.25, i + 0.5, i + 0.75] for i in numbers], "y": list(numbers)}, schema=SCHEMA
    )


def write(path: Path, counts: dict[tuple[int, int], int], order: list[tuple[int, int]] | None = None) -> Path:
    """A shard of batches of these sizes, numbered in key order, written in ``order``."""
    starts = dict(
        zip(sorted(counts), itertools.accumulate((counts[k] for k in sorted(counts)), initial=0), strict=False)
    )
    with ShardWriter(path, SCHEMA) as writer:
        for key in order or list(counts):
            writer.write(rows_from(starts[key], counts[key]), partition=key[0], chunk=key[1])
    return path


def test_batches_written_in_any_order_are_read_in_key_order(tmp_path: Path) -> None:
    keys = [(10, 0), (2, 1), (0, 0), (2, 0), (10, 1)]
    path = write(tmp_path / "a", dict.fromkeys(keys, 3), keys)
    with ShardFile(path, COLUMNS) as shard:
        assert shard.num_rows == 15
        assert shard.rows(np.arange(15)).column("y").to_pylist() == list(range(15))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_rows_at_any_positions_come_back_in_the_order_asked_for(tmp_path: Path, data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 7), min_size=1, max_size=8).filter(any))
    path = write(tmp_path / "a", {(0, k): size for k, size in enumerate(sizes)})
    positions = data.draw(st.lists(st.integers(0, sum(sizes) - 1), max_size=20))
    with ShardFile(path, COLUMNS) as shard:
        got = shard.rows(np.array(positions, dtype=np.int64))
        assert got.schema == SCHEMA
        assert got.column("y").to_pylist() == positions
        assert [row[2] for row in got.column("x").to_pylist()] == [i + 0.5 for i in positions]


def test_positions_outside_the_shard_are_refused(tmp_path: Path) -> None:
    with ShardFile(write(tmp_path / "a", {(0, 0): 3}), COLUMNS) as shard:
        for wrong in ([3], [0, -1]):
            with pytest.raises(IndexError, match="shard of 3 rows"):
                shard.rows(wrong)


def test_a_shard_without_rows_is_a_file_with_a_schema(tmp_path: Path) -> None:
    with ShardFile(write(tmp_path / "a", {(0, 0): 0}), COLUMNS) as shard:
        assert shard.num_rows == 0
        assert shard.rows([]).schema == SCHEMA
        inputs, targets = shard.batch([])
        assert isinstance(inputs, torch.Tensor)
        assert targets is not None
        assert (inputs.shape, targets.shape) == ((0, 4), (0,))


def test_a_failed_write_leaves_nothing_and_keeps_the_older_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a", {(0, 0): 3})

    def fail() -> None:
        with ShardWriter(path, SCHEMA) as writer:
            writer.write(rows_from(0, 1), partition=0, chunk=0)
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        fail()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]
    with ShardFile(path, COLUMNS) as shard:
        assert shard.num_rows == 3


@pytest.mark.parametrize("buffer_bytes", [0, 1 << 20])
def test_a_full_disk_is_named_with_what_was_needed_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, buffer_bytes: int
) -> None:
    monkeypatch.setattr(os, "fdopen", lambda _, mode: open("/dev/full", mode, buffering=buffer_bytes))  # noqa: PTH123, SIM115
    with pytest.raises(DiskFull, match=rf"the disk of {tmp_path} is full: \d+ bytes more .* for a, \d+ are free"):
        write(tmp_path / "a", {(0, 0): 3})
    assert list(tmp_path.iterdir()) == []


def test_a_file_replaced_while_open_stays_readable(tmp_path: Path) -> None:
    path = write(tmp_path / "a", {(0, 0): 3})
    with ShardFile(path, COLUMNS) as old:
        write(path, {(0, 0): 5})
        assert old.rows([2]).column("y").to_pylist() == [2]
        with ShardFile(path, COLUMNS) as new:
            assert (old.num_rows, new.num_rows) == (3, 5)


def test_two_attempts_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    first, second = ShardWriter(tmp_path / "a", SCHEMA), ShardWriter(tmp_path / "a", SCHEMA)
    first.write(rows_from(0, 2), partition=0, chunk=0)
    second.write(rows_from(2, 2), partition=0, chunk=1)
    second.write(rows_from(0, 2), partition=0, chunk=0)
    first.write(rows_from(2, 2), partition=0, chunk=1)
    assert first.close() == second.close() == (tmp_path / "a").stat().st_size
    with ShardFile(tmp_path / "a", COLUMNS) as shard:
        assert shard.rows(np.arange(4)).column("y").to_pylist() == [0, 1, 2, 3]


def test_only_the_owner_may_read_a_shard(tmp_path: Path) -> None:
    assert stat.S_IMODE(write(tmp_path / "a", {(0, 0): 1}).stat().st_mode) == 0o600


def test_a_missing_file_is_recoverable_and_named(tmp_path: Path) -> None:
    with pytest.raises(BlockNotFound, match="shard-7"):
        ShardFile(tmp_path / "shard-7", COLUMNS)


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = write(tmp_path / "a", {(0, 0): 30})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CorruptBlock, match="damaged"):
        ShardFile(path, COLUMNS)


def test_a_file_of_another_writer_or_with_one_key_twice_is_refused(tmp_path: Path) -> None:
    with pa.ipc.new_file(str(tmp_path / "a"), SCHEMA) as foreign:
        foreign.write_batch(rows_from(0, 2))
    with pytest.raises(CorruptBlock, match=r"no mizzle\.order"):
        ShardFile(tmp_path / "a", COLUMNS)
    with ShardWriter(tmp_path / "b", SCHEMA) as writer:
        writer.write(rows_from(0, 2), partition=3, chunk=1)
        writer.write(rows_from(0, 2), partition=3, chunk=1)
    with pytest.raises(CorruptBlock, match="two batches are chunk 1 of partition 3"):
        ShardFile(tmp_path / "b", COLUMNS)


def record(**columns: Any) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def fixed(rows: list[list[float]], kind: pa.DataType) -> pa.Array:
    return pa.array(rows, pa.list_(kind, len(rows[0])))


def test_an_array_column_becomes_a_float32_matrix_and_whole_labels_int64() -> None:
    for kind in (pa.float32(), pa.int8(), pa.int64()):
        rows = record(x=fixed([[1, 2, 3], [4, 5, 6]], kind), y=pa.array([7, 8], pa.int16()))
        inputs, targets = Columns.of("x", "y").tensors(rows)
        assert torch.equal(inputs, torch.tensor([[1.0, 2, 3], [4, 5, 6]]))  # type: ignore[arg-type]
        assert targets is not None
        assert targets.dtype == torch.int64
        assert targets.tolist() == [7, 8]


def test_a_slice_of_rows_gives_its_own_numbers_only() -> None:
    rows = record(x=fixed([[1, 2], [3, 4], [5, 6]], pa.float32()), z=pa.array([1.0, 2.0, 3.0])).slice(1, 2)
    assert Columns.of("x").tensors(rows)[0].tolist() == [[3, 4], [5, 6]]  # type: ignore[union-attr]
    assert Columns.of("z").tensors(rows)[0].tolist() == [[2], [3]]  # type: ignore[union-attr]


def test_numeric_columns_are_stacked_in_the_order_given() -> None:
    rows = record(a=pa.array([1, 2], pa.int32()), b=pa.array([0.5, 1.5]), y=pa.array([0.1, 0.2], pa.float64()))
    inputs, targets = Columns.of(["b", "a"], "y").tensors(rows)
    assert torch.equal(inputs, torch.tensor([[0.5, 1.0], [1.5, 2.0]]))  # type: ignore[arg-type]
    assert targets is not None
    assert torch.equal(targets, torch.tensor([0.1, 0.2], dtype=torch.float32))


def test_array_labels_become_a_float32_matrix_and_no_label_none() -> None:
    rows = record(x=fixed([[1.0, 2]], pa.float32()))
    inputs, targets = Columns.of("x", "x").tensors(rows)
    assert targets is not None
    assert torch.equal(inputs, targets)  # type: ignore[arg-type]
    assert Columns.of("x").tensors(rows)[1] is None


def test_shape_is_the_shape_of_one_row() -> None:
    rows = record(x=fixed([list(range(12)), list(range(12, 24))], pa.float32()))
    inputs, _ = Columns.of("x", shape=(1, 3, 4)).tensors(rows)
    assert isinstance(inputs, torch.Tensor)
    assert inputs.shape == (2, 1, 3, 4)
    assert torch.equal(inputs.flatten(), torch.arange(24.0))


def test_tensors_own_their_memory(tmp_path: Path) -> None:
    with ShardFile(write(tmp_path / "a", {(0, 0): 4}), COLUMNS) as shard:
        inputs, _ = shard.batch([1, 2])
        assert isinstance(inputs, torch.Tensor)
        inputs.zero_()
        again, _ = shard.batch([1])
    assert inputs.sum() == 0
    assert again.tolist() == [[1, 1.25, 1.5, 1.75]]  # type: ignore[union-attr]


def test_collate_decodes_what_is_not_numeric_and_may_give_several_inputs() -> None:
    def collate(rows: pa.RecordBatch) -> tuple[tuple[torch.Tensor, ...], torch.Tensor | None]:
        sizes = torch.tensor([len(raw) for raw in rows.column("jpeg").to_pylist()])
        return (sizes, sizes * 2), None

    rows = record(jpeg=pa.array([b"abc", b"de"]))
    inputs, targets = Columns.of("jpeg", collate=collate).tensors(rows)
    assert [part.tolist() for part in inputs] == [[3, 2], [6, 4]]
    assert targets is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"features": []}, "names no column"),
        ({"features": ["a", "b", "a"]}, "'a' twice"),
        ({"features": "a", "shape": (1, 0)}, "positive sizes"),
        ({"features": "a", "shape": ()}, "positive sizes"),
        ({"features": "a", "shape": (2,), "collate": len}, "exclude each other"),
    ],
)
def test_columns_that_make_no_sense_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Columns.of(**wrong)


def test_a_label_among_the_features_is_selected_once() -> None:
    assert Columns.of(["b", "a"], "a").names == ("b", "a")
