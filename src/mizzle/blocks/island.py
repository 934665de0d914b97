"""Ranks that see each other's memory: what they can do beside telling each other of blocks.

The ranks of a group fall into islands: those of one island read each other's regions and share some; between islands
blocks travel. Both ends know all islands alike, so everybody knows who speaks for whom.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from mizzle.blocks.deadline import Deadline
from mizzle.blocks.region import Region
from mizzle.errors import ConfigError


class Board(Protocol):
    """Where ranks that all see each other's memory say a small thing to everybody at once, in turns.

    What a `put` to all and a `fetch` from all would do, at a price that hardly grows with the number of ranks. Every
    rank posts once a turn, then reads; no rank is more than one turn ahead of another.
    """

    def post(self, iteration: int, op: int, message: bytes) -> None:
        """Say ``message`` to all under the name (iteration, op), the same at every rank. Waits for nobody.

        Raises:
            ConfigError: the message is longer than `MAX_META_BYTES`, or the turn before was not read.
            BlockExists: this name was posted before.
            Fenced: the generation was superseded.
        """
        ...

    def read(self, deadline: Deadline) -> dict[int, memoryview]:
        """What every other rank posted in this turn; who had not by the deadline is left out.

        The bytes are the peers' own memory, to be read only until this rank posts again.

        Raises:
            PeerLost: one that is missing, or another one for long enough, is gone.
            CorruptBlock: a peer posted under another name.
            Fenced: the generation was superseded.
        """
        ...


class Island(Protocol):
    """A rank's view of the ranks whose memory it sees. Used by one thread at a time, but for `tell`.

    Attributes:
        ranks: of the island, ascending, the own one included.
        board: what the ranks of the island tell each other by.
    """

    ranks: tuple[int, ...]
    board: Board

    def place(self, region: Region) -> bytes:
        """Where the other ranks of the island find this region: a few bytes to tell them."""
        ...

    def view(self, rank: int, place: bytes) -> memoryview:
        """A peer's region, to be read only. The same place is mapped once.

        Raises:
            BlockNotFound: it was replaced.
            ArenaError: it cannot be opened.
        """
        ...

    def shared(self, name: str, num_bytes: int, deadline: Deadline) -> Region:
        """Memory that all ranks of the island write to and read: the same for the same name, zeroed when it is new.

        The lowest rank makes it, the others wait for it. Every generation has its own: a rank that was left behind
        writes to what nobody reads. Who writes where and when is the callers' to agree on.

        Raises:
            CollectiveTimeout: the lowest rank did not make it in time.
            ArenaError: no memory.
        """
        ...

    def tell(self, count: int) -> None:
        """Let the others of the island know a number, higher than all before. Any thread of the rank may call."""
        ...

    def await_told(self, rank: int, count: int, deadline: Deadline) -> None:
        """Wait until a rank has told this number or a higher one.

        Raises:
            CollectiveTimeout: it did not by the deadline.
            PeerLost: it is gone.
        """
        ...


class Silence:
    """The `Board` of a rank that is alone."""

    def post(self, iteration: int, op: int, message: bytes) -> None:
        """Nobody is there to read it."""

    def read(self, deadline: Deadline) -> dict[int, memoryview]:  # noqa: ARG002 - nobody is waited for
        """Nothing."""
        return {}


class Alone:
    """The `Island` of a rank that sees nobody's memory but its own.

    Args:
        rank: which.
        renew: makes a region of that name and length anew.
    """

    def __init__(self, rank: int, renew: Callable[[str, int], Region]) -> None:
        """See the class."""
        self.ranks: tuple[int, ...] = (rank,)
        self.board: Board = Silence()
        self._renew = renew
        self._shared: dict[str, Region] = {}

    def place(self, region: Region) -> bytes:  # noqa: ARG002 - nobody looks
        """Nothing to tell."""
        return b""

    def view(self, rank: int, place: bytes) -> memoryview:  # noqa: ARG002 - there is none
        """There is no peer.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"rank {self.ranks[0]} does not see the memory of rank {rank}")

    def shared(self, name: str, num_bytes: int, deadline: Deadline) -> Region:  # noqa: ARG002 - nobody is waited for
        """A region of its own."""
        region = self._shared.get(name)
        if region is None or len(region.buffer) < num_bytes:
            region = self._shared[name] = self._renew(f"shared.{name}", num_bytes)
        return region

    def tell(self, count: int) -> None:
        """Nobody listens."""

    def await_told(self, rank: int, count: int, deadline: Deadline) -> None:
        """Nobody is waited for."""


def islands_of(neighbours: Sequence[object]) -> tuple[tuple[int, ...], ...]:
    """The islands of ranks, ascending by their lowest rank: ranks with equal entries see each other's memory."""
    found: dict[object, list[int]] = {}
    for rank, where in enumerate(neighbours):
        found.setdefault(where, []).append(rank)
    return tuple(map(tuple, found.values()))


def island_with(rank: int, islands: Collection[tuple[int, ...]]) -> tuple[int, ...]:
    """The island of a rank."""
    return next(island for island in islands if rank in island)
