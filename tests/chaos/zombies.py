"""An attempt that lives on when its rank has another one: it keeps the connection by which it was admitted, and pushes.

The rank's process starts it, gives it the connection, and then believes itself that it has failed. So the bridge sees
an admitted rank of an older generation that does not go away.
"""

from __future__ import annotations

import gc
import json
import socket
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from pyspark import cloudpickle

from chaos.faults import ADMITTED, ZOMBIES_REPORT, executor_pid
from mizzle.blocks.bridge import BridgeClient
from mizzle.blocks.deadline import Deadline
from mizzle.blocks.frames import ERROR, PREFIX, Request, Writer
from mizzle.blocks.ids import BlockId, DType, Header, Kind
from mizzle.errors import MizzleError, PeerLost

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]

ROUNDS, BLOCKS_A_ROUND, META_BYTES = 10, 1000, 4096
"""It pushes as many blocks under old names and as many under current ones, in each round: 80 MB, if they were kept."""
IMPOSTORS = 20
WAIT_S = 60.0
_SILENT = 1 << 31
_FENCED = 4


def leave_zombie() -> None:
    """An action for a `chaos.faults.Fault`."""
    context: Any = next(one for one in gc.get_objects() if type(one).__name__ == "RankContext")
    fault: Any = next(one for one in gc.get_objects() if type(one).__name__ == "Fault" and "zombie" in one.action)
    connection: socket.socket = context._client._socket
    said = {
        "run": context.run, "generation": context.terms.generation, "rank": context.rank, "size": context.size,
        "connection": connection.fileno(), "ledger": str(fault.ledger),
        "jvm": executor_pid(),
    }  # fmt: skip
    subprocess.Popen(
        [sys.executable, "-c", SCRIPT, json.dumps(said)], pass_fds=[connection.fileno()], start_new_session=True
    )
    # This process has lost it: whatever it does to leave in peace, the bridge does not hear it.
    context._client._socket = socket.socketpair()[0]
    raise PeerLost(context.rank, "its attempt is taken for dead")


def report_of_zombie(ledger: Path) -> dict[str, Any]:
    """What it says when it has done all it could; nothing, if it has not."""
    deadline, paused = Deadline.after(WAIT_S), threading.Event()
    while not (ledger / ZOMBIES_REPORT).exists():
        if deadline.passed:
            return {}
        paused.wait(0.05)
    told: dict[str, Any] = json.loads((ledger / ZOMBIES_REPORT).read_text())
    return told


SCRIPT = "import sys, json; from chaos.zombies import Zombie; Zombie(**json.loads(sys.argv[1])).live()"


class Zombie:
    """The attempt."""

    def __init__(
        self, *, run: str, generation: int, rank: int, size: int, connection: int, ledger: str, jvm: int
    ) -> None:
        self._run, self._generation, self._rank, self._size = run, generation, rank, size
        self._socket = socket.socket(fileno=connection)
        self._ledger, self._jvm = Path(ledger), jvm
        self._number = 0
        self._received = bytearray()

    def live(self) -> None:
        """Push, claim to be the rank, and report."""
        accepted = self._await_fence()
        before = live_bytes(self._jvm), memory_bytes(self._jvm)
        old, current = Counter[int](), Counter[int]()
        for _ in range(ROUNDS):
            old += self._push(self._generation)
            current += self._push(self._generation + 1)
        self._await_ranks()
        impostors = [self._impostor() for _ in range(IMPOSTORS)]
        after = live_bytes(self._jvm), memory_bytes(self._jvm)
        told = {
            "before_the_fence": accepted, "old": old, "current": current, "impostors": impostors,
            "heap_bytes": after[0] - before[0], "memory_bytes": after[1] - before[1],
        }  # fmt: skip
        unfinished = self._ledger / "unfinished.id"
        unfinished.write_text(json.dumps(told))
        unfinished.replace(self._ledger / ZOMBIES_REPORT)

    def _await_ranks(self) -> None:
        """Until those that follow are admitted: before that anybody may come who knows the token."""
        deadline, paused = Deadline.after(WAIT_S), threading.Event()
        while not (self._ledger / ADMITTED).exists():
            deadline.check("the ranks of the next generation")
            paused.wait(0.05)

    def _await_fence(self) -> int:
        """Until the next generation has come: before that it is the rank. How many blocks it has put."""
        deadline = Deadline.after(WAIT_S)
        pushed = 0
        while not self._push(self._generation, 1)[_FENCED]:
            deadline.check("the next generation")
            pushed += 1
        return pushed

    def _push(self, generation: int, count: int = BLOCKS_A_ROUND) -> Counter[int]:
        """Put blocks; with which codes they were refused."""
        meta = bytes(META_BYTES)
        refused: Counter[int] = Counter()
        for _ in range(count):
            self._number += 1
            block = BlockId(
                self._run, generation, self._number // 60_000, self._number % 60_000, Kind.CONTRIBUTION, 0, self._rank
            )  # fmt: skip
            body = Writer().raw(Header(block, DType.RAW, META_BYTES, 0).pack()).blob(meta).number("B", 0)
            body.number("H", self._size - 1)
            for peer in range(self._size):
                if peer != self._rank:
                    body.number("H", peer)
            self._socket.settimeout(WAIT_S)
            self._socket.sendall(body.frame(Request.PUT, _SILENT | self._number))
        self._socket.sendall(Writer().frame(Request.COUNTERS, self._number))  # answered when all of them are done
        while (answer := self._next())[0] != Request.COUNTERS | 0x80:
            if answer[0] == ERROR:  # anything else answers what the rank itself has asked before
                refused[answer[1]] += 1
        return refused

    def _next(self) -> tuple[int, int]:
        """The next frame: type and first byte."""
        while len(self._received) < PREFIX.size or len(self._received) < 4 + PREFIX.unpack_from(self._received)[0]:
            part = self._socket.recv(1 << 16)
            assert part, "the bridge has closed the connection"
            self._received += part
        length, kind = PREFIX.unpack_from(self._received)[:2]
        first = self._received[PREFIX.size]
        del self._received[: 4 + length]
        return kind, first

    def _impostor(self) -> str:
        """A process that says that it is the rank, of the generation that runs now."""
        within = Deadline.after(WAIT_S)
        with BridgeClient.connect(within) as client:
            block = BlockId(self._run, self._generation + 1, 0, 0, Kind.CONTRIBUTION, 0, self._rank)
            body = Writer().raw(Header(block, DType.RAW, 0, 0).pack()).blob(b"").number("BH", 0, 0)
            try:
                client.claim(self._run, self._rank, within)
                client.join(
                    self._run, generation=self._generation + 1, group=0, size=self._size, control="", deadline=within,
                    wanted=self._rank,
                )  # fmt: skip
            except MizzleError as error:
                refused = str(error)
            else:
                return "admitted"
            try:
                client.call(Request.PUT, body, within)
            except MizzleError as error:
                return f"{refused}; {error}"
        return "has put a block"


def live_bytes(pid: int) -> int:
    """What is alive in the heap of a JVM."""
    said = subprocess.run(
        ["jcmd", str(pid), "GC.class_histogram"], capture_output=True, text=True, check=True, timeout=WAIT_S
    ).stdout
    return int(said.strip().splitlines()[-1].split()[2])


def memory_bytes(pid: int) -> int:
    """Of mizzle's memory that a process holds."""
    total = 0
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if "memfd:mizzle-" in str(fd.readlink()):
                total += fd.stat().st_size
        except FileNotFoundError:  # closed meanwhile
            continue
    return total
