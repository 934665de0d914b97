"""The Spark application of `network.py`: runs on the driver's host, inside its network namespace.

Started by `network.py` for each number of hosts and rate, with a plan as JSON; writes records as JSON.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from network_ranks import System, systems
from pyspark.sql import SparkSession

from mizzle.bench.all_reduce_systems import Samples, Series
from mizzle.bench.cpu import cpu_s
from mizzle.blocks.deadline import Deadline
from mizzle.config import Transport
from mizzle.spark.driver import await_slots
from mizzle.spark.probe import await_bridges
from mizzle.spark.session import spark_conf

_MB = 10**6
_COUNTERS = Path("/sys/class/net/eth0/statistics")
"""``ip netns exec`` shows those of the namespace there."""
_START_S = 180.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one application measures.

    Attributes:
        master: Spark's URL of it.
        address: of the driver's host.
        namespaces: of the other hosts.
        executors: on each of them, with one rank each.
        directory: for files, of all hosts.
        rate_mbit: of every link, both ways.
        goodput_mbit: B, what TCP gets out of it.
        sizes: bytes of a rank's fp32 array.
        systems: who takes part, in this order.
        transport: mizzle's.
        repeats: timed all-reduces of each at each size.
        warmup: untimed ones before them.
        idle_s: for so long the driver's counters are watched while nothing happens.
    """

    master: str
    address: str
    namespaces: list[str]
    executors: int
    directory: str
    rate_mbit: float
    goodput_mbit: float
    sizes: list[int]
    systems: list[str]
    transport: Transport
    repeats: int
    warmup: int
    idle_s: float

    @property
    def hosts(self) -> int:
        """N: hosts with ranks, so not the driver's."""
        return len(self.namespaces)

    @property
    def ranks(self) -> int:
        """On all hosts together."""
        return self.hosts * self.executors

    def bound_s(self, num_bytes: int) -> float:
        """2 (N-1)/N * M / B: each host must send and receive that much in fp32, whatever the algorithm."""
        return 2 * (self.hosts - 1) / self.hosts * num_bytes * 8 / 1e6 / self.goodput_mbit


def executor_mb(sizes: Sequence[int]) -> int:
    """Heap of an executor: mizzle's arrays lie outside it, but arrays of an RDD pass through it, more than once."""
    return max(1024, 512 + 4 * math.ceil(max(sizes) / _MB))


@contextmanager
def application(plan: Plan) -> Iterator[SparkSession]:
    """Spark with mizzle's settings, on executors of one slot, equally many on each host."""
    temporary = f"-Djava.io.tmpdir={plan.directory} -XX:-UsePerfData"
    conf = spark_conf({
        "spark.app.name": "mizzle network benchmark",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.host": plan.address,
        "spark.driver.bindAddress": plan.address,
        # All arrays of treeReduce meet in the driver: the limit of 1 GB is there to refuse just that.
        "spark.driver.maxResultSize": "0",
        "spark.driver.memory": f"{1024 + 2 * (plan.ranks + 1) * math.ceil(max(plan.sizes) / _MB)}m",
        "spark.driver.extraJavaOptions": temporary,
        "spark.executor.extraJavaOptions": temporary,
        "spark.executor.cores": "1",
        "spark.executor.memory": f"{executor_mb(plan.sizes)}m",
        "spark.cores.max": str(plan.ranks),
    })  # fmt: skip
    spark = SparkSession.builder.master(plan.master).config(map=dict(conf)).getOrCreate()
    try:
        deadline = Deadline.after(_START_S)
        await_slots(spark.sparkContext, plan.ranks, deadline)
        await_bridges(spark.sparkContext, deadline)
        yield spark
    finally:
        spark.stop()


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen at one moment.

    Attributes:
        at_s: when.
        driver_bytes: into and out of the driver's host so far.
        hosts_cpu_s: CPU seconds of all processes that live on the other hosts.
    """

    at_s: float
    driver_bytes: int
    hosts_cpu_s: float

    def passed_since(self, before: Look, idle: float) -> float:
        """Bytes through the driver's link since another look, less those that would have passed anyway."""
        return self.driver_bytes - before.driver_bytes - idle * (self.at_s - before.at_s)

    @classmethod
    def now(cls, plan: Plan) -> Look:
        """Look."""
        pids = [
            int(pid)
            for namespace in plan.namespaces
            for pid in subprocess.run(
                ["ip", "netns", "pids", namespace], capture_output=True, text=True, check=True
            ).stdout.split()
        ]
        counted = sum(int((_COUNTERS / f"{way}_bytes").read_text()) for way in ("rx", "tx"))
        return cls(time.perf_counter(), counted, sum(map(cpu_s, pids)))


def idle_bytes_per_s(plan: Plan) -> float:
    """Heartbeats and the like: what passes the driver's link per second while nothing is asked for."""
    before = Look.now(plan)
    threading.Event().wait(plan.idle_s)
    return Look.now(plan).passed_since(before, 0.0) / plan.idle_s


def measure(plan: Plan) -> list[dict[str, Any]]:
    """Every system at every size."""
    known = systems(plan.transport, plan.hosts)
    seen = []
    with application(plan) as spark:
        for num_bytes in plan.sizes:
            for system in (known[name] for name in plan.systems):
                print(f"{plan.hosts} hosts, {plan.rate_mbit:g} Mbit/s, {num_bytes} bytes: {system.name} "
                      f"({system.wire})", flush=True)  # fmt: skip
                looks = [Look.now(plan)]
                system.run(spark, Series(num_bytes // 4, warmup=0, repeats=0), plan.ranks)
                looks.append(Look.now(plan))
                samples = system.run(spark, Series(num_bytes // 4, plan.warmup, plan.repeats), plan.ranks)
                looks.append(Look.now(plan))
                seen.append((system, num_bytes, samples, looks))
        # Last: while executors start, and load what they need for the first time, the link is not idle.
        idle = idle_bytes_per_s(plan)
    return [record(plan, *of_system, idle) for of_system in seen]


def record(
    plan: Plan, system: System, num_bytes: int, samples: Samples, looks: Sequence[Look], idle: float
) -> dict[str, Any]:
    """One system at one size; `network.py` says what the fields mean.

    Args:
        plan: of the application.
        system: who.
        num_bytes: of a rank's array.
        samples: what the series gave.
        looks: before and after an empty series, and after the series.
        idle: bytes per second that pass the driver anyway.
    """
    begun, before, after = looks
    iterations = plan.warmup + plan.repeats
    median_s, bound_s = statistics.median(samples.seconds), plan.bound_s(num_bytes)
    # Plain Spark's iterations have no end on a host where one could look: all that was done, checks included.
    whole_cpu_s = (after.hosts_cpu_s - before.hosts_cpu_s) / iterations
    return {
        "system": system.name,
        "hosts": plan.hosts,
        "ranks": plan.ranks,
        "bytes": num_bytes,
        "wire": system.wire,
        "rate_mbit": plan.rate_mbit,
        "goodput_mbit": plan.goodput_mbit,
        "median_s": median_s,
        "p95_s": float(np.percentile(samples.seconds, 95)),
        "bound_s": bound_s,
        "ratio_to_bound": median_s / bound_s if bound_s else None,
        "driver_bytes_per_iteration": after.passed_since(before, idle) / iterations,
        "driver_bytes_per_launch": before.passed_since(begun, idle),
        "driver_idle_bytes_per_s": idle,
        "host_cpu_s": _mean_cpu(samples.cpu_seconds, whole_cpu_s) / plan.hosts,
        "repeats": len(samples.seconds),
        "verified": samples.verified,
    }


def _mean_cpu(timed: Sequence[float], whole: float) -> float:
    return statistics.fmean(timed) if timed else whole


def main(plan: Plan, out: Path) -> None:
    """Measure and write."""
    out.write_text(json.dumps(measure(plan)))


def as_json(plan: Plan) -> str:
    """For the command line."""
    return json.dumps(asdict(plan))


if __name__ == "__main__":
    main(Plan(**json.loads(sys.argv[1])), Path(sys.argv[2]))
