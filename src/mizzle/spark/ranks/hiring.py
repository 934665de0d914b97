"""What a PySpark task does to make a rank resident: find an idle resident on its executor, or start one, and wait.

A Python task, because only Spark knows the environment that Python runs in here: executable, archives, paths, limits.
Loads no torch.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyspark import Broadcast, cloudpickle

from mizzle.blocks.bridge import BridgeClient
from mizzle.blocks.deadline import Deadline
from mizzle.blocks.residence import hire
from mizzle.errors import BridgeLost, BridgeMissing, Fenced, PeerLost
from mizzle.spark.ranks.orders import Committed, JoinTerms, StartOrder
from mizzle.spark.ranks.outcome import Failure, Outcome

_EARLY = "mizzle.early-"
"""How files in the executor's directory begin that stand for residents which were started early, by pid."""
_LONGER_S = 10.0
"""How much longer a task waits than the resident that it hires: that one's own deadline says more."""


@dataclass(frozen=True, slots=True)
class Hiring:
    """One settlement of a run: N ranks are made resident.

    Attributes:
        terms: of joining.
        work: the pickled `mizzle.spark.ranks.resident.ResidentWork`, sent to each executor once.
        since: where the run goes on.
        executors: by rank, where the driver has put it; empty where it may be anywhere.
        with_rows: whether partition i of the job's RDD is for rank i.
    """

    terms: JoinTerms
    work: Broadcast[bytes]
    since: Committed
    executors: tuple[str, ...]
    with_rows: bool

    def __call__(self, task: int, rows: Iterable[Any]) -> Iterator[Outcome]:
        """One task; yields the outcome of the resident's start."""
        # A task that leaves its input unread costs Spark the Python worker.
        kept = list(rows)
        try:
            yield self._hire_twice(task, kept)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the outermost frame
            yield Outcome(task, -1, failure=Failure.of(error))

    def _hire_twice(self, task: int, rows: list[Any]) -> Outcome:
        try:
            return self._hire(task, rows)
        except BridgeLost as error:
            lost = error
        try:
            return self._hire(task, rows, lost)  # the resident that was idle here was already on its way out
        except BridgeMissing as error:
            raise lost from error  # the executor ends

    def _hire(self, task: int, rows: list[Any], lost: BridgeLost | None = None) -> Outcome:
        terms = self.terms
        deadline = Deadline.after(terms.timeout_s + _LONGER_S)
        with ExitStack() as stack:
            client = stack.enter_context(BridgeClient.connect(deadline))
            stack.enter_context(_saying_where(client))
            work = stack.enter_context(_memory(self.work.value))
            given = None
            if self.with_rows:
                pickled: bytes = cloudpickle.dumps(rows)  # type: ignore[no-untyped-call]
                given = stack.enter_context(_memory(pickled))
            wanted = task if self.with_rows else -1
            order = StartOrder(terms, wanted, self.since, self.executors, work, given, tuple(sys.path))
            payload: bytes = cloudpickle.dumps(order)  # type: ignore[no-untyped-call]
            try:
                told = hire(client, terms.run, terms.generation, payload, wait=False, deadline=deadline)
            except Fenced:
                if lost is None:
                    raise
                return self._ended(task, client, lost)
            if told is None:
                pid = claim_early() or start_resident()
                told = hire(
                    client, terms.run, terms.generation, payload, wait=True, deadline=deadline,
                    is_coming=lambda: not _is_gone(pid),
                )  # fmt: skip
            assert told is not None, "the bridge answered a hire that waits with nobody"
        outcome: Outcome = cloudpickle.loads(told)
        return outcome

    def _ended(self, task: int, client: BridgeClient, lost: BridgeLost) -> Outcome:
        """The one before was admitted, and ended while it made itself ready: nobody else can be in its generation."""
        at = client.executor_id
        rank = self.executors.index(at) if at in self.executors else -1
        return Outcome(task, rank, at, client.host, failure=Failure.of(PeerLost(rank, str(lost))))


@contextmanager
def _saying_where(client: BridgeClient) -> Iterator[None]:
    """An error of the body says in which executor it was."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in executor {client.executor_id} on {client.host}, where a rank was to start")
        raise


@contextmanager
def _memory(content: bytes) -> Iterator[str]:
    """A file in memory that another process of this user can open while the body runs."""
    file = os.memfd_create("mizzle-order", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(file), "wb") as out:
            out.write(content)
        yield f"/proc/{os.getpid()}/fd/{file}"
    finally:
        os.close(file)


def start_early() -> None:
    """Start a resident for a task that will want one soon: see `claim_early`."""
    (_directory() / f"{_EARLY}{start_resident()}").touch()


def claim_early() -> int:
    """The pid of a resident that was started early and is still on its way: it is now the caller's to wait for; or 0.

    Two processes that load torch at once take twice as long.
    """
    for mark in sorted(_directory().glob(f"{_EARLY}*")):
        try:
            mark.unlink()
        except FileNotFoundError:
            continue  # another task has claimed it, or it is there
        if not _is_gone(pid := int(mark.name.removeprefix(_EARLY))):
            return pid
    return 0


def arrive() -> None:
    """This process, a resident, is at its bridge: whoever wants one finds it there."""
    with suppress(KeyError, OSError):
        (_directory() / f"{_EARLY}{os.getpid()}").unlink()


def _directory() -> Path:
    return Path(os.environ["SPARK_LOCAL_DIRS"].split(",")[0])


def _is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def start_resident() -> int:
    """Start a resident beside this Python worker, in the worker's environment but in a session of its own; its pid.

    So Spark may end the worker, and PySpark's daemon its process group, while the resident lives on. Large tensors lie
    on huge pages, unless the environment says otherwise: backward makes new ones all the time, and to be given 400 MB
    in pages of 4 KB takes 0.4 s (torch's c10/core/impl/alloc_cpu.cpp).
    """
    paths = os.pathsep.join(path for path in sys.path if path)
    started = subprocess.Popen(
        [sys.executable, "-m", "mizzle.spark.ranks.resident"],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr.fileno(),  # what a worker writes to standard output is read by Spark
        env={"THP_MEM_ALLOC_ENABLE": "1"} | os.environ | {"PYTHONPATH": paths},
        start_new_session=True,
    )
    return started.pid
