"""What `network.py` has its executors do: all-reduces by mizzle, by gloo, and by gloo under TorchDistributor.

Executors import this module by name, so its folder must be on their PYTHONPATH.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from pyspark.ml.torch.distributor import TorchDistributor
from pyspark.sql import SparkSession

from mizzle.bench.all_reduce import slowest
from mizzle.bench.all_reduce_systems import GlooSeries, MizzleSeries, Samples, Series, spark_series, time_rank
from mizzle.config import Transport
from mizzle.errors import MizzleError
from mizzle.spark.groups import run_group
from mizzle.spark.ranks.worker import RankContext

TIMEOUT_S = 600.0
"""Of one collective: 28 MB take seconds at 100 Mbit/s."""

Body = Callable[[RankContext], Samples]
Run = Callable[[SparkSession, Series, int], Samples]


@dataclass(frozen=True, slots=True)
class System:
    """One way to all-reduce.

    Attributes:
        name: as records have it.
        wire: what the values look like on their way.
        run: runs a series with so many ranks, equally many on each host.
    """

    name: str
    wire: str
    run: Run


@dataclass(frozen=True, slots=True)
class OnHosts:
    """A rank's part in a series, with the host where it was."""

    body: Body

    def __call__(self, context: RankContext) -> tuple[str, Samples]:
        """Run it."""
        return context.host, self.body(context)


@dataclass(frozen=True, slots=True)
class GroupOnHosts:
    """Runs a series as one group of mizzle's, equally many ranks on each host.

    Attributes:
        body_of: a rank's part in a series.
        hosts: how many.
        transport: between ranks, for mizzle's collectives.
    """

    body_of: Callable[[Series], Body]
    hosts: int
    transport: Transport

    def __call__(self, spark: SparkSession, series: Series, ranks: int) -> Samples:
        """Run it.

        Raises:
            MizzleError: Spark spread the ranks otherwise.
        """
        body = OnHosts(self.body_of(series))
        found = run_group(spark, body, ranks=ranks, transport=self.transport, timeout_s=TIMEOUT_S)
        spread = Counter(host for host, _ in found)
        if set(spread.values()) != {ranks // self.hosts} or len(spread) != self.hosts:
            raise MizzleError(f"{ranks} ranks were not spread over {self.hosts} hosts: {dict(spread)}")
        return slowest([samples for _, samples in found])


@dataclass(frozen=True, slots=True)
class _TorchRank:
    """A process of TorchDistributor's."""

    rank: int
    size: int

    def barrier(self) -> None:
        """Return when all are here."""
        dist.barrier()


def torch_distributor_rank(series: Series) -> Samples:
    """Every process' part under TorchDistributor; what the first returns goes to the driver."""
    torch_dist: Any = dist  # torch's type stubs know neither gloo's options nor object collectives
    torch_dist.init_process_group("gloo", timeout=dt.timedelta(seconds=TIMEOUT_S))
    try:
        rank = _TorchRank(torch_dist.get_rank(), torch_dist.get_world_size())

        def reduce(array: torch.Tensor) -> torch.Tensor:
            torch_dist.all_reduce(array)
            return array

        samples = time_rank(rank, series, reduce)
        gathered: list[Any] = [None] * rank.size
        torch_dist.all_gather_object(gathered, samples)
        rank.barrier()
        return slowest(gathered)
    finally:
        torch_dist.destroy_process_group()


def run_torch_distributor(_spark: SparkSession, series: Series, ranks: int) -> Samples:
    """A series by gloo as a user gets it: processes that TorchDistributor starts from a barrier job.

    A barrier job has a task on every slot here, so they are spread as the executors are.
    """
    distributor = TorchDistributor(num_processes=ranks, local_mode=False, use_gpu=False)
    samples: Samples | None = distributor.run(torch_distributor_rank, series)
    if samples is None:
        raise MizzleError("TorchDistributor brought nothing back: look at the executors' logs")
    return samples


def run_tree_reduce(spark: SparkSession, series: Series, ranks: int) -> Samples:
    """A series by PySpark's treeReduce and a broadcast of the sum."""
    return spark_series(spark.sparkContext, "tree_reduce", series, ranks)


def systems(transport: Transport, hosts: int) -> dict[str, System]:
    """All that can take part, by the name on the command line.

    Args:
        transport: mizzle's way between ranks.
        hosts: how many there are.
    """

    def of_mizzle(wire: str) -> System:
        return System("mizzle", wire, GroupOnHosts(partial(MizzleSeries, wire=wire), hosts, transport))

    return {
        "mizzle": of_mizzle("fp32"),
        "mizzle_bf16": of_mizzle("bf16"),
        "gloo": System("gloo", "fp32", GroupOnHosts(partial(GlooSeries, one_host=False), hosts, "blocks")),
        "torch_distributor": System("torch_distributor", "fp32", run_torch_distributor),
        "tree_reduce": System("tree_reduce", "fp32", run_tree_reduce),
    }


SYSTEMS = tuple(systems("blocks", 1))
