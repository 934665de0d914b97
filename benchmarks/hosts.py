"""Hosts on one machine: network namespaces behind a switch, each with a link that is shaped both ways.

Needs root, Linux, iproute2 (``ip``, ``tc``) and util-linux (``unshare``). Nothing of the machine's own network is
touched: the switch, too, is a bridge in a namespace of its own. A process that is started on a host has the host's
name and process namespace, so that it shares memory with nobody on another host, as in a container.

All names carry the id of the process that made them. `Network` removes what it made when it is left, `remove_stale`
what a killed process left behind.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

PREFIX = "mizzle-net-"
TOOLS = {"ip": "iproute2", "tc": "iproute2", "unshare": "util-linux", "hostname": "hostname"}
"""What must be on the PATH, and the Debian package that has it."""
_NAMESPACE = re.compile(re.escape(PREFIX) + r"(\d+)-\w+")
_NAMESPACES = Path("/run/netns")
_NAME_FILES = Path("/etc/netns")
"""``ip netns exec`` puts the files of a folder of the namespace's name there in the place of those in /etc."""
_SUBNET = "10.99.0."
_LINK = "eth0"
_CLONE_NEWNET = 0x40000000
_QUEUE_BYTES = 10**6
"""Of a link, each way: what a small switch keeps for a port. What comes when it is full is lost, as there."""
_MIN_BURST_BYTES = 32 * 1024
"""A token bucket holds 1 ms of its rate, so that it is steady; less than a few packets would not be used up."""
_PROBE_S = 0.7
_PROBE_SKIPPED = 0.15
"""Part of a transfer that is not timed: TCP's slow start and what lies in the token bucket."""
_PROBES = 5
_PROBE_TIMEOUT_S = 60.0
_END_S = 20.0

_T = TypeVar("_T")


def missing() -> str | None:
    """Why there can be no hosts here, and what to do about it; None if there can."""
    if os.name != "posix" or os.uname().sysname != "Linux":
        return "network namespaces are a thing of Linux"
    if os.geteuid() != 0:
        return "network namespaces need root: run it as root, or in a virtual machine of your own"
    absent = sorted({package for tool, package in TOOLS.items() if shutil.which(tool) is None})
    if absent:
        return f"tools are missing: apt-get install {' '.join(absent)}"
    tried = f"{PREFIX}{os.getpid()}-tried"
    try:
        _run("ip", "netns", "add", tried)
        _run("tc", "-n", tried, "qdisc", "add", "dev", "lo", "root", *_bucket(1.0))
    except OSError as error:
        return f"the kernel refuses a network namespace with a shaped link: {error}"
    finally:
        subprocess.run(["ip", "netns", "del", tried], capture_output=True, check=False)
    return None


@dataclass(frozen=True, slots=True)
class Host:
    """A network namespace that plays a machine.

    Attributes:
        name: as the host knows itself.
        namespace: its name for ``ip netns``.
        address: in IPv4.
        port: the other end of its link, at the switch.
    """

    name: str
    namespace: str
    address: str
    port: str

    def command(self, command: Sequence[str], *, own_processes: bool = True) -> list[str]:
        """What runs a command there.

        Args:
            command: with its arguments.
            own_processes: whether it and its children are alone in a process namespace, and all end when it ends;
                else it sees the processes of the whole machine.
        """
        processes = ["--pid", "--fork", "--kill-child", "--mount-proc"] if own_processes else []
        renamed = ["sh", "-c", 'hostname "$0" && exec "$@"', self.name, *command]
        return ["ip", "netns", "exec", self.namespace, "unshare", "--uts", *processes, "--", *renamed]


class Network:
    """A driver host and N others, each linked to one switch; exists while the ``with`` block lasts.

    Attributes:
        driver: the host of the driver.
        hosts: the others.
        switch: the namespace of the switch.
        directory: for files; is removed too.
    """

    def __init__(self, num_hosts: int) -> None:
        """Name everything, make nothing."""
        self._prefix = f"{PREFIX}{os.getpid()}-"
        self.switch = f"{self._prefix}switch"
        self.driver, *self.hosts = (self._host(number) for number in range(num_hosts + 1))
        self._processes: list[subprocess.Popen[bytes]] = []

    def _host(self, number: int) -> Host:
        name = f"host{number - 1}" if number else "driver"
        return Host(name, f"{self._prefix}{name}", f"{_SUBNET}{number + 1}", f"port{number}")

    @property
    def all(self) -> list[Host]:
        """The driver's host first."""
        return [self.driver, *self.hosts]

    def __enter__(self) -> Self:
        """Make hosts, switch and links, not shaped yet."""
        self.directory = Path(tempfile.mkdtemp(prefix=self._prefix))
        try:
            self._make()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """End every process on the hosts, and remove all."""
        self._remove()

    def start(
        self, host: Host, command: Sequence[str], *, log: Path, env: Mapping[str, str], own_processes: bool = True,
        is_heard: bool = False,
    ) -> subprocess.Popen[bytes]:  # fmt: skip
        """Start a process on a host; it ends with the network at the latest.

        A signal from the terminal does not reach it: who made the network ends it.

        Args:
            host: where.
            command: with its arguments.
            log: takes what it writes.
            env: its environment.
            own_processes: as in `Host.command`.
            is_heard: whether its standard output goes to ours instead of the log.
        """
        with log.open("ab") as stream:
            process = subprocess.Popen(
                host.command(command, own_processes=own_processes), env=dict(env), start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=None if is_heard else stream, stderr=stream,
            )  # fmt: skip
        self._processes.append(process)
        return process

    def shape(self, rate_mbit: float) -> None:
        """Give every link this rate in both directions, as bits of whole Ethernet frames."""
        for host in self.all:
            for namespace, device in ((self.switch, host.port), (host.namespace, _LINK)):
                _run("tc", "-n", namespace, "qdisc", "replace", "dev", device, "root", *_bucket(rate_mbit))

    def goodput_mbit(self) -> float:
        """What one TCP connection carries from a host to another, payload only, in Mbit/s.

        The best of some pairs: a machine that is busy with something else can only make it look less, and so make
        everything that is compared with it look better.
        """
        rate = max(1.0, self._rate_mbit())
        num_bytes = int(rate * 1e6 / 8 * _PROBE_S)
        ring = [*self.hosts, self.hosts[0] if len(self.hosts) > 1 else self.driver]
        pairs = [(ring[at % (len(ring) - 1)], ring[at % (len(ring) - 1) + 1]) for at in range(_PROBES)]
        return max(_goodput_mbit(sender, receiver, num_bytes) for sender, receiver in pairs)

    def _rate_mbit(self) -> float:
        """As the kernel has it, of the first link."""
        said = _run("tc", "-n", self.switch, "-j", "qdisc", "show", "dev", self.driver.port)
        rates = [qdisc["options"]["rate"] for qdisc in json.loads(said) if qdisc["kind"] == "tbf"]
        return float(rates[0]) * 8 / 1e6

    def _make(self) -> None:
        _run("ip", "netns", "add", self.switch)
        _run("ip", "-n", self.switch, "link", "add", "switch", "type", "bridge")
        _run("ip", "-n", self.switch, "link", "set", "switch", "up")
        names = "127.0.0.1 localhost\n" + "".join(f"{host.address} {host.name}\n" for host in self.all)
        for host in self.all:
            _run("ip", "netns", "add", host.namespace)
            files = _NAME_FILES / host.namespace
            files.mkdir(parents=True)
            (files / "hosts").write_text(names)
            (files / "resolv.conf").write_text("")  # nobody answers here: a look-up ends at once
            _run("ip", "-n", self.switch, "link", "add", host.port, "type", "veth",
                 "peer", "name", _LINK, "netns", host.namespace)  # fmt: skip
            _run("ip", "-n", self.switch, "link", "set", host.port, "master", "switch", "up")
            _run("ip", "-n", host.namespace, "link", "set", "lo", "up")
            _run("ip", "-n", host.namespace, "address", "add", f"{host.address}/24", "dev", _LINK)
            _run("ip", "-n", host.namespace, "link", "set", _LINK, "up")

    def _remove(self) -> None:
        with _undisturbed():
            _remove_prefixed(self._prefix)
            for process in self._processes:
                process.wait(_END_S)


def remove_stale() -> list[str]:
    """Remove what processes that have ended left behind; says what it was."""
    made = {name for name in _made() if (found := _NAMESPACE.fullmatch(name)) and not _runs(int(found[1]))}
    made |= {path.name for path in _directories("") if not _runs(int(path.name.removeprefix(PREFIX).split("-")[0]))}
    for prefix in {"-".join(name.split("-")[:3]) + "-" for name in made}:
        _remove_prefixed(prefix)
    return sorted(made)


def in_namespace(namespace: str, make: Callable[[], _T]) -> _T:
    """What ``make`` returns in a network namespace, sockets above all: these stay there. Only its thread goes in."""

    def enter() -> _T:
        with (_NAMESPACES / namespace).open("rb") as door:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(door.fileno(), _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {namespace}")
        return make()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(enter).result()


def _bucket(rate_mbit: float) -> tuple[str, ...]:
    """The token bucket of a link, for ``tc``."""
    burst = max(_MIN_BURST_BYTES, round(rate_mbit * 1e6 / 8 / 1000))
    return ("tbf", "rate", f"{rate_mbit:g}mbit", "burst", str(burst), "limit", str(_QUEUE_BYTES))


def _goodput_mbit(sender: Host, receiver: Host, num_bytes: int) -> float:
    listener = in_namespace(receiver.namespace, lambda: socket.create_server((receiver.address, 0)))
    with listener:
        listener.settimeout(_PROBE_TIMEOUT_S)
        there = listener.getsockname()[:2]
        out = in_namespace(sender.namespace, lambda: socket.create_connection(there, _PROBE_TIMEOUT_S))
        incoming, _ = listener.accept()
    with ThreadPoolExecutor(1) as thread, incoming, out:
        sent = thread.submit(out.sendall, bytes(num_bytes))
        received = _received(incoming, num_bytes)
        sent.result()
    return received


def _received(incoming: socket.socket, num_bytes: int) -> float:
    """Mbit/s of what comes behind the first part of so many bytes."""
    buffer, total, begun, skipped = bytearray(1 << 18), 0, 0.0, 0
    incoming.settimeout(_PROBE_TIMEOUT_S)
    while total < num_bytes:
        count = incoming.recv_into(buffer)
        if count == 0:
            raise ConnectionError(f"a transfer between two hosts broke off after {total} of {num_bytes} bytes")
        total += count
        if not skipped and total >= _PROBE_SKIPPED * num_bytes:
            begun, skipped = time.perf_counter(), total
    return (total - skipped) * 8 / 1e6 / (time.perf_counter() - begun)


def _made() -> list[str]:
    """Namespaces of any process."""
    listed = _run("ip", "-j", "netns", "list") or "[]"
    return [item["name"] for item in json.loads(listed) if item["name"].startswith(PREFIX)]


def _directories(prefix: str) -> list[Path]:
    return [path for path in Path(tempfile.gettempdir()).glob(f"{prefix or PREFIX}*") if path.is_dir()]


def _runs(pid: int) -> bool:
    """Whether a process runs that may own the hosts of this id."""
    try:
        return b"network" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _remove_prefixed(prefix: str) -> None:
    """End the processes in these namespaces, then remove them; with its namespace goes a link."""
    names = [name for name in _made() if name.startswith(prefix)]
    for name in names:
        _end([int(pid) for pid in _run("ip", "netns", "pids", name).split()])
    for name in names:
        _run("ip", "netns", "del", name)
    for files in _NAME_FILES.glob(f"{prefix}*"):
        shutil.rmtree(files)
    if names:
        with suppress(OSError):  # others have files there
            _NAME_FILES.rmdir()
    for directory in _directories(prefix):
        shutil.rmtree(directory)


def _end(pids: Sequence[int]) -> None:
    """Kill these processes, and wait until they are gone."""
    for pid in pids:
        try:
            watched = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(watched, signal.SIGKILL)
            if not select.select([watched], [], [], _END_S)[0]:
                raise TimeoutError(f"process {pid} does not end: look what it waits for (/proc/{pid}/stack)")
        finally:
            os.close(watched)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Whoever is impatient while things are removed has to wait: half removed is worse."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"{' '.join(command)} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
