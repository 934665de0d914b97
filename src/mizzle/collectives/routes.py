"""Who sends what to whom when ranks of one island add up beforehand: one contribution a node leaves an island. Pure.

The owner of a range gets, from every other island, one block for each tree node that the island holds as a whole. It
is sent by one of the ranks that contribute to the node, another one for another owner, so that the work is spread; and
the new values come back to an island once, through one rank, from where all its ranks read them. (Hierarchical
all-reduce, as in Thakur et al. 2005, section 5, https://doi.org/10.1177/1094342005051521, with the host as the lower
level and the canonical tree in place of a rank order.)
"""

from __future__ import annotations

from dataclasses import dataclass

from mizzle.blocks.island import island_with
from mizzle.collectives.layout import ExchangeLayout
from mizzle.collectives.tree import MAX_NODES, Node, cover
from mizzle.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Held:
    """A node that a rank contributes.

    Attributes:
        rank: which.
        part: number of the node among the rank's own.
        node: the node.
    """

    rank: int
    part: int
    node: Node


@dataclass(frozen=True, slots=True)
class Parcel:
    """One node of an island on its way to an owner of ranges on another one.

    Attributes:
        sender: the rank that adds it up and sends it.
        owner: the rank that gets it.
        number: of the node among the island's.
        node: the node.
        pieces: what it is the sum of.
        own_part: that of the sender's own nodes in whose memory the sum is made.
    """

    sender: int
    owner: int
    number: int
    node: Node
    pieces: tuple[Held, ...]
    own_part: int


class Routes:
    """The parcels of one exchange, as one rank needs them.

    Args:
        layout: of the exchange.
        islands: the ranks that see each other's memory, each in one.
        rank: whose.

    Attributes:
        island: the ranks of the own island, ascending.
        others: the other islands.
        held: every node that the own island's ranks contribute.
        outgoing: what this rank sends for each bucket, in this order.
        incoming: what it gets for each bucket; those of one sender in the order in which it sends them.
        readers: the rank of every other island that takes this rank's new values in.
        sources: the ranks on other islands whose new values this rank takes in.
    """

    def __init__(self, layout: ExchangeLayout, islands: tuple[tuple[int, ...], ...], rank: int) -> None:
        """See the class.

        Raises:
            ConfigError: the shards of an island are too scattered.
        """
        self._layout = layout
        self._islands = islands
        self.island = island_with(rank, islands)
        self.held = self._held(self.island)
        self.others = tuple(island for island in islands if rank not in island)
        abroad = [owner for island in self.others for owner in island]
        self.outgoing = [
            parcel for owner in abroad for parcel in self._parcels(self.island, owner) if parcel.sender == rank
        ]
        self.incoming = [parcel for island in self.others for parcel in self._parcels(island, rank)]
        self.readers = tuple(self.agent(island, rank) for island in self.others)
        self.sources = tuple(owner for owner in abroad if self.agent(self.island, owner) == rank)

    @staticmethod
    def agent(island: tuple[int, ...], owner: int) -> int:
        """The rank of an island that deals with an owner on another: speaks for all to it, takes its values in."""
        return island[owner % len(island)]

    def _held(self, island: tuple[int, ...]) -> tuple[Held, ...]:
        return tuple(
            Held(rank, part, node) for rank in island for part, node in enumerate(self._layout.nodes(rank))
        )  # fmt: skip

    def _parcels(self, island: tuple[int, ...], owner: int) -> list[Parcel]:
        shards = [shard for rank in island for shard in self._layout.shards_of_rank[rank]]
        nodes = cover(shards, self._layout.num_shards)
        if len(nodes) > MAX_NODES:
            raise ConfigError(
                f"the shards of ranks {', '.join(map(str, island))}, on one host, are too scattered: give neighbouring "
                "shards to neighbouring ranks"
            )
        found = []
        for number, node in enumerate(nodes):
            pieces = tuple(
                held for held in self._held(island) if node.lo <= held.node.lo and held.node.hi <= node.hi
            )  # fmt: skip
            chosen = pieces[owner % len(pieces)]
            found.append(Parcel(chosen.rank, owner, number, node, pieces, chosen.part))
        return found
