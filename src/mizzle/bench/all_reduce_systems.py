"""What `mizzle bench` puts beside each other: all-reduces of the same numbers by mizzle, by gloo and by plain Spark.

The numbers are whole and small, so that their sum is exact in fp32 in any order; they differ between ranks and from
iteration to iteration, so that stale or missing data is noticed. Making and checking them is not timed.
"""

from __future__ import annotations

import datetime as dt
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from pyspark import Broadcast, SparkContext

from mizzle.bench.cpu import RankCpu
from mizzle.collectives.exchange import Exchange
from mizzle.collectives.layout import ExchangeLayout
from mizzle.collectives.wire import Wire
from mizzle.spark.ranks.worker import RankContext

Reduce = Callable[[torch.Tensor], torch.Tensor]


class Ranked(Protocol):
    """What timing a rank needs to know of it."""

    @property
    def rank(self) -> int:
        """0..size - 1."""
        ...

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    def barrier(self) -> None:
        """Return when all ranks are here."""
        ...


@dataclass(frozen=True, slots=True)
class Numbers:
    """What is added up: element i of a rank's array is ``i % period + rank * rank_step + iteration % iterations``.

    Attributes:
        period: prime, so that it fits no alignment: data at a wrong place is wrong data.
        rank_step: between the values of neighbours in rank.
        iterations: values come again after so many; nothing lives that long.
    """

    period: int
    rank_step: int
    iterations: int

    def pattern(self, num_elements: int) -> np.ndarray:
        """0, 1, ... period - 1, 0, 1, ...: what all contributions share, (num_elements,) fp32."""
        return np.resize(np.arange(self.period, dtype=np.float32), num_elements)

    def offset(self, rank: int, iteration: int) -> int:
        """What a rank adds to the pattern in an iteration."""
        return rank * self.rank_step + iteration % self.iterations

    def total_offset(self, ranks: int, iteration: int) -> int:
        """The offsets of all ranks together; their sum is ``ranks * pattern + total_offset``."""
        return sum(self.offset(rank, iteration) for rank in range(ranks))


WIDE = Numbers(1009, 97, 64)
"""Their sums are exact in fp32, up to 500 ranks."""
NARROW = Numbers(13, 3, 8)
"""Their sums are exact in bf16 and fp16 too, which have all whole numbers up to 256: up to 8 ranks."""


@dataclass(frozen=True, slots=True)
class Series:
    """All-reduces in a row.

    Attributes:
        num_elements: fp32 values of one array.
        warmup: iterations before the clock counts.
        repeats: timed iterations.
    """

    num_elements: int
    warmup: int
    repeats: int


@dataclass(frozen=True, slots=True)
class Samples:
    """What a series gave.

    Attributes:
        seconds: of each timed iteration.
        verified: whether all results, those of the warm-up included, were the exact sum.
        cpu_seconds: CPU time of each timed iteration, of the rank and its executor's JVM; empty where nobody looked.
    """

    seconds: list[float]
    verified: bool
    cpu_seconds: list[float] = field(default_factory=list)


class _ExchangeRank:
    """A rank that all-reduces through an exchange, and meets the others through it as well."""

    def __init__(self, context: RankContext, num_elements: int, wire: Wire) -> None:
        self.rank, self.size = context.rank, context.size
        layout = ExchangeLayout(num_elements, self.size, tuple((rank,) for rank in range(self.size)))
        self._exchange = Exchange(
            context.store, layout, wire=wire, weights_wire=wire, timeout_s=context.terms.timeout_s
        )  # fmt: skip
        self._turns = itertools.count()
        self.mine = self._exchange.contribution(self._exchange.nodes[0])

    def barrier(self) -> None:
        self._exchange.share(next(self._turns), 0, b"")

    def all_reduce(self, _mine: torch.Tensor) -> torch.Tensor:
        return self._exchange.all_reduce(next(self._turns), 0)


@dataclass(frozen=True, slots=True)
class MizzleSeries:
    """A rank's part in a series through the exchange that trainings use: arrays in the arena, one sum a host.

    Attributes:
        series: what to do.
        wire: what contributions and sums look like on their way: "fp32", "bf16" or "fp16".
    """

    series: Series
    wire: str = Wire.FP32.value

    def __call__(self, context: RankContext) -> Samples:
        """Run it."""
        numbers = WIDE if self.wire == Wire.FP32.value else NARROW
        rank = _ExchangeRank(context, self.series.num_elements, Wire.of(self.wire))
        samples = time_rank(rank, self.series, rank.all_reduce, numbers, mine=rank.mine)
        rank.barrier()
        return samples


@dataclass(frozen=True, slots=True)
class CopySeries:
    """A rank's part in a series through ``ctx.all_reduce``, its copies in and out of the arena included."""

    series: Series

    def __call__(self, context: RankContext) -> Samples:
        """Run it."""
        return time_rank(context, self.series, context.all_reduce)


@dataclass(frozen=True, slots=True)
class GlooSeries:
    """A rank's part in a series through gloo's all-reduce in place.

    Attributes:
        series: what to do.
        one_host: whether all ranks are on one host: gloo then stays on loopback.
    """

    series: Series
    one_host: bool

    def __call__(self, context: RankContext) -> Samples:
        """Run it."""
        with gloo_group(context, one_host=self.one_host) as group:

            def reduce(array: torch.Tensor) -> torch.Tensor:
                group.allreduce([array]).wait()
                return array

            return time_rank(context, self.series, reduce)


@contextmanager
def gloo_group(context: RankContext, *, one_host: bool) -> Iterator[Any]:
    """A gloo group of the context's ranks, over a store that rank 0 opens on a port of the system's choice.

    It is made without torch's global default group, so it leaves nothing behind in the Python worker.
    """
    torch_dist: Any = dist  # torch's type stubs know neither the store nor gloo's options
    host = "127.0.0.1" if one_host else context.host
    timeout = dt.timedelta(seconds=context.terms.timeout_s)
    told = None
    if context.rank == 0:
        store = torch_dist.TCPStore(host, 0, context.size, is_master=True, wait_for_workers=False, timeout=timeout)
        told = np.frombuffer(f"{host}:{store.port}".encode(), dtype=np.uint8).astype(np.int32)
    heard = bytes(np.asarray(context.broadcast(told)).astype(np.uint8))
    if context.rank != 0:
        address, _, port = heard.decode().rpartition(":")
        store = torch_dist.TCPStore(address, int(port), context.size, is_master=False, timeout=timeout)
    options = torch_dist.ProcessGroupGloo._Options()  # noqa: SLF001 - torch's own way to name gloo's interface
    options._devices = [torch_dist.ProcessGroupGloo.create_device(hostname=host)]  # noqa: SLF001 - likewise
    options._timeout = timeout  # noqa: SLF001 - likewise
    yield torch_dist.ProcessGroupGloo(store, context.rank, context.size, options)
    context.barrier()  # the store lives in rank 0, which must not leave first


def time_rank(
    context: Ranked, series: Series, reduce: Reduce, numbers: Numbers = WIDE, *, mine: torch.Tensor | None = None
) -> Samples:
    """Time a rank's calls of ``reduce``, one torch thread, all ranks at a barrier before each and after.

    Args:
        context: which rank.
        series: what to do.
        reduce: adds up all ranks' arrays; is given the own one.
        numbers: what is in them.
        mine: (num_elements,) fp32, where the own array is to lie; None: anywhere.
    """
    torch.set_num_threads(1)
    base = torch.from_numpy(numbers.pattern(series.num_elements))
    mine, wanted = torch.empty_like(base) if mine is None else mine, torch.empty_like(base)
    cpu, seconds, cpu_seconds, verified = RankCpu(), [], [], True
    for iteration in range(series.warmup + series.repeats):
        torch.add(base, numbers.offset(context.rank, iteration), out=mine)
        context.barrier()
        spent, begun = cpu(), time.perf_counter()
        total = reduce(mine)
        seconds.append(time.perf_counter() - begun)
        cpu_seconds.append(cpu() - spent)
        torch.mul(base, context.size, out=wanted).add_(numbers.total_offset(context.size, iteration))
        verified = verified and torch.equal(total, wanted)
        context.barrier()  # before it a peer may still be reading what it shares with this rank
    return Samples(seconds[series.warmup :], verified, cpu_seconds[series.warmup :])


@dataclass(frozen=True, slots=True)
class _Contribution:
    """Makes a partition's array on its executor."""

    num_elements: int
    iteration: int

    def __call__(self, rank: int) -> np.ndarray:
        return WIDE.pattern(self.num_elements) + np.float32(WIDE.offset(rank, self.iteration))


@dataclass(frozen=True, slots=True)
class _Received:
    """Uses a broadcast result on an executor; checks all of it only when asked to."""

    total: Broadcast[np.ndarray]
    ranks: int
    iteration: int
    check: bool

    def __call__(self, rows: Iterable[int]) -> Iterator[bool]:
        yield from (self._is_exact(self.total.value) for _ in rows)

    def _is_exact(self, total: np.ndarray) -> bool:
        return not self.check or is_exact(total, self.ranks, self.iteration)


def is_exact(total: np.ndarray, ranks: int, iteration: int) -> bool:
    """Whether an array is the sum of all ranks' contributions of an iteration."""
    wanted = WIDE.pattern(len(total)) * np.float32(ranks) + np.float32(WIDE.total_offset(ranks, iteration))
    return bool(np.array_equal(total, wanted))


def spark_series(context: SparkContext, system: str, series: Series, ranks: int) -> Samples:
    """A series through ``RDD.reduce`` or ``RDD.treeReduce`` and a broadcast of the result, timed at the driver.

    Making the arrays, one a partition, is inside the time: an RDD is computed when it is reduced.

    Args:
        context: the driver's Spark context.
        system: "reduce" or "tree_reduce".
        series: what to do.
        ranks: partitions.
    """
    places = context.parallelize(range(ranks), ranks)
    seconds, verified = [], True
    for iteration in range(series.warmup + series.repeats):
        arrays = places.map(_Contribution(series.num_elements, iteration))
        begun = time.perf_counter()
        total = arrays.treeReduce(np.add) if system == "tree_reduce" else arrays.reduce(np.add)
        shared = context.broadcast(total)
        places.mapPartitions(_Received(shared, ranks, iteration, check=False)).collect()
        seconds.append(time.perf_counter() - begun)
        there = places.mapPartitions(_Received(shared, ranks, iteration, check=True)).collect()
        verified = verified and is_exact(total, ranks, iteration) and all(there)
        shared.destroy()
    return Samples(seconds[series.warmup :], verified)
