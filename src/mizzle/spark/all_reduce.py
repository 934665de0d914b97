"""All-reduce as an operation on an RDD: what ``treeReduce`` does, but from peer to peer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pyspark import RDD

from mizzle.blocks.deadline import Deadline
from mizzle.config import Security, Transport
from mizzle.errors import CollectiveMismatch, ConfigError, MizzleError
from mizzle.spark.driver import DriverSide, await_slots, task_slots
from mizzle.spark.groups import DEFAULT_TIMEOUT_S, run_job
from mizzle.spark.placement import neighbours
from mizzle.spark.ranks.orders import JoinTerms
from mizzle.spark.ranks.worker import GroupJob, RankContext
from mizzle.spark.security import check_security

Op = Literal["sum", "mean", "max", "min"]
_NARROW = {np.dtype(np.float16): np.dtype(np.float32), torch.float16: torch.float32, torch.bfloat16: torch.float32}
"""Types that are too narrow to be summed in."""
_COMBINE: dict[str, Any] = {
    "sum": (np.add, torch.add),
    "max": (np.maximum, torch.maximum),
    "min": (np.minimum, torch.minimum),
}


def all_reduce(
    rdd: RDD[Any],
    op: Op = "sum",
    *,
    transport: Transport = "auto",
    timeout_s: float = DEFAULT_TIMEOUT_S,
    security: Security = "auto",
) -> Any:  # noqa: ANN401 - an array of the kind that went in
    """Reduce the arrays of an RDD to one: drop-in for ``rdd.treeReduce`` on arrays, without a shuffle.

    Arrays of one partition are combined in their order, partitions in a fixed binary tree, in fp32 for 16-bit types:
    so the bits depend on the partitions alone, not on executors or timing.

    Args:
        rdd: of numpy arrays or CPU torch tensors, all of one shape and dtype (float32, float64, float16, bfloat16,
            int32, int64). Partitions without arrays are left out.
        op: "sum", "mean" (over all arrays), "max" or "min".
        transport: "auto", "shm" or "blocks".
        timeout_s: deadline of the exchange.
        security: as in `mizzle.RunConfig`.

    Returns:
        The result at the driver, of the arrays' kind, shape and dtype.

    Raises:
        CollectiveMismatch: shapes or dtypes differ; names the ranks, or the partition.
        ConfigError: the RDD is empty, its elements are no arrays, op is none of the above, or the session does not
            protect its blocks and security is "required".
        PeerLost: an executor died meanwhile; call it again.
    """
    if not isinstance(rdd, RDD):
        raise ConfigError(
            f"all_reduce takes an RDD of arrays, not {type(rdd).__name__}: a DataFrame has df.rdd.map(...)"
        )
    context = rdd.context
    driver = DriverSide(context)
    if op not in ("sum", "mean", "max", "min"):
        raise ConfigError(f"op is {op!r}: give sum, mean, max or min")
    check_security(context, driver, security)
    await_slots(context, 1, Deadline.after(timeout_s))
    num_shards = rdd.getNumPartitions()
    if num_shards == 0:
        raise ConfigError("the RDD has no partitions: there is nothing to reduce")
    ranks = min(num_shards, task_slots(context))
    parts = rdd.mapPartitionsWithIndex(_Fold(op))
    with driver.run() as run:
        body = _Reduce(op, num_shards)
        job = GroupJob(JoinTerms(run, 0, 0, ranks, transport, timeout_s), ranks_by_task=True, body=body)
        return next(total for total in run_job(context, job, neighbours(parts, ranks)) if total is not None)


@dataclass(frozen=True, slots=True)
class _Part:
    """One partition's arrays as one; ``dtype`` is that of the arrays, the sum of narrow ones is wider."""

    partition: int
    count: int
    total: Any
    dtype: Any


@dataclass(frozen=True, slots=True)
class _Fold:
    """Combines one partition's arrays, in their order. A fault is passed on: the ranks report it together."""

    op: Op

    def __call__(self, partition: int, arrays: Iterable[Any]) -> Iterator[_Part | MizzleError]:
        try:
            yield from self._fold(partition, arrays)
        except MizzleError as error:
            yield error

    def _fold(self, partition: int, arrays: Iterable[Any]) -> Iterator[_Part]:
        total, count, first = None, 0, None
        for array in arrays:
            first = array if first is None else first
            self._check(partition, first, array)
            total = _widen(array) if total is None else self._combine(total, _widen(array))
            count += 1
        if first is not None:
            yield _Part(partition, count, total, first.dtype)

    def _combine(self, total: Any, array: Any) -> Any:  # noqa: ANN401 - numpy or torch
        by_numpy, by_torch = _COMBINE["sum" if self.op == "mean" else self.op]
        return by_numpy(total, array) if isinstance(total, np.ndarray) else by_torch(total, array)

    def _check(self, partition: int, first: Any, array: Any) -> None:  # noqa: ANN401 - whatever the user put in
        if not isinstance(array, (np.ndarray, torch.Tensor)):
            raise ConfigError(f"partition {partition} has a {type(array).__name__}: give numpy arrays or torch tensors")
        if type(array) is not type(first) or array.shape != first.shape or array.dtype != first.dtype:
            raise CollectiveMismatch(
                f"partition {partition} of the RDD has an array of {_describe(first)} and one of {_describe(array)}"
            )
        if self.op == "mean" and not _is_floating(array):
            raise ConfigError(f"the mean of {array.dtype} is no {array.dtype}: convert the arrays to float32 first")


def _is_floating(array: Any) -> bool:  # noqa: ANN401 - numpy or torch
    return bool(array.dtype.kind == "f" if isinstance(array, np.ndarray) else array.dtype.is_floating_point)


def _widen(array: Any) -> Any:  # noqa: ANN401 - numpy or torch
    return _cast(array, _NARROW.get(array.dtype, array.dtype))


def _cast(array: Any, dtype: Any) -> Any:  # noqa: ANN401 - numpy or torch
    return array.astype(dtype, copy=False) if isinstance(array, np.ndarray) else array.to(dtype)


def _describe(array: Any) -> str:  # noqa: ANN401 - numpy or torch
    return f"{type(array).__name__} {tuple(array.shape)} {array.dtype}"


@dataclass(frozen=True, slots=True)
class _Reduce:
    """One rank's part: its partitions are its shards. The lowest rank that has any returns the result."""

    op: Op
    num_shards: int

    def __call__(self, context: RankContext, rows: Iterable[_Part | MizzleError]) -> Any:  # noqa: ANN401
        parts = []
        for row in rows:
            if isinstance(row, MizzleError):
                raise row
            parts.append(row)
        mine = np.array([sum(part.count for part in parts)], dtype=np.int64)
        counts = [int(count[0]) for count in context.all_gather(mine)]
        if sum(counts) == 0:
            raise ConfigError("the RDD has no arrays: there is nothing to reduce")
        held = {part.partition: part.total for part in parts}
        total = context.all_reduce_shards(held, self.num_shards, "sum" if self.op == "mean" else self.op)
        if context.rank != next(rank for rank, count in enumerate(counts) if count):
            return None
        return _cast(total / sum(counts) if self.op == "mean" else total, parts[0].dtype)
