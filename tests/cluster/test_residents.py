"""Groups as jobs of JVM tasks, on a real Spark and bridge; a thread of the test plays each resident process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from queue import Empty, Queue

import numpy as np
import pytest
from py4j.protocol import Py4JJavaError
from pyspark.sql import SparkSession

from cluster.played_residents import LATE_S, NO_PID, SOON_S, Resident, Scene, end_idle_processes
from contract.stores import LocalBridge
from harness import eventually
from mizzle.blocks.bridge import BridgeClient
from mizzle.blocks.connect import connect_store
from mizzle.blocks.deadline import Deadline
from mizzle.blocks.frames import Request, Writer
from mizzle.blocks.notes import prepare_control
from mizzle.blocks.residence import Order, OrderKind, hire, serve
from mizzle.collectives.communicator import Communicator
from mizzle.config import Transport
from mizzle.errors import BridgeError, BridgeLost, CollectiveTimeout, ConfigError, Fenced, MizzleError
from mizzle.spark.jvm_groups import TaskResult, TaskStatus


@pytest.fixture
def scene(spark_local: SparkSession, local_bridge: LocalBridge) -> Iterator[Scene]:
    with local_bridge.driver.run() as run:
        made = Scene(spark_local, local_bridge, run)
        end_idle_processes(made)
        yield made
    for resident in made.residents:
        resident.die()
    for resident in made.residents:
        resident.thread.join(SOON_S)
    made.client.close()
    assert not [resident for resident in made.residents if resident.thread.is_alive()]


def outcome(rank: int, body: bytes) -> TaskResult:
    return TaskResult(TaskStatus.OUTCOME, rank, body)


def test_every_task_of_a_group_has_its_order_done_by_the_resident_of_its_rank(scene: Scene) -> None:
    scene.staffed(*[lambda order, rank=rank: b"rank %d: " % rank + order.payload for rank in range(3)])
    prepared = scene.prepare(3)
    asked = scene.bridge.driver.messages()
    for group in range(1, 6):
        order = b"group %d" % group
        assert scene.groups.run(prepared, group, order) == [
            outcome(rank, b"rank %d: " % rank + order) for rank in range(3)
        ]
    assert scene.bridge.driver.messages() == asked, "nobody asks the driver anything"
    assert scene.groups.cpu_s() > 0


def test_bridges_ask_for_leases_and_these_are_counted_apart(scene: Scene) -> None:
    scene.staffed(lambda order: order.payload)
    leases, asked = scene.groups.leases(), scene.bridge.driver.messages()
    assert eventually(lambda: scene.groups.leases() > leases + 1, within_s=SOON_S)
    assert scene.bridge.driver.messages() == asked


def test_a_task_that_finds_no_resident_ends_the_job_of_the_others(scene: Scene) -> None:
    may_end = threading.Event()

    def waits(order: Order) -> bytes:
        may_end.wait(SOON_S)
        return order.payload

    (resident,) = scene.staffed(waits)
    prepared = scene.prepare(2)
    # One of the two tasks has the only resident; its job does not wait for it.
    away, missing = sorted(scene.groups.run(prepared, 1, b"go"), key=lambda result: result.status)
    assert away.status is TaskStatus.AWAY
    assert b"is free in executor driver" in away.body
    assert missing == TaskResult(TaskStatus.MISSING, -1, b"")
    resident.expect(OrderKind.GROUP)
    may_end.set()
    assert TaskStatus.AWAY in {result.status for result in scene.groups.run(prepared, 1, b"the same group again")}
    with pytest.raises(Empty):
        resident.seen.get_nowait()


def test_a_resident_that_dies_in_a_group_is_reported(scene: Scene) -> None:
    residents: list[Resident] = []

    def dies(order: Order) -> bytes:
        residents[0].die()
        return order.payload

    residents += scene.staffed(dies)
    (result,) = scene.groups.run(scene.prepare(1), 1, b"go")
    assert (result.status, result.rank) == (TaskStatus.DIED, 0)
    assert b"ended: it crashed or was killed" in result.body


def test_a_rank_that_hangs_does_not_hold_those_that_have_failed(scene: Scene) -> None:
    residents: list[Resident] = []
    may_end = threading.Event()

    def fails(order: Order) -> bytes:
        residents[order.payload[0]].rank = -1
        return b"why"

    def hangs(_order: Order) -> bytes:
        may_end.wait(LATE_S)
        return b"too late"

    residents += scene.staffed(fails, hangs)
    failed, missing = scene.start(scene.prepare(2), 1, b"\0", f"test-{scene.run}").result(SOON_S)
    assert failed == TaskResult(TaskStatus.FAILED, 0, b"why")
    assert missing == TaskResult(TaskStatus.MISSING, -1, b"")
    may_end.set()


def test_peers_of_a_rank_that_failed_have_time_to_say_what_they_know(scene: Scene) -> None:
    residents: list[Resident] = []
    other_failed = threading.Event()

    def fails(_order: Order) -> bytes:
        residents[0].rank = -1
        other_failed.set()
        return b"first"

    def follows(_order: Order) -> bytes:
        other_failed.wait(SOON_S)
        residents[1].rank = -1
        return b"second"

    residents += scene.staffed(fails, follows)
    assert scene.groups.run(scene.prepare(2), 1, b"go") == [
        TaskResult(TaskStatus.FAILED, 0, b"first"), TaskResult(TaskStatus.FAILED, 1, b"second"),
    ]  # fmt: skip


def test_after_an_attempt_alone_was_killed_its_retry_does_not_wait_for_it(scene: Scene) -> None:
    residents: list[Resident] = []
    killed = threading.Event()

    def ends_when_killed(_order: Order) -> bytes:
        killed.wait(SOON_S)
        residents[0].rank = -1
        return b"failed"

    residents += scene.staffed(ends_when_killed)
    running = scene.start(scene.prepare(1), 1, b"go", tag := f"test-{scene.run}")
    assert eventually(lambda: scene.running_task(tag) is not None, within_s=SOON_S)
    task = scene.running_task(tag)
    assert scene.context._jsc.sc().killTaskAttempt(task, True, "by the test")  # noqa: FBT003 - py4j knows no names
    killed.set()
    (result,) = running.result(SOON_S)
    assert result.status is TaskStatus.AWAY


class Rank:
    """A rank that really joins, and waits for a peer that does not come."""

    def __init__(self, scene: Scene, rank: int, transport: Transport) -> None:
        self.client: BridgeClient = scene.bridge.client()
        within = Deadline.after(SOON_S)
        _, _, arena = self.client.claim(scene.run, rank, within)
        control = prepare_control(arena, 2).path
        self.arena, self.transport, self.entered = arena, transport, threading.Event()
        self._enter = partial(
            self.client.join, scene.run, generation=0, group=0, size=2, control=control, deadline=within, wanted=rank
        )
        self.ended: Queue[str] = Queue()

    def enter(self) -> Communicator:
        store = connect_store(self.client, self.arena, self._enter(), transport=self.transport, timeout_s=LATE_S)
        return Communicator(store, timeout_s=LATE_S)

    def waits(self, communicator: Communicator) -> bytes:
        self.entered.set()
        try:
            communicator.all_reduce(np.ones(3, np.float32))
        except MizzleError as error:
            self.ended.put(type(error).__name__)
        return b"failed"


@pytest.mark.parametrize("transport", ["auto", "blocks"])
def test_a_cancelled_group_ends_ranks_that_wait_for_each_other(scene: Scene, transport: Transport) -> None:
    ranks = [Rank(scene, rank, transport) for rank in range(2)]
    with ThreadPoolExecutor(2) as pool:
        communicators = list(pool.map(Rank.enter, ranks))
    lags = threading.Event()

    def lagging(_order: Order) -> bytes:
        lags.wait(LATE_S)
        return b"failed"

    residents = scene.staffed(lambda _: ranks[0].waits(communicators[0]), lagging)
    running = scene.start(scene.prepare(2), 1, b"go", tag := f"test-{scene.run}")
    for resident in residents:
        resident.expect(OrderKind.GROUP)
    assert ranks[0].entered.wait(SOON_S)
    scene.context.cancelJobsWithTag(tag)
    with pytest.raises(Py4JJavaError, match="cancelled"):
        running.result(SOON_S)
    assert ranks[0].ended.get(timeout=SOON_S) in {"Fenced", "PeerLost"}
    lags.set()
    for rank in ranks:
        rank.client.close()
    scene.bridge.end(scene.run)
    kept = [f"test_mizzle-{kind}.{scene.run}" for kind in ("bell", "alarm", "reason")]
    assert eventually(lambda: not any(map(scene.client.count_blocks, kept)), within_s=SOON_S)


def test_at_the_end_of_its_run_a_resident_is_released_and_serves_the_next(scene: Scene) -> None:
    (resident,) = scene.staffed(lambda order: order.payload)
    scene.bridge.end(scene.run)
    with scene.bridge.driver.run() as following:
        # It asks which runs have ended rather than have one process more started.
        assert hire(scene.client, following, 0, b"\5", wait=False, deadline=Deadline.after(SOON_S)) == b"ready"
    assert resident.rank == 5
    resident.expect(OrderKind.RELEASE)
    resident.expect(OrderKind.START)
    resident.expect(OrderKind.RELEASE)


def test_a_later_generation_takes_the_residents_of_the_earlier_one(scene: Scene) -> None:
    one, other = scene.staffed(lambda _: b"first", lambda _: b"second")
    assert scene.hire(0, generation=1, wait=False) == b"ready"
    for resident in (one, other):
        resident.expect(OrderKind.RELEASE)
    (result,) = scene.groups.run(scene.prepare(1, generation=1), 1, b"")
    assert result.body in {b"first", b"second"}
    (result,) = scene.groups.run(scene.prepare(1, generation=0), 7, b"")
    assert result.status is TaskStatus.AWAY


def test_hiring_fails_as_its_reason_demands(scene: Scene) -> None:
    assert scene.hire(0, wait=False) is None
    with pytest.raises(CollectiveTimeout, match="no resident process of this executor became free"):
        scene.hire(0, within_s=0.1)

    class Dies(Resident):
        def _do(self, _order: Order) -> bytes:
            self.die()
            return b""

    scene.residents.append(Dies(scene.bridge))
    with pytest.raises(BridgeLost, match=r"a rank could not start: process \d+ ended"):
        scene.hire(0)
    scene.client.call(Request.FENCE, Writer().text(scene.run).number("I", 3), Deadline.after(SOON_S))
    with pytest.raises(Fenced, match="generation 2 was superseded by generation 3"):
        scene.hire(0, generation=2)


def test_the_resident_of_a_task_that_goes_away_is_released(scene: Scene) -> None:
    goes_on = threading.Event()

    class Slow(Resident):
        def _do(self, order: Order) -> bytes:
            if order.kind is OrderKind.START:
                goes_on.wait(SOON_S)
            return super()._do(order)

    slow = Slow(scene.bridge)
    scene.residents.append(slow)
    asker = scene.bridge.client()

    def ask() -> None:
        with suppress(BridgeLost):
            hire(asker, scene.run, 0, b"\0", wait=True, deadline=Deadline.after(SOON_S))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    slow.expect(OrderKind.START)
    asker._socket.shutdown(socket.SHUT_RDWR)
    thread.join(SOON_S)
    asker.close()

    def is_expected_back() -> bool:
        try:
            return scene.hire(0, wait=False, within_s=0.2) is not None
        except CollectiveTimeout:
            return True

    assert eventually(is_expected_back, within_s=SOON_S)
    goes_on.set()
    slow.expect(OrderKind.RELEASE)
    with pytest.raises(Empty):
        slow.seen.get_nowait()


def test_an_order_that_was_never_given_is_not_done(scene: Scene) -> None:
    client = scene.bridge.client()
    with pytest.raises(BridgeError, match="a resident keeps its connection"):
        serve(client, pid=NO_PID, serial=7, rank=-1, outcome=b"")
    client.close()


def test_an_order_too_large_for_a_frame_is_refused_by_its_length(scene: Scene) -> None:
    with pytest.raises(ConfigError, match=r"an order of 1048576 bytes cannot be sent with a group, at most \d+"):
        scene.groups.run(scene.prepare(1), 1, bytes(1 << 20))
