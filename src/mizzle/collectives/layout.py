"""How a flat vector and its shards are spread over ranks: buckets, owned ranges, contributed tree nodes. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

from mizzle.collectives.slices import ALIGNMENT, Slice, slices
from mizzle.collectives.tree import MAX_NODES, Node, cover
from mizzle.errors import ConfigError

_MAX_UNIT = 256 * 1024
"""Elements of a bucket that one rank owns: 1 MB of fp32, long for a message and short for a pipeline."""
_MIN_UNIT = 16 * 1024
"""Elements, below which a block is dearer to name than to send."""
_LEAST_BUCKETS = 12
"""Unless their ranges would be shorter than that. So much of the vector travels before the first sum, and after the
last one, while the links have nothing else to carry."""
MAX_BUCKETS = 512


@dataclass(frozen=True, slots=True)
class ExchangeLayout:
    """What all ranks agree on beforehand.

    The vector is cut into buckets, and every bucket among all ranks: so each bucket loads all ranks alike while it
    travels, as stripes load the disks of a RAID 0.

    Attributes:
        num_elements: M, length of the flat vector, >= 0.
        num_shards: V, >= 1.
        shards_of_rank: the shards of every rank; every shard is held once. A rank may hold none.
        alignment: elements; ranges start at multiples of it.
        stripe: elements of a bucket; 0: chosen so that there are some buckets, each a megabyte or less a rank.
    """

    num_elements: int
    num_shards: int
    shards_of_rank: tuple[tuple[int, ...], ...]
    alignment: int = ALIGNMENT
    stripe: int = 0

    def __post_init__(self) -> None:
        """Refuse a layout that leaves out a shard, holds one twice, or scatters them too much."""
        held = sorted(shard for shards in self.shards_of_rank for shard in shards)
        if held != list(range(self.num_shards)):
            raise ConfigError(f"each of the {self.num_shards} shards must be held by one rank, but they hold {held}")
        for rank in range(len(self.shards_of_rank)):
            if len(self.nodes(rank)) > MAX_NODES:
                raise ConfigError(f"the shards of rank {rank} are too scattered: give it runs of neighbouring shards")
        if self.stripe and (self.stripe % self.alignment or self.num_elements > MAX_BUCKETS * self.stripe):
            raise ConfigError(
                f"buckets of {self.stripe} elements: give a multiple of {self.alignment} that makes at most "
                f"{MAX_BUCKETS} of them, or 0"
            )

    @property
    def buckets(self) -> tuple[Slice, ...]:
        """What travels by itself: [0, M) in order; at least one, which may be empty."""
        stripe = self.stripe or self._chosen_stripe()
        stops = [*range(0, self.num_elements, stripe), self.num_elements]
        return tuple(Slice(start, stop) for start, stop in pairwise(stops)) or (Slice(0, 0),)

    def _chosen_stripe(self) -> int:
        ranks = len(self.shards_of_rank)
        unit = min(_MAX_UNIT, max(_MIN_UNIT, self.num_elements // (_LEAST_BUCKETS * ranks)))
        stripe = max(unit * ranks, -(-self.num_elements // MAX_BUCKETS))
        return -(-stripe // self.alignment) * self.alignment

    def cuts(self, bucket: Slice) -> tuple[Slice, ...]:
        """A bucket's range of every rank; some may be empty."""
        parts = slices(len(bucket), len(self.shards_of_rank), self.alignment)
        return tuple(Slice(bucket.start + part.start, bucket.start + part.stop) for part in parts)

    def owned(self, rank: int) -> tuple[Slice, ...]:
        """The ranges of a rank: one of every bucket, ascending, without empty ones."""
        return tuple(cut for bucket in self.buckets if len(cut := self.cuts(bucket)[rank]))

    def among(self, size: int) -> ExchangeLayout:
        """The same vector and shards among so many ranks; the first holds all shards."""
        nothing: tuple[int, ...] = ()
        return replace(self, shards_of_rank=(tuple(range(self.num_shards)), *[nothing] * (size - 1)))

    def nodes(self, rank: int) -> tuple[Node, ...]:
        """What a rank contributes: the maximal tree nodes within its shards."""
        return cover(self.shards_of_rank[rank], self.num_shards)
