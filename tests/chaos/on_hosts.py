"""Started by test_network and test_loopback: fits while links break, lose packets or are slow; what came of each."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pyspark import cloudpickle
from pyspark.sql import SparkSession

from chaos.faults import Faulty, bits
from chaos.records import Watch, history_of
from cluster.trainings import fit
from mizzle.blocks.deadline import Deadline
from mizzle.spark.driver import DriverSide, await_slots
from mizzle.spark.probe import await_bridges
from mizzle.spark.runner import GroupRun, GroupRunner
from mizzle.spark.session import spark_conf
from unit.training.runs import Training, digits

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]

GROUP, ITERATIONS, BEFORE, TIMEOUT_S = 5, 60, 4, 8.0
"""Iterations; groups before something happens; and the deadline of a collective."""
START_S = 180.0
TABLE = "mizzle"
LINK = "eth0"


def adam(groups: list[dict[str, object]]) -> Any:
    """An optimizer with state."""
    from torch.optim import Adam

    return Adam(groups, lr=0.01)


def run(*command: str) -> None:
    """A command that must succeed."""
    subprocess.run(command, check=True, capture_output=True, text=True)


def rules_for(rules: list[str]) -> str:
    """What tells nft to install rules for what comes in."""
    base = f"add table inet {TABLE}; add chain inet {TABLE} in {{ type filter hook input priority 0; }}; "
    return base + " ".join(f"add rule inet {TABLE} in {rule};" for rule in rules)


def drop(at: str, rules: list[str]) -> None:
    """Install rules for what comes to a host."""
    run("ip", "netns", "exec", at, "nft", rules_for(rules))


def cut(at: str, addresses: list[str]) -> None:
    """Nothing from there is heard at a host any more."""
    drop(at, [f"ip saddr {address} drop" for address in addresses])


class LateLink:
    """One link, all frames of which are delayed both ways; until it is closed.

    Args:
        switch: the switch's namespace.
        port: the link's end there.
        delay_ms: so long.
        jitter_ms: more or less.
    """

    def __init__(self, switch: str, port: str, delay_ms: float, jitter_ms: float) -> None:
        self._switch, self._port = switch, port
        run("ip", "-n", switch, "link", "add", "late", "type", "veth", "peer", "name", "late-in")
        run("ip", "-n", switch, "link", "set", "late-in", "master", "switch", "up")
        run("ip", "-n", switch, "link", "set", "late", "up")
        run("ip", "-n", switch, "link", "set", port, "nomaster")
        relay = [sys.executable, str(Path(__file__).with_name("late_link.py")), port, "late", delay_ms, jitter_ms]
        self._relay = subprocess.Popen(["ip", "netns", "exec", switch, *map(str, relay)], stdout=subprocess.PIPE)
        assert self._relay.stdout is not None
        assert self._relay.stdout.readline() == b"ready\n"

    def close(self) -> None:
        """The link is as before."""
        self._relay.kill()
        self._relay.wait(10)
        run("ip", "-n", self._switch, "link", "set", self._port, "master", "switch")
        run("ip", "-n", self._switch, "link", "del", "late")


class Faults:
    """What can be done to the network of a driver and its hosts.

    Args:
        hosts: (namespace, address) of each, the driver's first.
        switch: its namespace, and the ports there of the hosts.
    """

    def __init__(self, hosts: list[tuple[str, str]], switch: str, ports: list[str]) -> None:
        self._driver, *self._hosts = hosts
        self._switch, self._ports = switch, ports
        self._late: LateLink | None = None

    def apart(self, one: list[int], other: list[int]) -> None:
        """These hosts and those hear nothing of each other; all hear the driver."""
        self.deaf(one, other)
        self.deaf(other, one)

    def deaf(self, one: list[int], other: list[int]) -> None:
        """These hear nothing of those."""
        for number in one:
            cut(self._hosts[number][0], [self._hosts[peer][1] for peer in other])

    def driver_apart(self, one: list[int]) -> None:
        """These and the driver hear nothing of each other."""
        cut(self._driver[0], [self._hosts[number][1] for number in one])
        for number in one:
            cut(self._hosts[number][0], [self._driver[1]])

    def lose(self, percent: int) -> None:
        """Everybody loses packets."""
        for namespace, _ in self._hosts:
            drop(namespace, [f"meta l4proto tcp numgen random mod 100 < {percent} drop"])

    def reset(self, one_in: int) -> None:
        """Connections between hosts are reset, by one packet in so many."""
        for namespace, _ in self._hosts:
            peers = ", ".join(address for _, address in self._hosts)
            drop(
                namespace,
                [f"ip saddr {{ {peers} }} tcp dport != 0 numgen random mod {one_in} == 0 reject with tcp reset"],
            )

    def slow(self, number: int, rate_mbit: int) -> None:
        """One link is slow."""
        bucket = ("tbf", "rate", f"{rate_mbit}mbit", "burst", "64kb", "limit", "1mb")
        run("tc", "-n", self._hosts[number][0], "qdisc", "replace", "dev", LINK, "root", *bucket)

    def delay(self, number: int, delay_ms: float, jitter_ms: float) -> None:
        """One link is long."""
        self._late = LateLink(self._switch, self._ports[number], delay_ms, jitter_ms)

    def heal(self) -> None:
        """Everything is as before."""
        if self._late is not None:
            self._late.close()
            self._late = None
        for namespace, _ in [self._driver, *self._hosts]:
            subprocess.run(
                ["ip", "netns", "exec", namespace, "nft", "delete", "table", "inet", TABLE],
                capture_output=True, check=False,
            )  # fmt: skip
            subprocess.run(
                ["tc", "-n", namespace, "qdisc", "del", "dev", LINK, "root"], capture_output=True, check=False
            )


class LoopbackFaults:
    """What can be done to executors that share a network namespace, which is this process' own."""

    def __init__(self, spark: SparkSession) -> None:
        self._spark = spark

    def unheard(self) -> None:
        """Nothing that others send to the block service of one of the executors comes there any more."""
        told = DriverSide(self._spark.sparkContext).told()
        run("nft", rules_for([f"tcp dport {told[min(told)]['port']} drop"]))

    def lose(self, percent: int) -> None:
        """Packets are lost."""
        run("nft", rules_for([f"meta l4proto tcp numgen random mod 100 < {percent} drop"]))

    def heal(self) -> None:
        """Everything is as before."""
        subprocess.run(["nft", "delete", "table", "inet", TABLE], capture_output=True, check=False)


class Strike:
    """Does something behind a group of the run, and undoes it later."""

    def __init__(self, do: Callable[[], None], undo: Callable[[], None], heal_s: float | None) -> None:
        self.at: float | None = None
        self._groups, self._timer = 0, threading.Timer(heal_s or 0, undo)
        self._done = done = GroupRunner._run_once

        def run_once(runner: GroupRunner, title: str, pickled: bytes) -> GroupRun:
            if self._groups == BEFORE and self.at is None:
                self.at = time.time()
                do()
                if heal_s is not None:
                    self._timer.start()
            found = done(runner, title, pickled)
            self._groups += 1
            return found

        GroupRunner._run_once = run_once  # type: ignore[method-assign, assignment]

    def over(self) -> None:
        """Nothing is done any more."""
        GroupRunner._run_once = self._done  # type: ignore[method-assign]
        self._timer.cancel()


def scene(
    spark: SparkSession, faults: Faults | LoopbackFaults, how: dict[str, Any], watch: Watch, ledger: Path
) -> dict[str, Any]:
    """One fit: its history, for the checker, and its faults, by when they were seen."""
    ledger.mkdir()
    do = partial(getattr(faults, how["fault"]), *how["how"]) if "fault" in how else lambda: None
    strike = Strike(do, faults.heal, how.get("heal_s"))
    training = Training(partial(Faulty, None, ledger, dropout=0.2, norm=True), digits(), adam)
    layout = {"ranks": tuple(how["ranks"]), "transport": "blocks", "timeout_s": TIMEOUT_S, "group_size": GROUP}
    try:
        result = fit(spark, training, run=layout, max_iterations=ITERATIONS)
    except Exception as error:  # noqa: BLE001 - the test judges it
        return {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
    finally:
        strike.over()
        faults.heal()
    assert strike.at is not None
    run = result.report["run"]
    return {
        "history": history_of(
            training, result.history, {name: value.hex() for name, value in bits(result.model.state_dict()).items()},
            watch.of[run], (ledger / f"{run}.rows").read_text().splitlines(),
        ),
        "faults": [
            {"boundary": fault.boundary, "cause": fault.cause, "ranks": fault.ranks,
             "noticed_s": fault.noticed_at - strike.at, "resumed_s": fault.resumed_at - strike.at}
            for fault in result.history.faults
        ],
    }  # fmt: skip


def await_executors(spark: SparkSession, count: int) -> None:
    """Until Spark has replaced those that were given up."""
    deadline, paused = Deadline.after(START_S), threading.Event()
    while len(DriverSide(spark.sparkContext).hosts()) < count:
        deadline.check("executors")
        paused.wait(0.05)


def main(home: Path) -> None:
    """Play the scenes that the test has written down."""
    logging.basicConfig(level=logging.INFO, filename=home / "driver.log", format="%(asctime)s %(name)s %(message)s")
    plan = json.loads((home / "plan.json").read_text())
    hosts = [tuple(host) for host in plan["hosts"]]
    ranks = plan["ranks"]
    temporary = f"-Djava.io.tmpdir={plan['directory']} -XX:-UsePerfData"
    conf = spark_conf({
        "spark.app.name": "mizzle tests", "spark.ui.enabled": "false", "spark.ui.showConsoleProgress": "false",
        "spark.driver.host": hosts[0][1], "spark.driver.bindAddress": hosts[0][1],
        "spark.driver.extraJavaOptions": temporary, "spark.executor.extraJavaOptions": temporary,
        "spark.executor.cores": "1", "spark.executor.memory": "1024m", "spark.cores.max": str(ranks),
    })  # fmt: skip
    spark = SparkSession.builder.master(plan["master"]).config(map=dict(conf)).getOrCreate()
    os.environ.pop("SPARK_LOCAL_DIRS", None)  # by which a model of `chaos.faults` knows that it is on an executor
    found, watch = [], Watch()
    try:
        await_slots(spark.sparkContext, ranks, Deadline.after(START_S))
        await_bridges(spark.sparkContext, Deadline.after(START_S))
        for number, how in enumerate(plan["scenes"]):
            await_executors(spark, ranks)
            faults = Faults(hosts, *plan["switch"]) if len(hosts) > 1 else LoopbackFaults(spark)
            found.append(scene(spark, faults, how, watch, home / f"ledger{number}"))
            (home / "found.json").write_text(json.dumps(found))
    finally:
        spark.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
