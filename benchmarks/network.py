"""All-reduce over a network: a standalone Spark on hosts with links of 100 Mbit/s or 1 Gbit/s, all on one machine.

    sudo .venv/bin/python benchmarks/network.py --hosts 2,4,8 --rates 1000 --sizes 28MB --json network.json
    sudo .venv/bin/python benchmarks/network.py --hosts 2 --executors 4 --transport auto --systems mizzle,gloo
    sudo .venv/bin/python benchmarks/network.py clean

Hosts are network namespaces (`hosts.py`): the driver's, with Spark's master, and N with a worker and ``--executors``
executors (one) of one slot each, every one a rank. Needs root, ``ip``, ``tc`` and ``unshare`` (apt-get install iproute2
util-linux); without them it says so and does nothing. All it makes it removes, also when it is interrupted; ``clean``
removes what was left by one that was killed.

Systems: ``mizzle`` (the exchange that trainings use) and ``mizzle_bf16`` between ranks on different hosts, each series
one group of iterations; ``gloo`` within the same tasks; ``torch_distributor``: gloo in the processes that PySpark's
TorchDistributor starts on the same executors; ``tree_reduce``: RDD.treeReduce and a broadcast of the sum, timed at the
driver, making the arrays included. Every result is compared with the exact sum, outside the timed part.

Records: {system, hosts, ranks, bytes, wire, rate_mbit, goodput_mbit, median_s, p95_s, bound_s, ratio_to_bound,
driver_bytes_per_iteration, driver_bytes_per_launch, driver_idle_bytes_per_s, host_cpu_s, repeats, verified}, where

- ``goodput_mbit`` is B, what one TCP connection carries from host to host, measured just before;
- ``bound_s`` is 2 (N-1)/N * M / B: what a host must send and receive if its ranks' arrays are added up before. M is
  in fp32 whatever travels: a 16-bit wire may take half of it;
- ``driver_bytes_per_iteration`` are bytes into and out of the driver's host, Spark's master included, from the
  counters of its link: of the whole series, launch and warm-up included, less what passes in that time when nothing
  happens (``driver_idle_bytes_per_s``, measured after all series), divided by all iterations;
- ``driver_bytes_per_launch`` are those of a series without iterations, just before: what more iterations share;
- ``host_cpu_s`` are CPU seconds of an iteration on one host, mean over hosts and iterations: of the ranks' processes
  and their executors' JVMs. For ``tree_reduce``: of all processes of the host, checks included.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import select
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pyspark
from hosts import Host, Network, missing, remove_stale
from network_application import Plan, as_json, executor_mb
from network_ranks import SYSTEMS

from mizzle.cli.listed import listed, one_of
from mizzle.cli.sizes import format_size, parse_size
from mizzle.errors import ConfigError, MizzleError

SPARK_HOME = Path(pyspark.__file__).parent
HERE = Path(__file__).resolve().parent
_PORT = 7077
_START_S = 120.0
_MAX_RANKS = 8
"""Up to there the sums of the 16-bit wire are exact."""
_LOG_TAIL = 4000


def environment(network: Network, host: Host) -> dict[str, str]:
    """Of a Spark process on a host: its address, our Python and sources, and files only in the network's folder."""
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SPARK_", "PYSPARK_"))}
    return kept | {
        "SPARK_HOME": str(SPARK_HOME),
        "SPARK_LOCAL_IP": host.address,
        "SPARK_PUBLIC_DNS": host.address,
        "SPARK_LOCAL_DIRS": str(network.directory / "local"),
        "SPARK_DAEMON_MEMORY": "256m",
        "SPARK_DAEMON_JAVA_OPTS": f"-Djava.io.tmpdir={network.directory} -XX:-UsePerfData",
        "PYSPARK_PYTHON": sys.executable,
        "PYTHONPATH": os.pathsep.join(paths),
        "TMPDIR": str(network.directory),
    }


def start_daemon(network: Network, host: Host, class_name: str, arguments: Sequence[str], until: str) -> None:
    """Start Spark's master or worker on a host, and wait until its log has a line.

    Raises:
        MizzleError: it ended, or the line does not come; with the end of the log.
    """
    log = network.directory / f"{host.name}-{class_name.lower()}.log"
    command = [str(SPARK_HOME / "bin" / "spark-class"), f"org.apache.spark.deploy.{class_name.lower()}.{class_name}"]
    process = network.start(
        host, [*command, "--host", host.address, "--webui-port", "0", *arguments],
        log=log, env=environment(network, host),
    )  # fmt: skip
    ended = os.pidfd_open(process.pid)
    try:
        deadline = time.monotonic() + _START_S
        # A file cannot be waited for: look at it, and in between wait for the end of the process.
        while not re.search(until, log.read_text(errors="replace")):
            if select.select([ended], [], [], 0.1)[0] or time.monotonic() > deadline:
                raise MizzleError(f"Spark's {class_name.lower()} did not start on {host.name}:\n{tail(log)}")
    finally:
        os.close(ended)


def start_spark(network: Network, executors: int, executor_mb: int) -> str:
    """Start a standalone master on the driver's host and a worker on every other; returns its URL."""
    master = f"spark://{network.driver.address}:{_PORT}"
    start_daemon(network, network.driver, "Master", ["--port", str(_PORT)], "elected leader")
    for host in network.hosts:
        work = str(network.directory / f"work-{host.name}")
        room = ["--cores", str(executors), "--memory", f"{executors * executor_mb}m"]
        arguments = [*room, "--work-dir", work, master]
        start_daemon(network, host, "Worker", arguments, "Successfully registered with master")
    return master


def run_application(network: Network, plan: Plan) -> list[dict[str, Any]]:
    """Run the Spark application on the driver's host, and wait for its records.

    Raises:
        MizzleError: it failed; with the end of its log.
    """
    out, log = network.directory / "records.json", network.directory / "application.log"
    out.unlink(missing_ok=True)
    command = [sys.executable, str(HERE / "network_application.py"), as_json(plan), str(out)]
    # It looks at the processes of all hosts, so it needs the machine's view of them.
    process = network.start(
        network.driver, command, log=log, env=environment(network, network.driver), own_processes=False, is_heard=True
    )
    if process.wait() != 0 or not out.exists():
        raise MizzleError(f"the Spark application failed with {plan.hosts} hosts:\n{tail(log)}")
    records: list[dict[str, Any]] = json.loads(out.read_text())
    return records


def measure(asked: argparse.Namespace, num_hosts: int) -> list[dict[str, Any]]:
    """All rates with one number of hosts; Spark's daemons stay, the application is a new one for each rate."""
    records = []
    with Network(num_hosts) as network:
        url = start_spark(network, asked.executors, executor_mb(asked.sizes))
        for rate in asked.rates:
            network.shape(rate)
            plan = Plan(
                master=url, address=network.driver.address, namespaces=[host.namespace for host in network.hosts],
                executors=asked.executors, directory=str(network.directory), rate_mbit=rate,
                goodput_mbit=network.goodput_mbit(), sizes=asked.sizes, systems=asked.systems,
                transport=asked.transport, repeats=asked.repeats, warmup=asked.warmup, idle_s=asked.idle,
            )  # fmt: skip
            print(f"{num_hosts} hosts, links of {rate:g} Mbit/s: TCP carries {plan.goodput_mbit:.1f}", flush=True)
            records += run_application(network, plan)
    return records


def tail(log: Path) -> str:
    """The end of a log."""
    return log.read_text(errors="replace")[-_LOG_TAIL:] if log.exists() else "(no log)"


def show(records: Sequence[Mapping[str, Any]]) -> None:
    """Print the records for people."""
    rows = [
        {
            "hosts": record["hosts"],
            "ranks": record["ranks"],
            "Mbit/s": f"{record['rate_mbit']:g}",
            "bytes": format_size(record["bytes"]),
            "system": record["system"],
            "wire": record["wire"],
            "median ms": f"{1e3 * record['median_s']:.1f}",
            "p95 ms": f"{1e3 * record['p95_s']:.1f}",
            "/ bound": f"{record['ratio_to_bound']:.2f}",
            "driver B/it": f"{record['driver_bytes_per_iteration']:.0f}",
            "B/launch": f"{record['driver_bytes_per_launch']:.0f}",
            "CPU ms": f"{1e3 * record['host_cpu_s']:.1f}",
            "exact": "yes" if record["verified"] else "NO",
        }
        for record in records
    ]
    table = [list(rows[0]), *([str(cell) for cell in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def parsed() -> argparse.Namespace:
    """The options.

    Raises:
        ConfigError: one of them makes no sense.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="measure", choices=("measure", "clean"))
    parser.add_argument("--hosts", default="4", help="comma-separated numbers of hosts")
    parser.add_argument("--executors", type=int, default=1, help="ranks on each host, every one an executor")
    parser.add_argument("--rates", default="1000", help="comma-separated rates of the links, Mbit/s")
    parser.add_argument("--sizes", default="28MB", help="comma-separated sizes of a rank's array: B, KB, MB")
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="who takes part, comma-separated")
    parser.add_argument("--transport", default="blocks", choices=("auto", "blocks"), help="mizzle's way between ranks")
    parser.add_argument("--repeats", type=int, default=20, help="timed all-reduces of each at each size")
    parser.add_argument("--warmup", type=int, default=5, help="untimed ones before them")
    parser.add_argument(
        "--idle",
        type=float,
        default=20.0,
        help="seconds of watching the driver's idle link: executors report every 10 s",
    )
    parser.add_argument("--json", type=Path, help="write the records there")
    asked = parser.parse_args()
    asked.hosts = [int(count) for count in listed(asked.hosts)]
    asked.rates = [float(rate) for rate in listed(asked.rates)]
    asked.sizes = [parse_size(size) for size in listed(asked.sizes)]
    asked.systems = [one_of(name, SYSTEMS, "system") for name in listed(asked.systems)]
    if not asked.hosts or min(asked.hosts) < 2 or asked.executors < 1:
        raise ConfigError("--hosts must be at least 2, --executors at least 1")
    if max(asked.hosts) * asked.executors > _MAX_RANKS:
        raise ConfigError(f"--hosts times --executors must be at most {_MAX_RANKS}")
    if not asked.rates or min(asked.rates) < 1:
        raise ConfigError("--rates: give at least 1 Mbit/s")
    if not asked.sizes or any(size % 4 for size in asked.sizes):
        raise ConfigError("--sizes: give multiples of 4 bytes, which hold whole fp32 values")
    if asked.repeats < 1 or asked.warmup < 0 or asked.idle <= 0:
        raise ConfigError("--repeats must be at least 1, --warmup at least 0, --idle more than 0")
    return asked


def _terminated(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def run(asked: argparse.Namespace) -> None:
    """Measure one number of hosts after the other, print, and write the file as it grows.

    Raises:
        MizzleError: Spark failed, or a result was not the exact sum.
    """
    records: list[dict[str, Any]] = []
    for count in asked.hosts:
        records += measure(asked, count)
        if asked.json:
            asked.json.write_text(json.dumps(records, indent=2) + "\n")
    show(records)
    if not all(record["verified"] for record in records):
        raise MizzleError("results were not the exact sum: do not use these figures")


def main() -> None:
    """Do what is asked, if it can be done here."""
    try:
        asked = parsed()
        if (why := missing()) is not None:
            print(f"skipped: {why}")
        elif asked.what == "clean":
            print("\n".join(f"removed {name}" for name in remove_stale()) or "nothing to remove")
        else:
            for number in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, _terminated)
            run(asked)
    except MizzleError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
