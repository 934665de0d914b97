"""The board of ranks that share memory: each says a small thing to all at once, and hears all, without a note a pair.

A rank has two pages in its control region, used in turn, and one word that counts what it has posted. A post is a copy
into a page, the word, and one wake-up for whoever sleeps on it. A reader looks at every peer's word and sleeps on that
of the peer who was last to come before: whoever made all wait last time probably does so again, and then each rank
sleeps once a turn, however many there are.

Two pages are enough: who posts turn t + 2 has read turn t + 1, so all its peers have posted that, and have read turn t.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from mizzle.blocks.deadline import Deadline
from mizzle.blocks.futex import SLICE_S
from mizzle.blocks.notes import PAGE_BODY_AT, POSTED_AT, Control
from mizzle.blocks.shared_island import RefuseHopeless
from mizzle.blocks.store import OwnBlocks
from mizzle.errors import ConfigError, CorruptBlock

_NAME = struct.Struct("<16sIQH")
_LENGTH = struct.Struct("<I")


class SharedBoard:
    """A rank's `Board` over the control regions of a group on one host.

    Args:
        own: this rank's control region.
        peers: those of all other ranks.
        blocks: the names that were used.
        run: the run's id, 32 hex digits.
        generation: membership epoch.
        refuse_fenced: asked before each post; raises when that generation was superseded.
        refuse_hopeless: asked whenever a sleep was in vain.
    """

    def __init__(
        self,
        own: Control,
        peers: Mapping[int, Control],
        *,
        blocks: OwnBlocks,
        run: str,
        generation: int,
        refuse_fenced: Callable[[int], None],
        refuse_hopeless: RefuseHopeless,
    ) -> None:
        """See the class."""
        self._own = own
        self._peers = dict(peers)
        self._blocks = blocks
        self._run, self._generation = bytes.fromhex(run), generation
        self._refuse_fenced, self._refuse_hopeless = refuse_fenced, refuse_hopeless
        self._order = list(peers)
        self._turn = 0
        self._is_read = True
        self._last = (0, 0)
        self._name = b""

    def post(self, iteration: int, op: int, message: bytes) -> None:
        """As `Board.post`."""
        if not self._is_read:
            raise ConfigError(f"post for {(iteration, op)} before what all posted for {self._last} was read")
        self._refuse_fenced(self._generation)
        self._blocks.check_post(iteration, op, message)
        self._last, self._is_read = (iteration, op), False
        self._name = _NAME.pack(self._run, self._generation, iteration, op)
        page = self._own.pages[self._turn % 2]
        front = self._name + _LENGTH.pack(len(message))
        page[: len(front)] = front
        page[PAGE_BODY_AT : PAGE_BODY_AT + len(message)] = message
        self._turn += 1
        self._own.words.set(POSTED_AT, self._turn)

    def read(self, deadline: Deadline) -> dict[int, memoryview]:
        """As `Board.read`."""
        late = self._await_all(deadline)
        self._own.words.fence()  # what the peers wrote before their words is seen from here on
        found: dict[int, memoryview] = {}
        for rank, peer in self._peers.items():
            if rank in late:
                continue
            page = peer.pages[(self._turn - 1) % 2]
            if page[: _NAME.size] != self._name:
                raise CorruptBlock(f"rank {rank} posted under another name than {self._last}, which was asked for")
            found[rank] = page[PAGE_BODY_AT : PAGE_BODY_AT + _LENGTH.unpack_from(page, _NAME.size)[0]]
        self._is_read = not late
        return found

    def _await_all(self, deadline: Deadline) -> list[int]:
        """Sleep until all have posted this turn; the ranks that had not when the deadline passed."""
        last: int | None = None
        for rank in self._order:
            if self._peers[rank].words.peek(POSTED_AT) < self._turn:
                last = rank
                if not self._await(rank, deadline):
                    return [rank for rank in self._order if not self._has_posted(rank)]
        if last is not None and last != self._order[0]:
            self._order.remove(last)
            self._order.insert(0, last)
        return []

    def _await(self, rank: int, deadline: Deadline) -> bool:
        words = self._peers[rank].words
        grace: Deadline | None = None
        while (seen := words.peek(POSTED_AT)) < self._turn:
            if deadline.passed:
                return False
            words.wait_while(POSTED_AT, seen, min(SLICE_S, deadline.remaining_s()))
            if words.peek(POSTED_AT) == seen:
                late = [rank for rank in self._order if not self._has_posted(rank)]
                grace = self._refuse_hopeless(late, grace)
        return True

    def _has_posted(self, rank: int) -> bool:
        return self._peers[rank].words.peek(POSTED_AT) >= self._turn
