"""Files of checkpoints, on a local file system or any other that pyarrow knows: folders of one level.

Local: every file is new, written, fsync'd, and its folder too; nothing follows a symbolic link. HDFS and the like: the
last file gets its name by a rename. Object stores: there are no folders, only prefixes; the last file is small enough
for one upload, which is there as a whole or not at all. Which is which is told by the file system's type.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa
from pyarrow import fs

from mizzle.errors import CheckpointError

PIECE_BYTES = 4 * 2**20
"""How much is written, read and hashed at once; each is a request to an object store."""

_OBJECT_STORES = {"s3", "gcs", "abfs"} | {
    f"py::fsspec+{name}" for name in ("s3", "s3a", "gcs", "gs", "abfs", "az", "memory")
}
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# without O_NONBLOCK, a pipe under the name of a file would make us wait for its other end
_OLD = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Source:
    """An open file.

    Attributes:
        num_bytes: its length.
        readinto: fills memory from where the last call ended, and tells how much it read; 0 at the end.
    """

    num_bytes: int
    readinto: Callable[[memoryview], int]


class Storage(Protocol):
    """Folders with files in them, below one path. Errors are OSErrors, and CheckpointErrors that name the file.

    Attributes:
        path: for people.
    """

    path: str

    def folders(self) -> Mapping[str, frozenset[str] | None]:
        """All folders with the names of their files, None where nobody can tell; nothing if there is no such path."""
        ...

    def make(self, folder: str) -> None:
        """Make a new folder."""
        ...

    def write(self, folder: str, file: str, content: memoryview, seen: Callable[[memoryview], None]) -> None:
        """Write a new file piece by piece, calling ``seen`` with each: it outlives the machine's crash afterwards."""
        ...

    def write_last(self, folder: str, file: str, content: bytes) -> None:
        """Write a new small file, whole or not at all."""
        ...

    def num_bytes(self, folder: str, file: str) -> int | None:
        """Length of a file; None if there is none."""
        ...

    def open(self, folder: str, file: str) -> AbstractContextManager[Source]:
        """Read a file."""
        ...

    def remove(self, folder: str, first: str) -> None:
        """Remove a folder with its files, ``first`` before all others, for good."""
        ...

    def free_bytes(self) -> int | None:
        """Room that is left; None where nobody can tell."""
        ...


class LocalStorage:
    """A directory of this machine, or one that all machines have mounted. See `Storage`."""

    def __init__(self, path: str) -> None:
        """Nothing is made yet."""
        self.path = path

    def folders(self) -> Mapping[str, frozenset[str] | None]:
        """See `Storage`; the files of what is no folder itself are not known."""
        try:
            names = os.listdir(self.path)  # noqa: PTH208 - names are all that is needed
        except FileNotFoundError:
            return {}
        found: dict[str, frozenset[str] | None] = {}
        for name in names:
            found[name] = None
            with suppress(OSError), self._folder(name) as at:
                found[name] = frozenset(os.listdir(at))  # noqa: PTH208 - of an open directory
        return found

    def make(self, folder: str) -> None:
        """See `Storage`."""
        root = Path(self.path)
        for missing in reversed([one for one in (root, *root.parents) if not one.exists()]):
            missing.mkdir(exist_ok=True)
            _sync(missing.parent)
        (root / folder).mkdir()
        _sync(root)

    def write(self, folder: str, file: str, content: memoryview, seen: Callable[[memoryview], None]) -> None:
        """See `Storage`."""
        with self._folder(folder) as at:
            self._write(at, file, content, seen)
            _sync_open(at)

    def write_last(self, folder: str, file: str, content: bytes) -> None:
        """See `Storage`."""
        half = f".{file}"
        with self._folder(folder) as at:
            self._write(at, half, memoryview(content), lambda _: None)
            os.rename(half, file, src_dir_fd=at, dst_dir_fd=at)
            _sync_open(at)
        _sync(Path(self.path))

    def num_bytes(self, folder: str, file: str) -> int | None:
        """See `Storage`."""
        try:
            with self._folder(folder) as at:
                return os.stat(file, dir_fd=at, follow_symlinks=False).st_size
        except FileNotFoundError:
            return None

    @contextmanager
    def open(self, folder: str, file: str) -> Iterator[Source]:
        """See `Storage`."""
        with self._folder(folder) as at:
            opened = os.open(file, _OLD, dir_fd=at)
        try:
            found = os.fstat(opened)
            if not stat.S_ISREG(found.st_mode):
                raise CheckpointError(f"{Path(self.path) / folder / file} is no regular file, so it is not read")
            yield Source(found.st_size, lambda memory: os.readv(opened, [memory]))
        finally:
            os.close(opened)

    def remove(self, folder: str, first: str) -> None:
        """See `Storage`."""
        path = Path(self.path) / folder
        if path.is_symlink():
            path.unlink()
        else:
            with self._folder(folder) as at:
                with suppress(FileNotFoundError):
                    os.unlink(first, dir_fd=at)
                    _sync_open(at)
                for name in os.listdir(at):  # noqa: PTH208 - of an open directory
                    os.unlink(name, dir_fd=at)
            path.rmdir()
        _sync(path.parent)

    def free_bytes(self) -> int | None:
        """See `Storage`."""
        try:
            return shutil.disk_usage(self.path).free
        except OSError:
            return None

    @contextmanager
    def _folder(self, folder: str) -> Iterator[int]:
        at = os.open(Path(self.path) / folder, _FOLDER)
        try:
            yield at
        finally:
            os.close(at)

    def _write(self, at: int, file: str, content: memoryview, seen: Callable[[memoryview], None]) -> None:
        opened = os.open(file, _NEW, 0o666, dir_fd=at)
        try:
            for piece in pieces(content):
                seen(piece)
                rest = piece
                while rest:
                    rest = rest[os.write(opened, rest) :]
            os.fsync(opened)
        finally:
            os.close(opened)


class ArrowStorage:
    """Any other file system of pyarrow's. See `Storage`.

    Args:
        filesystem: pickles, with its credentials if it was given any.
        path: on it.
    """

    def __init__(self, filesystem: fs.FileSystem, path: str) -> None:
        """See the class."""
        self._root = path.rstrip("/")
        self.path = f"{filesystem.type_name.rpartition('+')[2]}://{self._root}"  # for people; a URI may hold a password
        self._filesystem = filesystem
        self._has_folders = filesystem.type_name not in _OBJECT_STORES

    def folders(self) -> Mapping[str, frozenset[str] | None]:
        """See `Storage`. One listing by prefix: object stores know no folders."""
        found: dict[str, set[str]] = {}
        for info in self._filesystem.get_file_info(fs.FileSelector(self._root, allow_not_found=True, recursive=True)):
            folder, _, file = info.path.removeprefix(self._root).strip("/").partition("/")
            if file or info.type == fs.FileType.Directory:
                found.setdefault(folder, set()).add(file)
        return {folder: frozenset(files - {""}) for folder, files in found.items()}

    def make(self, folder: str) -> None:
        """See `Storage`."""
        if self._has_folders:
            self._filesystem.create_dir(self._of(folder), recursive=True)

    def write(self, folder: str, file: str, content: memoryview, seen: Callable[[memoryview], None]) -> None:
        """See `Storage`."""
        if self.num_bytes(folder, file) is not None:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), self._of(folder, file))
        try:
            with self._filesystem.open_output_stream(self._of(folder, file)) as out:
                for piece in pieces(content):
                    seen(piece)
                    out.write(pa.py_buffer(piece))
        except BaseException:
            # Closing a stream completes an upload, whatever has happened, and pyarrow cannot abort one.
            with suppress(Exception):
                self._filesystem.delete_file(self._of(folder, file))
            raise

    def write_last(self, folder: str, file: str, content: bytes) -> None:
        """See `Storage`."""
        name = f".{file}" if self._has_folders else file
        self.write(folder, name, memoryview(content), lambda _: None)
        if name != file:
            self._filesystem.move(self._of(folder, name), self._of(folder, file))

    def num_bytes(self, folder: str, file: str) -> int | None:
        """See `Storage`."""
        info = self._filesystem.get_file_info(self._of(folder, file))
        return int(info.size) if info.type == fs.FileType.File else None

    @contextmanager
    def open(self, folder: str, file: str) -> Iterator[Source]:
        """See `Storage`."""
        with self._filesystem.open_input_file(self._of(folder, file)) as source:
            yield Source(source.size(), source.readinto)

    def remove(self, folder: str, first: str) -> None:
        """See `Storage`."""
        if self.num_bytes(folder, first) is not None:
            self._filesystem.delete_file(self._of(folder, first))
        self._filesystem.delete_dir(self._of(folder))

    def free_bytes(self) -> int | None:
        """See `Storage`."""
        return None

    def _of(self, *names: str) -> str:
        return "/".join([self._root, *names])


def storage_of(path: str, filesystem: fs.FileSystem | None = None) -> Storage:
    """The storage at a path of a file system of pyarrow's, or at a URI, or at a path of this machine.

    Raises:
        CheckpointError: pyarrow knows no such file system here.
    """
    if filesystem is None and "://" in path:
        try:
            filesystem, path = fs.FileSystem.from_uri(path)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"checkpoints cannot be kept at {path}: {error}") from error
    while isinstance(filesystem, fs.SubTreeFileSystem):
        filesystem, path = filesystem.base_fs, f"{filesystem.base_path.rstrip('/')}/{path.lstrip('/')}"
    if filesystem is None or filesystem.type_name == "local":
        return LocalStorage(os.path.abspath(path))  # noqa: PTH100 - resolve() would also follow links
    return ArrowStorage(filesystem, path)


def fill(source: Source, memory: memoryview) -> None:
    """Read on until all of ``memory`` is filled.

    Raises:
        OSError: the file ends before.
    """
    while memory:
        got = source.readinto(memory)
        if not got:
            raise OSError(errno.EIO, "it ended before its length")
        memory = memory[got:]


def pieces(memory: memoryview) -> Iterator[memoryview]:
    """Views of it, one after the other, none larger than PIECE_BYTES."""
    view = memory.cast("B")
    for at in range(0, len(view), PIECE_BYTES):
        yield view[at : at + PIECE_BYTES]


def _sync(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _sync_open(opened)
    finally:
        os.close(opened)


def _sync_open(folder: int) -> None:
    """Put the names in a folder on disk, where the file system knows such a thing (some in user space do not)."""
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}:
            raise
