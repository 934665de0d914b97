"""Every exception of mizzle, on one page.

Two families, after gloo's ``docs/errors.md``: *recoverable* faults of the cluster (`Recoverable`: the group can be
run again) and mistakes of the caller (everything else: the message names the thing and the remedy).
Foreign errors are mapped once, at the edge, with ``raise ... from``.
"""

from __future__ import annotations

from collections.abc import Sequence


class MizzleError(Exception):
    """Base of everything mizzle raises on purpose."""


class ConfigError(MizzleError):
    """A setting, an argument or the session is wrong; the message names it and what to write instead."""


class DataError(MizzleError):
    """The DataFrame cannot be trained on; the message names the column and, where there is one, the row."""


class ModelError(MizzleError):
    """The model, loss or optimizer cannot be trained; the message names the parameter or attribute."""


class NotFiniteError(MizzleError):
    """A loss or gradient is NaN or infinite, by the policy ``raise``; names iteration, rank and what is not finite."""

    def __init__(self, message: str, *, rank: int = -1) -> None:
        """Say what is not finite; ``rank`` is the one whose shard it came from, -1 where it is nobody's."""
        super().__init__(message)
        self.rank = rank


class Recoverable(MizzleError):
    """A fault of the cluster, not of the program: the group may be run again from its boundary."""


class PeerLost(Recoverable):
    """A peer's worker, executor or connection is gone. Nothing was summed: call ``fit``, or the operation, again."""

    def __init__(self, rank: int, why: str) -> None:
        """Name the lost rank and what was seen of its end."""
        super().__init__(f"rank {rank} is lost: {why}")
        self.rank = rank
        self.why = why

    def __reduce__(self) -> tuple[type[PeerLost], tuple[int, str], dict[str, object]]:
        """Pickle by what it was made from, not by its message; notes stay with it."""
        return type(self), (self.rank, self.why), vars(self)


class PeerUnreachable(PeerLost):
    """No connection to a peer comes about, though its executor may well live: look at the network between the two."""


class BridgeLost(Recoverable):
    """The bridge of this executor is gone, or its connection broke: call ``fit``, or the operation, again."""


class CollectiveTimeout(Recoverable):
    """A wait passed its deadline. Look at the named peer first; raise ``timeout`` only if it is merely slow."""

    def __init__(self, message: str, *, missing: Sequence[int] = (), heard: Sequence[int] = ()) -> None:
        """Say what did not come, and, as far as that is known, the ranks from which it did not, and did."""
        super().__init__(message)
        self.missing, self.heard = tuple(missing), tuple(heard)


class BlockNotFound(Recoverable):
    """A block that its owner announced is not there any more (dropped, fenced, or memory was lost)."""


class CorruptBlock(Recoverable):
    """A block's header or payload does not match its checksum or what was asked for. It was not used."""


class Fenced(Recoverable):
    """This generation was superseded: a newer one has started. The caller must stop, its results are not wanted."""


class Misplaced(Recoverable):
    """A rank was started where neither its state nor its data are. Nothing was done; the group is started again."""


class StateLost(MizzleError):
    """A part of the run's last boundary is in no memory any more. Start the run again, best with checkpoints."""


class CheckpointError(MizzleError):
    """A checkpoint cannot be written, or one was refused as damaged or forged: names the file, why, and the remedy."""


class BlockExists(MizzleError):
    """A block of this name was put before: blocks are immutable and names are never used twice."""


class CollectiveMismatch(MizzleError):
    """Ranks called different collectives, or with different shape, dtype or order. Refused before any sum."""

    def __init__(self, message: str, *, meta: bytes = b"") -> None:
        """Say what differs; a store that refuses a payload as too long adds the block's meta, which names the call."""
        super().__init__(message)
        self.meta = meta


class ArenaError(MizzleError):
    """Shared memory could not be had; the message says how much was needed and what limits it."""


class DiskFull(MizzleError):
    """A local directory is full; the message says which, how much was needed and what is free."""


class MemoryGone(Recoverable, ArenaError):
    """Shared memory of a peer is not there any more: its executor has ended. The group may be run again."""


class BridgeError(MizzleError):
    """The bridge refused a request or spoke another version; the message says which."""


class BridgeMissing(ConfigError):
    """No bridge runs in this executor: the Spark session was started without mizzle's settings."""


class TaskFailed(MizzleError):
    """User code failed on a rank; the message carries rank, host and the original traceback."""
