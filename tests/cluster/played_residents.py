"""Residents that threads of the test play, on the bridge of an embedded Spark, and groups run on them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import Queue

from py4j.protocol import Py4JJavaError
from pyspark import InheritableThread, SparkContext
from pyspark.sql import SparkSession

from contract.stores import LocalBridge
from mizzle.blocks.deadline import Deadline
from mizzle.blocks.residence import Order, OrderKind, hire, serve
from mizzle.errors import BridgeLost
from mizzle.spark.jvm_groups import JvmGroups, TaskResult

SOON_S = 20.0
LATE_S = 100.0
"""Deadline of what must end long before it."""
ENDS_WHO_READS_IT = b"cos\n_exit\n(I0\ntR."
"""A pickle."""
NO_PID = 1 << 31
"""Linux ends at 2^22, so no process is ever killed by mistake."""


class Resident:
    """Plays a resident: starts as the rank its payload names, does what the test says in a group."""

    def __init__(self, bridge: LocalBridge, act: Callable[[Order], bytes] = lambda order: order.payload) -> None:
        self.rank = -1
        self.seen: Queue[OrderKind] = Queue()
        self.act = act
        self._client = bridge.client()
        self.thread = threading.Thread(target=self._live, daemon=True)
        self.thread.start()

    def _live(self) -> None:
        serial, outcome = 0, b""
        with suppress(BridgeLost):
            while True:
                order = serve(self._client, pid=NO_PID, serial=serial, rank=self.rank, outcome=outcome)
                self.seen.put(order.kind)
                if order.kind is OrderKind.EXIT:
                    break
                serial, outcome = order.serial, self._do(order)
        self._client.close()

    def _do(self, order: Order) -> bytes:
        if order.kind is OrderKind.RELEASE:
            self.rank = -1
            return b""
        if order.kind is OrderKind.START:
            self.rank = order.payload[0]
            return b"ready"
        return self.act(order)

    def expect(self, kind: OrderKind) -> None:
        """The next order is of that kind."""
        assert self.seen.get(timeout=SOON_S) is kind

    def die(self) -> None:
        """As a process that is killed: its connection ends, whatever it is doing."""
        with suppress(OSError):
            self._client._socket.shutdown(socket.SHUT_RDWR)


class Scene:
    """A run on the embedded Spark's bridge, and the residents that the test has."""

    def __init__(self, spark: SparkSession, bridge: LocalBridge, run: str) -> None:
        self.context: SparkContext = spark.sparkContext
        self.bridge, self.run = bridge, run
        self.groups = JvmGroups(self.context)
        self.residents: list[Resident] = []
        self.client = bridge.client()

    def resident(self, act: Callable[[Order], bytes] = lambda order: order.payload) -> Resident:
        self.residents.append(Resident(self.bridge, act))
        return self.residents[-1]

    def hire(self, rank: int, generation: int = 0, *, wait: bool = True, within_s: float = SOON_S) -> bytes | None:
        payload = bytes([rank])
        return hire(self.client, self.run, generation, payload, wait=wait, deadline=Deadline.after(within_s))

    def staffed(self, *acts: Callable[[Order], bytes]) -> list[Resident]:
        """A resident of generation 0 for each rank."""
        made = []
        for rank, act in enumerate(acts):
            made.append(self.resident(act))
            assert self.hire(rank) == b"ready"
            made[-1].expect(OrderKind.START)
        return made

    def prepare(self, size: int, generation: int = 0) -> object:
        host = self.bridge.driver.hosts()["driver"]
        return self.groups.prepare(self.run, generation, [(host, "driver")] * size)

    def start(self, prepared: object, group: int, order: bytes, tag: str) -> Future[list[TaskResult]]:
        """Run a group in a thread of its own, under a tag that is its job's description too."""
        found: Future[list[TaskResult]] = Future()

        def run() -> None:
            self.context.addJobTag(tag)
            self.context.setJobDescription(tag)
            try:
                found.set_result(self.groups.run(prepared, group, order))
            except Py4JJavaError as error:
                found.set_exception(error)

        InheritableThread(target=run, daemon=True).start()
        return found

    def running_task(self, description: str) -> int | None:
        """A task that runs in the job of that description, as soon as Spark tells."""
        store = self.context._jsc.sc().statusStore()
        jobs = store.jobsList(None)
        for job in map(jobs.apply, range(jobs.size())):
            if description in str(job.description()) and str(job.status()) == "RUNNING":
                tasks = store.taskList(int(job.stageIds().apply(0)), 0, 9)
                for task in map(tasks.apply, range(tasks.size())):
                    if str(task.status()) == "RUNNING":
                        return int(task.taskId())
        return None


def end_idle_processes(scene: Scene) -> None:
    """Have real residents end that other tests of this session have left idle."""
    for _ in range(100):
        with suppress(BridgeLost):
            if hire(scene.client, scene.run, 0, ENDS_WHO_READS_IT, wait=False, deadline=Deadline.after(SOON_S)) is None:
                return
    raise AssertionError("there are always more")
