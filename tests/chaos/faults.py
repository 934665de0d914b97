"""Faults that strike where a training stands at that moment: real signals, sent by the rank that is the victim.

A `Faulty` model carries its faults to the executors by value, and puts them into mizzle's own code there, in the
process of the rank: so nothing of it is in the product.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pyspark import cloudpickle
from torch import nn

from chaos import control_groups
from chaos.control_groups import limit_memory, limit_processor
from chaos.records import join_records, note_rows, rank_here
from mizzle.blocks.deadline import Deadline
from unit.training.runs import Mlp

cloudpickle.register_pickle_by_value(control_groups)  # type: ignore[no-untyped-call]
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]

APART_S = 1.5
ZOMBIE_S = 20.0
ADMITTED, WAITED, ZOMBIES_REPORT = "admitted.id", "waited.id", "zombie.id"
"""Of a ledger: the ranks behind a zombie are all admitted; they have waited for it; what it says."""
GROUP_NAME = "mizzle-test"
"""Of the control groups that actions make."""
POINTS = {
    "forward": ("torch.nn.modules.module", "Module.__call__"),
    "backward": ("torch", "Tensor.backward"),
    "publish": ("mizzle.collectives.exchange", "Exchange.publish"),
    "put": ("mizzle.blocks.transfer", "TransferStore.put"),
    "post": ("mizzle.blocks.shared", "SharedStore.put"),
    "reduce": ("mizzle.collectives.exchange", "Exchange.reduce"),
    "add": ("mizzle.collectives.combine", "TreeCombiner.combine"),
    "update": ("mizzle.training.update", "ShardedUpdate.before_gather"),
    "gather": ("mizzle.collectives.exchange", "Exchange.gather"),
    "keep": ("mizzle.spark.ranks.boundary", "Keeper.keep"),
    "copy": ("mizzle.collectives.handover", "Handover.hand_over"),
    "label": ("mizzle.spark.ranks.worker", "RankContext.set_label"),
    "settle": ("mizzle.training.rank", "RankTrainer.gather_weights"),
    "collect": ("mizzle.spark.ranks.boundary", "Keeper.collect"),
}
"""Where a fault may strike: (module, function) of what is called there."""


def executor_pid() -> int:
    """The process of the executor that this rank belongs to, on this machine: known by its directory, no other's."""
    mine = os.environ["SPARK_LOCAL_DIRS"]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                settings = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            named = [one.partition(b"=")[2].decode() for one in settings if one.startswith(b"SPARK_EXECUTOR_DIRS=")]
            if b"--executor-id" in words and any(mine.startswith(name) for name in named if name):
                return int(entry.name)
    raise AssertionError(f"no executor has the directory {mine}")


def kill_executor() -> None:
    """SIGKILL for the JVM; this process ends as its bridge does."""
    os.kill(executor_pid(), signal.SIGKILL)
    signal.pause()


def stop_executor() -> None:
    """SIGSTOP for the JVM: it says nothing any more, and its connections stay open. This process lives on."""
    os.kill(executor_pid(), signal.SIGSTOP)


def kill_rank() -> None:
    """SIGKILL for this process."""
    os.kill(os.getpid(), signal.SIGKILL)


def crash_rank() -> None:
    """A null pointer is followed."""
    ctypes.string_at(0)


def exit_rank() -> None:
    """User code ends the process behind Python's back."""
    os._exit(3)


def hold_back_rank() -> None:
    """From now on this process has a tenth of a processor."""
    limit_processor(f"{GROUP_NAME}-{os.getpid()}", 0.1)


def fill_memory() -> None:
    """This process takes more memory than it may (`limit_rank`)."""
    bytearray(os.urandom(1 << 20) * 256)


def limit_rank() -> None:
    """This process may take 128 MiB beside what it has."""
    limit_memory(f"{GROUP_NAME}-{os.getpid()}", 128 << 20)


def sys_exit() -> None:
    """User code ends Python, as it thinks."""
    sys.exit(3)


def raise_error() -> None:
    """User code fails."""
    raise ValueError("a fault of the user's own")


def dawdle() -> None:
    """It takes its time."""
    threading.Event().wait(4)


def hold_gil() -> None:
    """No other thread of this process runs for five seconds: who calls a PyDLL keeps the interpreter's lock."""
    ctypes.PyDLL(None).sleep(5)


ACTIONS: dict[str, Callable[[], None]] = {
    action.__name__: action
    for action in (
        kill_executor, stop_executor, kill_rank, crash_rank, exit_rank, sys_exit, raise_error, hold_gil,
        dawdle, hold_back_rank, fill_memory,
    )
}  # fmt: skip


@dataclass
class Fault:
    """One fault, or several behind each other.

    Attributes:
        point: of `POINTS`.
        call: strikes at that call, counted from 1 in each process.
        action: of `ACTIONS`.
        after: whether it strikes when the call is done.
        ledger: directory with a file for every fault that has struck.
        times: how often it strikes in all.
        ranks: whom it strikes, one after the other in turn; empty: who comes first.
        at: strikes only on the executor whose id that file in the ledger holds; "": on any.
        apart_s: at least so long after the one before.
    """

    point: str
    call: int
    action: str
    ledger: Path
    after: bool = False
    times: int = 1
    ranks: tuple[int, ...] = ()
    at: str = ""
    apart_s: float = APART_S
    _calls: int = field(default=0, repr=False)

    def arm(self) -> None:
        """Put it into this process."""
        if self.action == "fill_memory":
            limit_rank()  # before a group begins, as containers do
        module, path = POINTS[self.point]
        owner: Any = importlib.import_module(module)
        *parents, name = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        original = getattr(owner, name)

        def struck(*args: Any, **kwargs: Any) -> Any:
            self._calls += 1
            strikes = self._calls >= self.call if self.times > 1 else self._calls == self.call
            if strikes and not self.after:
                self.strike()
            found = original(*args, **kwargs)
            if strikes and self.after:
                self.strike()
            return found

        setattr(owner, name, struck)

    def strike(self) -> None:
        """Do it, if it is still to be done."""
        for number in range(self.times):
            before = self.ledger / f"{self.point}.{self.action}.{number - 1}"
            if number and time.time() - before.stat().st_mtime < self.apart_s:
                return  # one behind the other
            this = self.ledger / f"{self.point}.{self.action}.{number}"
            if this.exists():
                continue
            if not self._is_for_me(number):
                return
            try:
                this.touch(exist_ok=False)
            except FileExistsError:
                continue
            ACTIONS[self.action]()

    def _is_for_me(self, number: int) -> bool:
        here = rank_here()
        if self.at and here["executor"] != (self.ledger / self.at).read_text():
            return False
        return not self.ranks or here["rank"] == self.ranks[number % len(self.ranks)]


class Faulty(Mlp):
    """A model that brings faults along, and notes the rows it meets. It is armed where an executor unpickles it.

    Args:
        faults: to come.
        ledger: directory for what is noted; None: nothing is.
        pace_s: how long it takes for a shard, at least.
        how: of the model.
    """

    def __init__(
        self, faults: Fault | Sequence[Fault] | None, ledger: Path | None = None, pace_s: float = 0.0, **how: Any
    ) -> None:
        super().__init__(**how)
        self.pace_s = pace_s
        self.faults = [faults] if isinstance(faults, Fault) else list(faults or [])
        self.ledger = ledger

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if "SPARK_LOCAL_DIRS" in os.environ:
            if self.ledger is not None:
                join_records(self.ledger)
            for fault in self.faults:
                arm_once(fault)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training and self.ledger is not None:
            note_rows(inputs)
            threading.Event().wait(self.pace_s)
            self._outlive_zombies(self.ledger)
        return super().forward(inputs)

    def _outlive_zombies(self, ledger: Path) -> None:
        """A run must not be over before an attempt that lives on has tried all it can."""
        follows = rank_here().get("generation", 0) > 0 and any(ledger.glob("*.leave_zombie.*"))
        if follows and not (ledger / WAITED).exists():
            (ledger / ADMITTED).touch()
            deadline, paused = Deadline.after(ZOMBIE_S), threading.Event()
            while not ((ledger / ZOMBIES_REPORT).exists() or deadline.passed):
                paused.wait(0.1)
            (ledger / WAITED).touch()


class Busy(Faulty):
    """Takes 40 ms of a processor for a shard, whatever its rows and however fast that is."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        work, until = torch.ones(100, 100), time.thread_time() + 0.04
        while time.thread_time() < until:
            work = torch.tanh(work @ work)
        return super().forward(inputs)


def arm_once(fault: Fault) -> None:
    """A resident may build its rank again: the fault is in the process already, or is another run's."""
    armed = vars(nn).setdefault("mizzle_faults", {})
    key = f"{fault.ledger}: {fault.point}, {fault.action}"
    if key not in armed:
        armed[key] = fault
        fault.arm()


def struck(ledger: Path) -> list[str]:
    """The faults that have struck, the first first."""
    found = [path for path in ledger.iterdir() if path.suffix not in {".rows", ".id"}]
    return [path.name for path in sorted(found, key=lambda path: path.stat().st_mtime)]


def struck_at(ledger: Path) -> list[float]:
    """When, in seconds since the epoch."""
    return [(ledger / name).stat().st_mtime for name in struck(ledger)]


def bits(state: dict[str, torch.Tensor]) -> dict[str, bytes]:
    """A model's state, to be compared."""
    return {name: value.numpy().tobytes() for name, value in state.items()}
