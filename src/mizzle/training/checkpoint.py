"""Checkpoints on storage: whole or absent at every moment, read as if a stranger had written them.

Each save goes to a folder of its own, with a nonce in its name, so that nobody overwrites anything: first the parts, by
the ranks, then the manifest, by the driver. A folder without a manifest is no checkpoint, and there is no file that
says which one is the latest: that is the one with most iterations among those whose content is what their manifest
says. Nothing is unpickled. `docs/checkpoints.md` has the format, and what survives what.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import secrets
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace

import pyarrow as pa
import pyarrow.fs

from mizzle.errors import CheckpointError, ConfigError
from mizzle.training.json_limits import MAX_BYTES
from mizzle.training.manifest import (
    EVALUATIONS,
    FROZEN,
    MANIFEST,
    WEIGHTS,
    Listed,
    Manifest,
    Part,
    iteration_of,
    part_file,
)  # fmt: skip
from mizzle.training.recut import OWNED, check_header
from mizzle.training.state import Header, header_bytes, read_header
from mizzle.training.storage import PIECE_BYTES, Source, Storage, fill, pieces, storage_of

logger = logging.getLogger(__name__)

_READERS = 4
_PROBE = "probe"
_FOLDER_BYTES = 4096  # of a new one, on most file systems
_PEEK = 8  # bytes that tell how long the header of a state is


class CheckpointStore:
    """The checkpoints of one run, at one path. Pickles, so that executors write and read through copies of it.

    One driver at a time saves there; many may read.

    Args:
        path: a local path that all machines see, or a URI (s3://, hdfs://, gs://...); with ``filesystem`` a path on it.
        filesystem: of pyarrow's, for what a URI cannot say.

    Raises:
        CheckpointError: pyarrow knows no file system for the URI.
    """

    def __init__(self, path: str, filesystem: pyarrow.fs.FileSystem | None = None) -> None:
        """See the class."""
        self._storage: Storage = storage_of(path, filesystem)

    @property
    def path(self) -> str:
        """Where they lie."""
        return self._storage.path

    def begin(self, iteration: int) -> str:
        """Make room for a new checkpoint.

        Args:
            iteration: iterations done.

        Returns:
            Its name, which no other will ever have.

        Raises:
            CheckpointError: nothing can be written there.
        """
        name = f"ck-{iteration:012d}-{secrets.token_hex(8)}"
        with self._explained(name, needed=_FOLDER_BYTES):
            self._storage.make(name)
        return name

    def probe(self) -> None:
        """Make sure that something can be written there; nothing of it is left.

        Raises:
            CheckpointError: says what is in the way.
        """
        name = self.begin(0)
        self._write(name, _PROBE, memoryview(b"{}"), ())
        with self._explained(name):
            self._storage.remove(name, _PROBE)

    def write_part(
        self, name: str, rank: int, content: bytes | bytearray | memoryview, owned: Sequence[tuple[int, int]] = (), *,
        watch: Callable[[], None] = lambda: None,
    ) -> Part:  # fmt: skip
        """Write a rank's state, once; when it returns, a crash of the machine does not harm it.

        Args:
            name: from `begin`.
            rank: that left the state.
            content: the state, as `PackedState` wrote it.
            owned: the ranges [start, stop) of the flat vector that it holds.
            watch: called again and again while it writes; may raise, to break it off.

        Returns:
            What the manifest needs.

        Raises:
            CheckpointError: it could not be written; nothing else of the store was touched.
        """
        return self._write(name, part_file(rank), memoryview(content), owned, watch)

    def write_shared(self, name: str, file: str, content: bytes | bytearray | memoryview) -> Part:
        """Write what no rank has: ``FROZEN`` or ``EVALUATIONS``, packed as states are. See `write_part`."""
        return self._write(name, file, memoryview(content), ())

    def written_part(self, name: str, rank: int, num_bytes: int, sha256: str) -> Part:
        """What the manifest needs of a part that a rank has written; its ranges are read from its header.

        Raises:
            CheckpointError: it is not there, not of that length, or no state.
        """
        part = Part(part_file(rank), num_bytes, sha256)
        with self._opened(name, part) as (source, head):
            raw = memoryview(bytearray(header_bytes(head, num_bytes)))
            raw[:_PEEK] = head
            fill(source, raw[_PEEK:])
        try:
            owned = read_header(raw, num_bytes).scalars[OWNED]
            return replace(part, owned=tuple((int(start), int(stop)) for start, stop in owned if start < stop))
        except (ConfigError, KeyError, TypeError, ValueError) as error:
            raise self._error(name, part.file, f"is no state of a rank: {error}") from error

    def commit(self, manifest: Manifest) -> None:
        """Write the manifest: from then on the checkpoint is there. On the driver, when all files are written.

        Raises:
            CheckpointError: a file is not there, or not of its size; or the manifest cannot be written.
        """
        name, raw = manifest.name, manifest.to_json()
        for part in manifest.files:
            with self._explained(name, part.file):
                num_bytes = self._storage.num_bytes(name, part.file)
            if num_bytes != part.num_bytes:
                raise self._error(
                    name, part.file, f"was written with {part.num_bytes} bytes, but the driver sees "
                    f"{'no such file' if num_bytes is None else num_bytes}: keep checkpoints where all machines see "
                    "the same files",
                )  # fmt: skip
        with self._explained(name, MANIFEST, needed=len(raw)):
            if self._storage.num_bytes(name, MANIFEST) is not None:
                raise FileExistsError(errno.EEXIST, "it is committed already")
            self._storage.write_last(name, MANIFEST, raw)

    def listed(self) -> list[Listed]:
        """All checkpoints, most iterations first, not verified, and what broken saves have left.

        Raises:
            CheckpointError: the path cannot be read.
        """
        with self._explained():
            found = self._storage.folders()
        return [
            # what is no folder cannot be a leftover of ours: reading it will say what is wrong
            Listed(name, iteration, files is None or MANIFEST in files)
            for name, files in sorted(found.items(), reverse=True)
            if (iteration := iteration_of(name)) is not None
        ]

    def read(self, name: str) -> Manifest:
        """A checkpoint's manifest, checked by itself; its files are not looked at.

        Raises:
            CheckpointError: there is no such checkpoint, or its manifest is damaged.
        """
        if iteration_of(name) is None:
            raise CheckpointError(f"{name!r} is no name of a checkpoint: `mizzle ckpt ls {self.path}` lists them")
        with self._explained(name, MANIFEST), self._storage.open(name, MANIFEST) as source:
            raw = bytearray(min(source.num_bytes, MAX_BYTES + 1))
            fill(source, memoryview(raw))
        try:
            manifest = Manifest.of_json(bytes(raw))
        except CheckpointError as error:
            raise self._error(name, MANIFEST, str(error).removeprefix(f"{MANIFEST} ")) from error
        if manifest.name != name:
            raise self._error(name, MANIFEST, f"is that of {manifest.name}: it was moved here")
        return manifest

    def read_part(self, name: str, part: Part) -> bytearray:
        """A file's content, after its length and SHA-256 were compared with what the manifest says.

        Raises:
            CheckpointError: it is damaged; or there is not enough memory.
        """
        with self._opened(name, part) as (source, head):
            try:
                memory = bytearray(part.num_bytes)
            except MemoryError as error:
                raise self._error(name, part.file, f"needs {part.num_bytes} bytes of memory") from error
            view = memoryview(memory)
            view[: len(head)] = head
            digest = hashlib.sha256(head)
            for piece in pieces(view[len(head) :]):
                fill(source, piece)
                digest.update(piece)
            self._compare(name, part, digest.hexdigest())
        return memory

    def check_part(self, name: str, part: Part, *, watch: Callable[[], None] = lambda: None) -> Header:
        """Read a file again, without keeping it, and parse what can be parsed of it.

        Args:
            name: of the checkpoint.
            part: of its manifest.
            watch: called again and again while it reads; may raise, to break it off.

        Returns:
            The header of the state in it.

        Raises:
            CheckpointError: it is damaged, or no state, or one of other ranges than the manifest says.
        """
        with self._opened(name, part) as (source, head):
            digest = hashlib.sha256()
            header = memoryview(bytearray(header_bytes(head, part.num_bytes)))
            header[:_PEEK] = head
            with self._explained(name, part.file):
                fill(source, header[_PEEK:])
                digest.update(header)
                spare = memoryview(bytearray(min(PIECE_BYTES, part.num_bytes - len(header))))
                rest = part.num_bytes - len(header)
                while rest:
                    watch()
                    piece = spare[: min(rest, len(spare))]
                    fill(source, piece)
                    digest.update(piece)
                    rest -= len(piece)
            self._compare(name, part, digest.hexdigest())
        try:
            found = read_header(header, part.num_bytes)
            if part.file not in {FROZEN, EVALUATIONS}:
                check_header(found, part.owned)
        except (ConfigError, KeyError, TypeError, ValueError) as error:
            raise self._error(name, part.file, f"is no state of a rank: {error}") from error
        return found

    def verify(self, name: str) -> Manifest:
        """Read all of a checkpoint and compare it with its manifest.

        Raises:
            CheckpointError: names the file that is damaged and what is wrong with it.
        """
        manifest = self.read(name)
        with ThreadPoolExecutor(_READERS) as pool:
            headers = list(pool.map(lambda part: self.check_part(name, part), manifest.files))
        states = headers[: len(manifest.parts)]
        for part, header in zip(manifest.parts, states, strict=True):
            alike = header.scalars["signature"] == states[0].scalars["signature"]
            if not alike or header.tensors.keys() != states[0].tensors.keys():
                raise self._error(name, part.file, "is a state of another model than the other parts")
        known = {WEIGHTS}.union(*(header.tensors for header in headers))
        lost = [one.name for one in manifest.parameters if one.tensor not in known]
        if lost:
            raise self._error(name, MANIFEST, f"names tensors that are in no file: {', '.join(map(repr, lost[:5]))}")
        return manifest

    def newest_valid(self) -> tuple[str, Manifest] | None:
        """The checkpoint with most iterations that `verify` accepts, and None where there is none.

        What is damaged is passed over, with a warning in the log that names the file.

        Raises:
            CheckpointError: the path cannot be read.
        """
        for one in self.listed():
            if not one.committed:
                continue
            try:
                return one.name, self.verify(one.name)
            except CheckpointError as error:
                logger.warning("checkpoint=%s passed over: %s", one.name, error)
        return None

    def retain(self, keep: int, protect: Collection[str] = (), checked: Collection[str] = ()) -> None:
        """Remove the checkpoints that are older than the newest valid one and ``keep - 1`` more.

        Nothing is removed if none is valid; damaged ones of more iterations than the newest valid one stay, for
        somebody to look at. What is not committed is left alone: it may be under way (`sweep`).

        Args:
            keep: how many are kept, at least 1.
            protect: names that are not removed.
            checked: names whose files were all read again with `check_part` since they were committed: they are
                taken for valid.

        Raises:
            CheckpointError: the path cannot be read, or something could not be removed: `sweep` tries again.
            ConfigError: ``keep`` is less than 1.
        """
        if keep < 1:
            raise ConfigError(f"keep={keep}: at least one checkpoint is kept")
        found = [one for one in self.listed() if one.committed]
        kept: list[str] = []
        old: list[str] = []
        for one in found:
            if len(kept) >= keep:
                old.append(one.name)
            elif kept or one.name in checked or self._is_valid(one.name):
                kept.append(one.name)
        if kept:
            self._remove([name for name in old if name not in protect])

    def sweep(self, protect: Collection[str] = ()) -> None:
        """Remove what broken saves have left, but for ``protect``. Not while a save is under way.

        Raises:
            CheckpointError: the path cannot be read, or something could not be removed: the next call tries again.
        """
        self._remove([one.name for one in self.listed() if not one.committed and one.name not in protect])

    def _remove(self, names: Collection[str]) -> None:
        failed: list[CheckpointError] = []
        for name in names:
            try:
                with self._explained(name), suppress(FileNotFoundError):  # somebody else was quicker
                    self._storage.remove(name, MANIFEST)
            except CheckpointError as error:
                failed.append(error)
        if failed:
            raise failed[0]

    def _is_valid(self, name: str) -> bool:
        try:
            self.verify(name)
        except CheckpointError as error:
            logger.warning("checkpoint=%s is not valid and stays where it is: %s", name, error)
            return False
        return True

    def _write(
        self, name: str, file: str, content: memoryview, owned: Sequence[tuple[int, int]],
        watch: Callable[[], None] = lambda: None,
    ) -> Part:  # fmt: skip
        digest = hashlib.sha256()

        def seen(piece: memoryview) -> None:
            watch()
            digest.update(piece)

        with self._explained(name, file, needed=content.nbytes):
            self._storage.write(name, file, content, seen)
        ranges = tuple((int(start), int(stop)) for start, stop in owned if start < stop)
        return Part(file, content.nbytes, digest.hexdigest(), ranges)

    @contextmanager
    def _opened(self, name: str, part: Part) -> Iterator[tuple[Source, bytes]]:
        """A file of the length that the manifest says, and its first bytes, which say that it may be a state."""
        with self._explained(name, part.file), self._storage.open(name, part.file) as source:
            if source.num_bytes != part.num_bytes:
                raise self._error(
                    name, part.file, f"has {source.num_bytes} bytes, not {part.num_bytes} as its manifest says"
                )
            head = bytearray(min(_PEEK, part.num_bytes))
            fill(source, memoryview(head))
            try:
                header_bytes(head, part.num_bytes)
            except ConfigError as error:
                raise self._error(name, part.file, str(error)) from error
            yield source, bytes(head)

    def _compare(self, name: str, part: Part, digest: str) -> None:
        if digest != part.sha256:
            raise self._error(
                name, part.file, f"has the SHA-256 {digest[:12]}..., not {part.sha256[:12]}... as its manifest says"
            )

    @contextmanager
    def _explained(self, name: str = "", file: str = "", needed: int | None = None) -> Iterator[None]:
        """Turn errors of the file system into ours; ``needed`` bytes were to be written."""
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            reason = getattr(error, "strerror", None) or str(error)
            if needed is not None and getattr(error, "errno", None) in {errno.ENOSPC, errno.EDQUOT}:
                free = self._storage.free_bytes()
                room = "how many are free is not known" if free is None else f"{free} are free"
                reason = f"no room for {needed} bytes, {room}: make room, keep fewer checkpoints or choose another path"
            raise self._error(name, file, reason) from error

    def _error(self, name: str, file: str, what: str) -> CheckpointError:
        # What a file says may be in it, and goes to terminals.
        said = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in what)
        return CheckpointError(f"{'/'.join(filter(None, [self.path, name, file]))}: {said}")
