"""A checked DataFrame becomes V balanced shards: Arrow files in the local directories of the executors.

Row g of the DataFrame (partitions in order) goes to shard g mod V, so shard sizes differ by at most one row, and
contents depend neither on ranks nor on executors. Rows travel as Arrow bytes, in chunks of a few megabytes, through
one ordinary shuffle: never through the driver, never pickled; no partition or shard is ever held in memory.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import socket
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from py4j.protocol import Py4JError
from pyspark import TaskContext
from pyspark.errors import PySparkException

from mizzle.errors import ConfigError, DataError, DiskFull
from mizzle.spark.placement import collect_placed
from mizzle.spark.rows import Lengths, Rule, check_rows, current_partition
from mizzle.training.shards import ShardWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import numpy.typing as npt

    from mizzle.spark.validate import CheckedFrame

_log = logging.getLogger(__name__)

CHUNK_BYTES = 4 * 1024 * 1024
"""Largest chunk that travels, unless one row is larger: a few of them fit into any Spark buffer."""
BUFFER_BYTES = 32 * 1024 * 1024
"""Rows that a dealing task holds back to fill chunks, all shards together."""

_REPORT_SHARD = -1
"""Stands in the shard's place in the row by which a dealing task reports how many rows it dealt."""
_DEALT = "rank int, shard int, partition int, chunk int, rows bigint, payload binary"
_WRITTEN = (
    "shard int, partition int, rows bigint, bytes bigint, path string, executor string, host string, digests string"
)
_TYPES = {"int": pa.int32(), "bigint": pa.int64(), "string": pa.string(), "binary": pa.binary()}


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """Where a shard lies.

    Attributes:
        shard: its number.
        rows: its rows.
        bytes: length of the file.
        path: the file, on the executor's host.
        executor_id: what ``locate`` returned there.
        host: that machine's name.
        digest: of its rows in their order: equal for what was dealt from equal rows, whichever shards were dealt.
    """

    shard: int
    rows: int
    bytes: int
    path: str
    executor_id: str
    host: str
    digest: str


def executor_directory() -> str:
    """The default ``locate``: the name of the executor's block directory, which no two executors share.

    Spark does not tell a Python worker its executor's id; the bridge knows it.
    """
    return _local_dirs()[0].name


def shard_dataframe(
    checked: CheckedFrame,
    *,
    run: str,
    num_shards: int,
    shards_of_rank: Sequence[Sequence[int]],
    locate: Callable[[], str] = executor_directory,
    name: str = "shard",
    locations: Sequence[tuple[str, str]] | None = None,
) -> list[ShardInfo]:
    """Deal the rows to shards and write the files. One Spark job; the shards of a rank land on one executor.

    Every executor's bridge removes the files within a second of the run's end (``ShardFolders.java``), those of
    retried or speculative tasks as well; the list names those that count. A shard written again replaces its file.

    Args:
        checked: from `check_dataframe`.
        run: 32 hexadecimal digits; a run that the driver has begun.
        num_shards: V; all of them, whether written now or not.
        shards_of_rank: the shards to write, by rank. Shards that are left out are not written: so lost ones
            are rebuilt alone.
        locate: called on the executor when a task begins; top-level, returns an id of the executor.
        name: of the files, so that a run may deal several DataFrames.
        locations: by rank, Spark's names of host and executor that its shards shall land on, if a slot is free there;
            None: anywhere.

    Returns:
        One entry for each shard written, by shard number; shards without rows included.

    Raises:
        ConfigError: run, num_shards or shards_of_rank make no sense.
        DataError: the DataFrame gave other rows than when it was checked; cache, persist or checkpoint it.
        DiskFull: the rows do not fit into the executors' local directories.
    """
    dealer = _dealer(checked, run, num_shards, shards_of_rank)
    dealt = checked.frame.mapInArrow(dealer, _DEALT).repartitionById(len(shards_of_rank), "rank")
    written = dealt.mapInArrow(WriteShards(run, locate, name), _WRITTEN)
    with _naming_full_disks():
        rows: Sequence[Any] = written.collect() if locations is None else collect_placed(written, locations)
    _check_same_rows(checked, rows)
    infos = _infos(rows)
    expected = {s: len(range(s, checked.num_rows, num_shards)) for shards in shards_of_rank for s in shards}
    if {info.shard: info.rows for info in infos} != expected:
        raise DataError("shards do not hold the rows they should; the DataFrame changes while read: persist it")
    _log.info("run=%s shards=%d rows=%d bytes=%d", run, len(infos), checked.num_rows, sum(i.bytes for i in infos))
    return infos


def _infos(rows: Iterable[Any]) -> list[ShardInfo]:
    """By shard number."""
    digests: dict[int, list[tuple[int, str]]] = {}
    for row in rows:
        for shard, digest in json.loads(row["digests"] or "{}").items():
            digests.setdefault(int(shard), []).append((row["partition"], digest))
    infos = [
        ShardInfo(
            row["shard"], row["rows"], row["bytes"], row["path"], row["executor"], row["host"],
            _digest(json.dumps(sorted(digests.get(row["shard"], []))).encode()).hexdigest(),
        )
        for row in rows if row["shard"] != _REPORT_SHARD
    ]  # fmt: skip
    return sorted(infos, key=lambda info: info.shard)


def _digest(content: bytes = b"") -> hashlib.blake2b:
    """What tells rows apart; no protection against anybody."""
    return hashlib.blake2b(content, digest_size=16)


@contextmanager
def _naming_full_disks() -> Iterator[None]:
    try:
        yield
    except (Py4JError, PySparkException) as error:
        raise_if_full(error)
        raise


def raise_if_full(error: Exception) -> None:
    """Say what a job has failed of, if that is a disk: Spark hands on a task's exception as text alone."""
    text = str(error)
    ours = re.search(rf"{DiskFull.__name__}: (.+)", text)
    if ours is not None:
        raise DiskFull(ours[1]) from error
    if "No space left on device" in text:
        raise DiskFull(
            f"no space is left for the shuffle of the rows in {_full_directory(text)}: give Spark a larger "
            "spark.local.dir, or use more executors"
        ) from error


def _full_directory(text: str) -> str:
    """As far as Spark tells: the file, or whose directory it is."""
    path = re.search(r"(/\S+) \(No space left on device\)|No space left on device: '([^']+)'", text)
    if path is not None:
        return path[1] or path[2]
    owner = re.search(r"\((\S+) executor (\S+?)\): [^\n]*No space left on device", text)
    return f"spark.local.dir of executor {owner[2]} on {owner[1]}" if owner else "spark.local.dir of an executor"


def first_rows(checked: CheckedFrame, count: int) -> pa.RecordBatch:
    """A few usable rows at the driver, in the form in which they lie in a shard; none when the first are all bad."""
    table = checked.frame.limit(count).toArrow().combine_chunks()
    batches = table.to_batches() or [pa.RecordBatch.from_pylist([], schema=table.schema)]
    return DealPartition(checked.rules, checked.lengths, 1, {0: 0}, {}).usable(batches[0])


def _dealer(checked: CheckedFrame, run: str, num_shards: int, shards_of_rank: Sequence[Sequence[int]]) -> DealPartition:
    """Check the plan and number the rows."""
    if not re.fullmatch("[0-9a-f]{32}", run):
        raise ConfigError(f"run={run!r} must be 32 hexadecimal digits")
    rank_of = {shard: rank for rank, shards in enumerate(shards_of_rank) for shard in shards}
    listed = [shard for shards in shards_of_rank for shard in shards]
    if not listed or len(rank_of) != len(listed) or not set(listed) <= set(range(num_shards)):
        raise ConfigError(f"shards_of_rank={shards_of_rank} must list shards of 0..{num_shards - 1}, each at most once")
    partitions = sorted(checked.rows_of_partition)
    counts = [checked.rows_of_partition[partition] for partition in partitions]
    first_row = dict(zip(partitions, accumulate(counts, initial=0), strict=False))
    return DealPartition(checked.rules, checked.lengths, num_shards, rank_of, first_row)


def _check_same_rows(checked: CheckedFrame, rows: Sequence[Any]) -> None:
    """Both passes must have met the same number of usable rows in each partition."""
    dealt = {row["partition"]: row["rows"] for row in rows if row["shard"] == _REPORT_SHARD and row["rows"]}
    for partition in sorted(dealt.keys() | checked.rows_of_partition.keys()):
        before, now = checked.rows_of_partition.get(partition, 0), dealt.get(partition, 0)
        if before != now:
            raise DataError(
                f"the DataFrame is not deterministic: partition {partition} had {before} usable rows when checked "
                f"and {now} when dealt; cache, persist or checkpoint it first"
            )


@dataclass(frozen=True, slots=True)
class DealPartition:
    """Runs on an executor: rows of one partition in, chunks for shards out. Holds back at most ``buffer_bytes``.

    Attributes:
        rules: what makes a row usable.
        lengths: array lengths that it must have.
        num_shards: V.
        rank_of: rank of each shard that is wanted; rows of other shards are dropped.
        first_row: number of the first row of each partition in the whole DataFrame.
        chunk_bytes: size at which a chunk is cut.
        buffer_bytes: rows that are held back to fill chunks.
    """

    rules: tuple[Rule, ...]
    lengths: Lengths
    num_shards: int
    rank_of: dict[int, int]
    first_row: dict[int, int]
    chunk_bytes: int = CHUNK_BYTES
    buffer_bytes: int = BUFFER_BYTES

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Deal; the last row out says how many rows were usable."""
        partition = current_partition()
        hands = _Hands(self, partition)
        start = row = self.first_row.get(partition, 0)
        opened = partition != min(self.first_row, default=0)
        for batch in batches:
            usable = self.usable(batch)
            if not opened:
                # So that a shard without rows has a file as well, and every writer learns the schema.
                yield from (hands.chunk(shard, usable.slice(0, 0)) for shard in sorted(self.rank_of))
                opened = True
            for shard in self.rank_of:
                hands.add(shard, usable, np.arange((shard - row) % self.num_shards, usable.num_rows, self.num_shards))
            row += usable.num_rows
            if hands.num_bytes >= self.buffer_bytes:
                yield from hands.empty()
        yield from hands.empty()
        anyone = next(iter(self.rank_of.values()))
        yield _table(_DEALT, [(anyone, _REPORT_SHARD, partition, 0, row - start, hands.digests())])

    def usable(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The good rows, with arrays of fixed length and class labels as integers."""
        good, lengths, _ = check_rows(batch, self.rules)
        good &= (lengths == np.array(self.lengths, dtype=np.int64)).all(axis=1)
        if not good.all():
            batch = batch.filter(pa.array(good))
        sizes = iter(self.lengths)
        arrays = [
            _stored(batch.column(at), rule, next(sizes) if rule.uniform else None) for at, rule in enumerate(self.rules)
        ]
        return pa.RecordBatch.from_arrays(arrays, names=[rule.name for rule in self.rules])


def _stored(column: pa.Array, rule: Rule, length: int | None) -> pa.Array:
    """A column in the form in which it lies in a shard."""
    if length is not None:
        return pa.FixedSizeListArray.from_arrays(column.flatten(), length)
    if rule.classes is not None:
        return pc.cast(column, pa.int64())
    return column


@dataclass(slots=True)
class _Hands:
    """Rows of one partition that wait for a chunk to fill, by shard."""

    dealer: DealPartition
    partition: int
    num_bytes: int = 0
    _waiting: dict[int, list[pa.RecordBatch]] = field(default_factory=dict)
    _chunks: dict[int, int] = field(default_factory=dict)
    _digests: dict[int, hashlib.blake2b] = field(default_factory=dict)

    def digests(self) -> bytes:
        """Of the rows that each shard was dealt from the partition, which depend on nothing else."""
        return json.dumps({shard: digest.hexdigest() for shard, digest in self._digests.items()}).encode()

    def add(self, shard: int, rows: pa.RecordBatch, take: npt.NDArray[np.int64]) -> None:
        """Hold some of the rows for a shard."""
        if len(take):
            mine = rows.take(pa.array(take))
            self._waiting.setdefault(shard, []).append(mine)
            self.num_bytes += mine.nbytes
            # Before they become chunks: where these are cut depends on what else is dealt.
            self._digests.setdefault(shard, _digest()).update(mine.serialize())

    def empty(self) -> Iterator[pa.RecordBatch]:
        """All that is held, as chunks of about ``chunk_bytes``."""
        for shard in sorted(self._waiting):
            rows = pa.concat_batches(self._waiting.pop(shard))
            step = max(1, rows.num_rows * self.dealer.chunk_bytes // max(1, rows.nbytes))
            for start in range(0, rows.num_rows, step):
                yield self.chunk(shard, rows.slice(start, step))
        self.num_bytes = 0

    def chunk(self, shard: int, rows: pa.RecordBatch) -> pa.RecordBatch:
        """One row of the shuffle: rows as an Arrow stream."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema) as stream:
            stream.write_batch(rows)
        number = self._chunks.get(shard, 0)
        self._chunks[shard] = number + 1
        payload = sink.getvalue().to_pybytes()
        return _table(_DEALT, [(self.dealer.rank_of[shard], shard, self.partition, number, rows.num_rows, payload)])


@dataclass(frozen=True, slots=True)
class WriteShards:
    """Runs on an executor: chunks of one rank's shards in, files on disk, one row a file out. Holds one chunk.

    Attributes:
        run: names the directory.
        locate: returns an id of this executor.
        name: of the files.
    """

    run: str
    locate: Callable[[], str]
    name: str = "shard"

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Write; unfinished files are removed when anything fails."""
        writers: dict[int, ShardWriter] = {}
        here = (self.locate(), socket.gethostname())
        out: list[tuple[object, ...]] = []
        with ExitStack() as stack:
            for batch in batches:
                for at in range(batch.num_rows):
                    shard, partition, chunk, rows = (
                        batch.column(name)[at].as_py() for name in ("shard", "partition", "chunk", "rows")
                    )
                    if shard == _REPORT_SHARD:
                        digests = batch.column("payload")[at].as_py().decode()
                        out.append((shard, partition, rows, 0, "", "", "", digests))
                        continue
                    with pa.ipc.open_stream(batch.column("payload")[at].as_buffer()) as stream:
                        if shard not in writers:
                            path = _run_directory(self.run, shard) / f"{self.name}-{shard:05d}.arrow"
                            writers[shard] = stack.enter_context(ShardWriter(path, stream.schema))
                        writers[shard].write(stream.read_next_batch(), partition=partition, chunk=chunk)
            out += [(s, -1, w.num_rows, w.close(), str(w.path), *here, "") for s, w in sorted(writers.items())]
        yield _table(_WRITTEN, out)


def _local_dirs() -> list[Path]:
    """The executor's own block directories, one a disk; Spark sets the variable in every Python worker."""
    named = os.environ.get("SPARK_LOCAL_DIRS", "")
    if TaskContext.get() is None or not named:
        raise ConfigError("this is not a Python worker of a Spark executor; call it inside a task")
    return [Path(part) for part in named.split(",")]


def _run_directory(run: str, shard: int) -> Path:
    """The run's private directory; shards are spread over the disks."""
    disks = _local_dirs()
    directory = disks[shard % len(disks)] / f"mizzle-{run}"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory


def _table(schema: str, rows: list[tuple[Any, ...]]) -> pa.RecordBatch:
    """Rows as a record batch with exactly the types of a Spark schema string."""
    fields = [part.split() for part in schema.split(", ")]
    arrays = [pa.array([row[at] for row in rows], _TYPES[kind]) for at, (_, kind) in enumerate(fields)]
    return pa.RecordBatch.from_arrays(arrays, names=[name for name, _ in fields])
