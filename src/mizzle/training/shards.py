"""A shard of the training data on disk: one Arrow IPC file, written once, then read by row position.

The writer takes record batches in any order, because a shuffle delivers them so; each batch carries its sort key
(partition, chunk) in its own custom metadata, so the order lies in the same file as the rows and one rename publishes
both. The reader maps the file into memory and never loads more than the rows that were asked for.
This module knows neither Spark nor where a shard lives.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mizzle.errors import BlockNotFound, CorruptBlock, DiskFull

if TYPE_CHECKING:
    from types import TracebackType

    from mizzle.training.columns import Batch, Columns

ORDER_KEY = b"mizzle.order"
"""Key of a batch's custom metadata; its value is a JSON list of two integers, ``[partition, chunk]``."""

_FOOTER_BYTES = 4096
"""About what a file has behind its batches."""

Positions = npt.NDArray[np.int64]


class ShardWriter:
    """Writes one shard's file. It appears under its name when complete, or not at all.

    A context manager: leaves the file on success, nothing on error. Holds no rows; what `write` is given is on disk
    (or in the page cache) when it returns.
    """

    def __init__(self, path: str | Path, schema: pa.Schema) -> None:
        """Start a file beside ``path``.

        Args:
            path: final name; its directory exists. An older file of that name is replaced at `close`.
            schema: pyarrow.Schema of every batch.
        """
        self.path = Path(path)
        self.num_rows = 0
        # Two attempts of one task may run at once (speculation): each has its own unfinished file.
        self._unfinished = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}")
        descriptor = os.open(self._unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        self._file = os.fdopen(descriptor, "wb")
        self._writer = pa.ipc.new_file(self._file, schema)

    def write(self, batch: pa.RecordBatch, *, partition: int, chunk: int) -> None:
        """Append rows; the reader will sort batches by (partition, chunk), which must not repeat.

        Args:
            batch: pyarrow.RecordBatch of the writer's schema, any number of rows.
            partition: first part of the sort key.
            chunk: second part.

        Raises:
            DiskFull: there is no room for it; give Spark a larger local directory.
        """
        if batch.num_rows:
            order = json.dumps([partition, chunk]).encode()
            with self._room_for(batch.nbytes):
                self._writer.write_batch(batch, custom_metadata={ORDER_KEY: order})
            self.num_rows += batch.num_rows

    @contextmanager
    def _room_for(self, num_bytes: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            free = shutil.disk_usage(self.path.parent).free
            raise DiskFull(
                f"the disk of {self.path.parent} is full: {num_bytes} bytes more are needed for {self.path.name}, "
                f"{free} are free. Give Spark a larger spark.local.dir, or use more executors"
            ) from error

    def close(self) -> int:
        """Finish the file and give it its name.

        Returns:
            Its length in bytes.

        Raises:
            DiskFull: there is no room for the end of it.
        """
        try:
            with self._room_for(_FOOTER_BYTES):
                self._writer.close()
                self._file.close()
            num_bytes = self._unfinished.stat().st_size
            self._unfinished.replace(self.path)
        finally:
            self.abort()  # finds nothing to do, unless the disk is full
        return num_bytes

    def abort(self) -> None:
        """Remove the unfinished file. Does nothing after `close`."""
        with suppress(OSError):  # what was buffered has no room either, and is not wanted any more
            self._file.close()
        self._unfinished.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        """The writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close on success, unless closed before; remove the unfinished file on error."""
        if kind is not None:
            self.abort()
        elif not self._file.closed:
            self.close()


class ShardFile:
    """One shard, memory-mapped, addressed by row position. A context manager; used by one thread at a time.

    Opening reads the batch headers only. A file that is removed while open stays readable until `close`.
    """

    def __init__(self, path: str | Path, columns: Columns) -> None:
        """Map a file that `ShardWriter` finished.

        Args:
            path: the file.
            columns: how `batch` makes tensors.

        Raises:
            BlockNotFound: there is no such file; write the shard again from the DataFrame.
            CorruptBlock: the file is damaged or was not written by `ShardWriter`; write the shard again.
        """
        self.columns = columns
        try:
            self._mapped = pa.memory_map(str(path), "r")
        except FileNotFoundError as error:
            raise BlockNotFound(f"shard file {path} is gone; write the shard again") from error
        try:
            ordered = _in_order(pa.ipc.open_file(self._mapped))
        except (pa.ArrowInvalid, OSError, TypeError, ValueError) as error:
            self._mapped.close()
            raise CorruptBlock(f"shard file {path} is damaged: {error}; write the shard again") from error
        self.schema, self._batches = ordered
        lengths = [batch.num_rows for batch in self._batches]
        self._starts: Positions = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])[:-1].astype(np.int64)
        self.num_rows: int = sum(lengths)

    def rows(self, positions: npt.ArrayLike) -> pa.RecordBatch:
        """The rows at these positions, in this order; repeats are allowed.

        Args:
            positions: integers in [0, num_rows), shape (n,).

        Returns:
            pyarrow.RecordBatch of n rows, a copy.

        Raises:
            IndexError: a position is outside the shard.
        """
        wanted: Positions = np.asarray(positions, dtype=np.int64)
        if wanted.size == 0:
            return pa.RecordBatch.from_pylist([], schema=self.schema)
        if wanted.min() < 0 or wanted.max() >= self.num_rows:
            raise IndexError(f"positions {wanted.min()}..{wanted.max()} are not all in a shard of {self.num_rows} rows")
        source = np.searchsorted(self._starts, wanted, side="right") - 1
        order = np.argsort(source, kind="stable")
        cuts = np.flatnonzero(np.diff(source[order])) + 1
        pieces = []
        for group in np.split(order, cuts):
            index = int(source[group[0]])
            pieces.append(self._batches[index].take(pa.array(wanted[group] - self._starts[index])))
        if len(pieces) == 1:
            return pieces[0]
        back = np.empty(len(order), dtype=np.int64)
        back[order] = np.arange(len(order))
        return pa.concat_batches(pieces).take(pa.array(back))

    def batch(self, positions: npt.ArrayLike) -> Batch:
        """The rows at these positions as tensors; see `Columns.tensors` for shapes and dtypes.

        Raises:
            IndexError: a position is outside the shard.
        """
        return self.columns.tensors(self.rows(positions))

    def table(self) -> pa.Table:
        """All rows in their order, as they lie in the file: nothing is copied. Valid until `close`."""
        return pa.Table.from_batches(self._batches, schema=self.schema)

    def close(self) -> None:
        """Let go of the file."""
        self._batches = []
        self.num_rows = 0
        self._mapped.close()

    def __enter__(self) -> Self:
        """The file itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


def _in_order(reader: pa.RecordBatchFileReader) -> tuple[pa.Schema, list[pa.RecordBatch]]:
    """Schema and batches of a file, sorted by their keys.

    Raises:
        ValueError: a batch has no key, or two have the same.
    """
    keyed: dict[tuple[int, int], pa.RecordBatch] = {}
    for index in range(reader.num_record_batches):
        batch, metadata = reader.get_batch_with_custom_metadata(index)
        if metadata is None or ORDER_KEY not in metadata:
            raise ValueError(f"batch {index} has no {ORDER_KEY.decode()}")
        partition, chunk = json.loads(metadata[ORDER_KEY])
        if (partition, chunk) in keyed:
            raise ValueError(f"two batches are chunk {chunk} of partition {partition}")
        keyed[partition, chunk] = batch
    return reader.schema, [keyed[key] for key in sorted(keyed)]
