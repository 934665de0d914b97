"""Shared memory of a rank: anonymous files that processes of one user on one host can map.

A region is a memfd (no name that could leak, no /dev/shm that could be full), allocated before use so that a lack of
memory is an error here and never a SIGBUS later. Where there is no memfd (macOS) it is a file in the bridge's private
directory. Peers map it read-only through /proc: the MMU keeps them from writing.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from mizzle.errors import ArenaError, MemoryGone

# fcntl.F_ADD_SEALS and F_SEAL_*: the size of a region never changes, so no reader can be made to fault.
_ADD_SEALS, _SEAL_SEAL, _SEAL_SHRINK, _SEAL_GROW = 1033, 0x1, 0x2, 0x4
# Of cgroup v2, then v1: the files with a container's limit, use and statistics, and how the names in the last begin.
_CGROUPS = (
    ("memory.max", "memory.current", "memory.stat", ""),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_"),
)


@dataclass(eq=False)
class MappedRegion:
    """A region mapped into this process.

    Attributes:
        name: its name within the arena.
        path: where other processes of this user find the same memory.
        number: what the bridge calls it, -1 when no bridge holds it.
        inode: tells a region from a later one under the same path.
        buffer: all its bytes; read-only memory of a peer faults when written.
    """

    name: str
    path: str
    number: int
    inode: int
    buffer: memoryview = field(repr=False)

    @property
    def size(self) -> int:
        """Length in bytes."""
        return len(self.buffer)


class Arena(Protocol):
    """The regions of one rank, by name."""

    def region(self, name: str, num_bytes: int) -> MappedRegion:
        """The region of that name, at least so long: the one there is, or a new zeroed one."""
        ...

    def renew(self, name: str, num_bytes: int) -> MappedRegion:
        """New zeroed memory in place of the region of that name: who still has the old one changes nothing here."""
        ...

    def adopt(self, name: str, path: str, num_bytes: int) -> MappedRegion:
        """A region that another rank of this host made, to be written to as well.

        Raises:
            ArenaError: it cannot be opened.
        """
        ...


def allocate(name: str, num_bytes: int, directory: Path | None = None) -> tuple[int, Path]:
    """New zeroed memory: its descriptor, and the path under which others can open it meanwhile.

    Args:
        name: for messages and /proc listings.
        num_bytes: size in bytes, > 0.
        directory: where to make a file instead, on systems without memfd.

    Raises:
        ArenaError: not enough memory; lower the model's or batch's size, or raise the container's limit.
    """
    _refuse_hopeless(name, num_bytes)
    label = f"mizzle-{name}-{secrets.token_hex(8)}"
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create(label, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        path = Path(f"/proc/{os.getpid()}/fd/{fd}")
    elif directory is not None:
        path = directory / label
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    else:
        raise ArenaError("this system has no memfd and no directory was given for the arena")
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, num_bytes)
        else:
            os.ftruncate(fd, num_bytes)
        if hasattr(os, "memfd_create"):
            fcntl.fcntl(fd, _ADD_SEALS, _SEAL_SHRINK | _SEAL_GROW | _SEAL_SEAL)
    except OSError as error:
        os.close(fd)
        if error.errno in (errno.ENOSPC, errno.ENOMEM, errno.EFBIG, errno.EINVAL):
            raise ArenaError(f"no memory for region {name!r}: {num_bytes} bytes needed ({error.strerror})") from error
        raise
    return fd, path


def _refuse_hopeless(name: str, num_bytes: int) -> None:
    # The kernel hands out page after page and ends a process when there is no more; it never says no beforehand.
    free = [free for free in (_host_free_bytes(), _container_free_bytes()) if free is not None]
    if free and num_bytes > min(free):
        raise ArenaError(f"no memory for region {name!r}: {num_bytes} bytes needed, {min(free)} are free")


def _host_free_bytes() -> int | None:
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return None
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


def _container_free_bytes(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What the container's limit leaves, cgroup v2 or v1; None where there is no limit.

    Cached files count as used, but the kernel gives them up before it ends a process: they are as good as free.
    """
    for limit_at, used_at, stat_at, prefix in _CGROUPS:
        limit, used, stat = root / limit_at, root / used_at, root / stat_at
        if not (limit.is_file() and used.is_file() and stat.is_file()) or (text := limit.read_text().strip()) == "max":
            continue
        fields = dict(line.split() for line in stat.read_text().splitlines())
        cached = sum(int(fields.get(f"{prefix}{name}", 0)) for name in ("inactive_file", "active_file"))
        return max(0, int(text) - int(used.read_text()) + cached)
    return None


def map_descriptor(fd: int, num_bytes: int, *, writable: bool) -> memoryview:
    """Map memory shared; the view keeps the mapping alive."""
    access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
    return memoryview(mmap.mmap(fd, num_bytes, access=access))


def open_region(name: str, path: str, num_bytes: int, *, number: int = -1, writable: bool = False) -> MappedRegion:
    """Map a region that another process holds.

    Raises:
        MemoryGone: it is not there: its holder is gone, or in another container.
        ArenaError: it cannot be mapped.
    """
    fd = _open(name, path, writable=writable)
    try:
        inode = os.fstat(fd).st_ino
        return MappedRegion(name, path, number, inode, map_descriptor(fd, num_bytes, writable=writable))
    except (OSError, ValueError) as error:
        raise ArenaError(f"region {name!r} at {path} cannot be mapped: {error}") from error
    finally:
        os.close(fd)


def _open(name: str, path: str, *, writable: bool) -> int:
    try:
        return os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
    except OSError as error:
        kind = MemoryGone if error.errno in (errno.ENOENT, errno.ESRCH) else ArenaError
        raise kind(f"region {name!r} at {path} cannot be opened: {error.strerror}") from error


class LocalArena:
    """An arena that this process holds by itself: for ranks that need not outlive it."""

    def __init__(self, directory: Path | None = None) -> None:
        """Start without regions; ``directory`` as in `allocate`."""
        self._directory = directory
        self._regions: dict[str, MappedRegion] = {}
        self._descriptors: dict[str, int] = {}

    def region(self, name: str, num_bytes: int) -> MappedRegion:
        """As `Arena.region`."""
        old = self._regions.get(name)
        return old if old is not None and old.size >= num_bytes else self.renew(name, num_bytes)

    def renew(self, name: str, num_bytes: int) -> MappedRegion:
        """As `Arena.renew`."""
        fd, path = allocate(name, max(1, num_bytes), self._directory)
        region = MappedRegion(
            name, str(path), -1, os.fstat(fd).st_ino, map_descriptor(fd, max(1, num_bytes), writable=True)
        )
        self._regions[name] = region
        superseded = self._descriptors.pop(name, None)
        if superseded is not None:
            os.close(superseded)
        self._descriptors[name] = fd
        return region

    def adopt(self, name: str, path: str, num_bytes: int) -> MappedRegion:
        """As `Arena.adopt`."""
        return open_region(name, path, num_bytes, writable=True)

    def close(self) -> None:
        """Give the memory back when the last view of it is gone."""
        for fd in self._descriptors.values():
            os.close(fd)
        self._descriptors.clear()
        self._regions.clear()


Register = Callable[[str, Path, int], tuple[int, str]]
"""Gives memory into a bridge's keeping: (name, path, bytes) -> (number, lasting path)."""


class BridgeArena:
    """An arena whose memory the bridge holds: it outlives this process."""

    def __init__(self, held: list[MappedRegion], register: Register, directory: Path) -> None:
        """Start with the regions the bridge ``held`` for this rank already."""
        self._regions = {region.name: region for region in held}
        self._register = register
        self._directory = directory

    def region(self, name: str, num_bytes: int) -> MappedRegion:
        """As `Arena.region`."""
        old = self._regions.get(name)
        return old if old is not None and old.size >= num_bytes else self.renew(name, num_bytes)

    def renew(self, name: str, num_bytes: int) -> MappedRegion:
        """As `Arena.renew`."""
        size = max(1, num_bytes)
        fd, path = allocate(name, size, self._directory)
        try:
            number, lasting = self._register(name, path, size)
            region = MappedRegion(name, lasting, number, os.fstat(fd).st_ino, map_descriptor(fd, size, writable=True))
        finally:
            os.close(fd)
        self._regions[name] = region
        return region

    def adopt(self, name: str, path: str, num_bytes: int) -> MappedRegion:
        """As `Arena.adopt`: the bridge serves it and keeps it too, so it outlives the rank that made it."""
        fd = _open(name, path, writable=True)
        try:
            # By a descriptor of one's own: the rank that made it may end before the bridge has it.
            own = f"/proc/{os.getpid()}/fd/{fd}" if hasattr(os, "memfd_create") else path
            region = open_region(name, own, num_bytes, writable=True)
            old = self._regions.get(name)
            if old is not None and old.inode == region.inode:
                return old
            number, lasting = self._register(name, Path(own), num_bytes)
        finally:
            os.close(fd)
        adopted = MappedRegion(name, lasting, number, region.inode, region.buffer)
        self._regions[name] = adopted
        return adopted

    def find(self, name: str) -> MappedRegion | None:
        """The region of that name, if there is one."""
        return self._regions.get(name)
