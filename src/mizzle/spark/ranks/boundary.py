"""States at a boundary: each rank's in its own arena, and a copy of it in the arena of a buddy elsewhere.

An arena belongs to its executor's bridge and outlives the process that wrote to it; the arena's label says what in it
is valid. Everything is kept twice, in turn, so that a group that fails leaves the states of its boundary alone. A state
counts once the driver has heard of all ranks that they keep theirs, and the copies given to them: the two phases of a
commit, where the ranks' outcomes are the votes.

Behind each state lies its CRC32C, and goes where the state goes. A copy is checked when it is taken, and whatever lies
in an arena when it is to be used: memory that has changed since is as good as lost, and the other copy is taken.
"""

from __future__ import annotations

import json
import logging
import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count

import crc32c

from mizzle.blocks.region import Span
from mizzle.collectives.handover import Handover
from mizzle.errors import CorruptBlock, StateLost
from mizzle.scheduling.buddies import Place, buddies
from mizzle.spark.ranks.orders import Committed
from mizzle.spark.ranks.worker import RankContext

_log = logging.getLogger(__name__)
_PAGE = 4096
_OWN = "state"
"""Of a rank's own; names of copies begin otherwise."""
_SEAL = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class State:
    """A rank's state that is yet to be written.

    Attributes:
        num_bytes: at least as many as ``write`` needs.
        write: writes into memory of that size, and returns the length in bytes.
    """

    num_bytes: int
    write: Callable[[memoryview], int]


class Keeper:
    """What one rank keeps of boundaries.

    Args:
        context: of the rank.
        since: the boundary that counts so far: its states are never overwritten.
    """

    def __init__(self, context: RankContext, since: Committed) -> None:
        """See the class."""
        self._context, self._since = context, since
        self._kept: dict[str, dict[str, int]] = json.loads(context.label or b"{}")
        found = buddies([Place(peer.host_id, peer.executor_id) for peer in context.peers])
        self._buddy = found[context.rank]
        self._parts: list[str] = []
        self._pinned = ""
        self._sources = [rank for rank, buddy in enumerate(found) if buddy == context.rank]

    def keep(self, iteration: int, state: State, between: Handover) -> None:
        """Keep this rank's state, and the copies of those whose buddy it is. All ranks call it.

        Args:
            iteration: iterations that the run has done.
            state: of this rank.
            between: to the other ranks.

        Raises:
            CorruptBlock: a copy is not what its rank has written. Nothing counts; the group may be run again.
        """
        own = self._free(_OWN)
        copies = {source: self._free(f"copy{number}.") for number, source in enumerate(self._sources)}
        # The labels of what is overwritten go first, so that a torn state is never found.
        self._note({name: label for name, label in self._kept.items() if name not in {own, *copies.values()}})
        mine = _sealed(self._span(own, state.num_bytes + _SEAL.size), state)
        given = {} if self._buddy is None else {self._buddy: [mine]}
        taken = between.hand_over(given, lambda source, lengths: [self._span(copies[source], *lengths)])
        _refuse_damaged(taken)
        new = {own: self._label(iteration, self._context.rank, mine.length)}
        new |= {copies[source]: self._label(iteration, source, span.length) for source, (span,) in taken.items()}
        self._note(self._kept | new)

    def commit(self, iteration: int) -> None:
        """The driver has gone on from what was kept at this iteration by all ranks of this generation.

        So copies for ranks whose buddy this one was in an earlier generation are wanted no more, nor the third region
        that a pinned state asked for: their memory is freed.
        """
        self._since = Committed(iteration, self._context.terms.generation, self._context.size)
        names = [_OWN, *(f"copy{number}." for number in range(len(self._sources)))]
        usual = {f"{name}{turn}" for name in names for turn in range(2)}
        former = {
            name for name in self._kept.keys() - usual
            if name[:-1] not in names or not (name == self._pinned or self._holds_boundary(name))
        }  # fmt: skip
        if former:
            self._note({name: label for name, label in self._kept.items() if name not in former})
            for name in former:
                self._context.arena.renew(name, 1)

    def collect(
        self, needs: Sequence[Collection[int]], cut: Callable[[int, memoryview, int], State | None], between: Handover
    ) -> list[memoryview]:
        """The states of the boundary that counts that this rank needs, wherever they are. All ranks call it.

        Args:
            needs: for every rank of today, the ranks of then whose states it needs, in whole or part: equal on all.
            cut: (rank of then, its state, rank of today) -> the part that it needs, or None for the whole.
            between: to the other ranks; two calls are made.

        Returns:
            This rank's states or parts of them, valid until `release`.

        Raises:
            StateLost: no rank has the state of some rank, nor its copy.
            CorruptBlock: one did not come as it lies at its giver's. The ranks may settle again.
        """
        held, me = self._held(), self._context.rank
        told: list[list[int]] = [json.loads(one) for one in between.share(json.dumps(sorted(held)).encode())]
        giver = givers(told, needs)
        _refuse_damaged({me: list(held.values())})  # again: the others may have been long in coming
        give: dict[int, list[Span]] = {}
        for of in sorted(held):
            for taker in giver.get((me, of), ()):
                part = cut(of, held[of].view[: -_SEAL.size], taker)
                name = f"part.{of}.to.{taker}"
                give.setdefault(taker, []).append(
                    held[of] if part is None else _sealed(self._part(name, part.num_bytes + _SEAL.size), part)
                )
        taken = between.hand_over(give, self._room)
        own = [held[of] for of in sorted(held) if of in needs[me]]
        _refuse_damaged(taken | {me: own})
        found = own + [span for source in sorted(taken) for span in taken[source]]
        return [span.view[: -_SEAL.size] for span in found]

    def release(self) -> None:
        """Give the memory back that `collect` needed: all ranks have completed a collective since."""
        for name in self._parts:
            self._context.arena.renew(name, 1)
        self._parts.clear()

    def num_bytes(self) -> int:
        """Memory that states take in this arena."""
        regions = [self._context.arena.find(name) for name in self._kept]
        return sum(len(region.buffer) for region in regions if region is not None)

    def _held(self) -> dict[int, Span]:
        """The states of the boundary that counts which lie in this arena unharmed, by the rank that left them."""
        found = {
            label["of"]: self._span(name, label["bytes"])
            for name, label in self._kept.items()
            if self._is_of_boundary(label) and self._context.arena.find(name) is not None
        }
        damaged = {of for of, span in found.items() if not _is_intact(span)}
        for of in damaged:
            _log.warning("run=%s rank=%d: what is kept of the state of rank %d fails its CRC32C, and is left out",
                         self._context.terms.run[:4], self._context.rank, of)  # fmt: skip
        return {of: span for of, span in found.items() if of not in damaged}

    def _room(self, source: int, lengths: Sequence[int]) -> list[Span]:
        return [self._part(f"part.{number}.from.{source}", length) for number, length in enumerate(lengths)]

    def _part(self, name: str, num_bytes: int) -> Span:
        self._parts.append(name)
        return self._span(name, num_bytes)

    def _span(self, name: str, num_bytes: int) -> Span:
        region = self._context.store.region(name, max(_PAGE, 1 << max(0, num_bytes - 1).bit_length()))
        return Span(region, 0, num_bytes)

    def pin(self) -> tuple[memoryview, Callable[[], None]]:
        """This rank's own state at the boundary that counts, one at a time.

        Returns:
            The state, which stays as it is, whatever is kept meanwhile; and what to call when nobody needs it any more.

        Raises:
            StateLost: it is not here.
            CorruptBlock: it has changed since it was written; it was not used.
        """
        me = self._context.rank
        for name, label in self._kept.items():
            if label["of"] == me and name.startswith(_OWN) and self._is_of_boundary(label):
                sealed = self._span(name, label["bytes"])
                _refuse_damaged({me: [sealed]})
                self._pinned = name
                return sealed.view[: -_SEAL.size], partial(self._unpin, name)
        raise StateLost(f"rank {me} does not hold its own state at boundary {self._since.iteration}")

    def _unpin(self, name: str) -> None:
        if self._pinned == name:  # and not another one since
            self._pinned = ""

    def _free(self, name: str) -> str:
        """The first region of that name that may be overwritten: of two, and a third while one is pinned."""
        numbered = (f"{name}{number}" for number in count())
        return next(one for one in numbered if one != self._pinned and not self._holds_boundary(one))

    def _holds_boundary(self, name: str) -> bool:
        return name in self._kept and self._is_of_boundary(self._kept[name])

    def _is_of_boundary(self, label: Mapping[str, int]) -> bool:
        return (label["iteration"], label["generation"]) == (self._since.iteration, self._since.generation)

    def _label(self, iteration: int, of: int, num_bytes: int) -> dict[str, int]:
        return {"of": of, "iteration": iteration, "generation": self._context.terms.generation, "bytes": num_bytes}

    def _note(self, kept: dict[str, dict[str, int]]) -> None:
        if kept != self._kept:
            self._context.set_label(json.dumps(kept).encode())
            self._kept = kept


def _sealed(room: Span, state: State) -> Span:
    """Write a state and its checksum; so much of the room as they take."""
    length = state.write(room.view[: -_SEAL.size])
    _SEAL.pack_into(room.view, length, crc32c.crc32c(room.view[:length]))
    return Span(room.region, room.offset, length + _SEAL.size)


def _is_intact(sealed: Span) -> bool:
    view = sealed.view
    return bytes(view[-_SEAL.size :]) == _SEAL.pack(crc32c.crc32c(view[: -_SEAL.size]))


def _refuse_damaged(taken: Mapping[int, Sequence[Span]]) -> None:
    for source, spans in taken.items():
        if not all(map(_is_intact, spans)):
            raise CorruptBlock(f"a state that comes from rank {source} fails its CRC32C; it was not used")


def givers(told: Sequence[Collection[int]], needs: Sequence[Collection[int]]) -> dict[tuple[int, int], list[int]]:
    """Who gives which state to whom: the ranks that hold one take turns, and nobody gets what he has. Pure.

    Args:
        told: the states that every rank holds.
        needs: those that it needs.

    Returns:
        By giver and state, the takers.

    Raises:
        StateLost: nobody holds a state that is needed.
    """
    found: dict[tuple[int, int], list[int]] = {}
    for taker, states in enumerate(needs):
        for of in states:
            holders = [rank for rank, held in enumerate(told) if of in held]
            if not holders:
                raise StateLost(
                    f"the state of rank {of} at the boundary is lost, and so is its copy: the executors that held "
                    "them are gone, or their memory is damaged. Start the run again; with checkpoints a training goes "
                    "on by itself"
                )
            if taker not in holders:
                found.setdefault((holders[taker % len(holders)], of), []).append(taker)
    return found
