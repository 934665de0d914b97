"""One all-reduce of a flat vector in three named phases: publish, reduce my slice, gather.

Works on the memory where gradients and weights live; where the store hands out views, nothing is copied but the
sums. Between `reduce` and `gather` the caller updates its slice of the weights (BigDL's parameter manager).
It never touches values itself, knows no optimizer, and never waits without a deadline.

Memory: the vectors are single-buffered. When `gather` returns, all peers have reduced, so contributions may be written
again. When the next `reduce` returns, all peers have gathered, so the own slice of the weights may be.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary
from zlib import crc32

import torch

from mizzle.blocks.ids import DType, Kind
from mizzle.blocks.store import BlockStore, Fetched, Pending, Region, Span
from mizzle.collectives.collective import Collective, check_length
from mizzle.collectives.combine import TreeCombiner
from mizzle.collectives.signature import Signature
from mizzle.collectives.slices import ALIGNMENT, Slice, slices
from mizzle.collectives.timeline import NO_TIMELINE, Timeline
from mizzle.collectives.tree import MAX_NODES, Node, cover
from mizzle.collectives.views import over_payload, over_region
from mizzle.collectives.wire import Wire
from mizzle.errors import CollectiveMismatch, ConfigError

MAX_SHARE_BYTES = 60 * 1024
WEIGHTS = "weights"
STRIPE = 1 << 20
_FP32_BYTES = 4
_ISLANDS: WeakKeyDictionary[Any, dict[str, torch.Tensor]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class ExchangeLayout:
    """What all ranks agree on beforehand.

    Attributes:
        num_elements: M, length of the flat vector, >= 0.
        num_shards: V, >= 1.
        shards_of_rank: the shards of every rank; every shard is held once. A rank may hold none.
        alignment: elements; slices start at multiples of it.
    """

    num_elements: int
    num_shards: int
    shards_of_rank: tuple[tuple[int, ...], ...]
    alignment: int = ALIGNMENT
    stripe: int = STRIPE

    def __post_init__(self) -> None:
        """Refuse a layout that leaves out a shard, holds one twice, or scatters them too much."""
        held = sorted(shard for shards in self.shards_of_rank for shard in shards)
        if held != list(range(self.num_shards)):
            raise ConfigError(f"each of the {self.num_shards} shards must be held by one rank, but they hold {held}")
        for rank in range(len(self.shards_of_rank)):
            if len(self.nodes(rank)) > MAX_NODES:
                raise ConfigError(f"the shards of rank {rank} are too scattered: give it runs of neighbouring shards")

    @property
    def buckets(self) -> tuple[Slice, ...]:
        """What is communicated by itself."""
        stops = [*range(self.stripe, self.num_elements, self.stripe), self.num_elements]
        starts = [0, *stops[:-1]]
        return tuple(Slice(start, stop) for start, stop in zip(starts, stops, strict=True))

    def owned(self, rank: int) -> tuple[Slice, ...]:
        """The ranges of a rank: one of every bucket, ascending, without empty ones."""
        size = len(self.shards_of_rank)
        cuts = ((bucket.start, slices(len(bucket), size, self.alignment)[rank]) for bucket in self.buckets)
        return tuple(Slice(start + part.start, start + part.stop) for start, part in cuts if len(part))

    @property
    def slices(self) -> tuple[Slice, ...]:
        """Where every rank's ranges lie when they are packed behind each other."""
        found, stop = [], 0
        for rank in range(len(self.shards_of_rank)):
            start, stop = stop, stop + sum(map(len, self.owned(rank)))
            found.append(Slice(start, stop))
        return tuple(found)

    def nodes(self, rank: int) -> tuple[Node, ...]:
        """What a rank contributes: the maximal tree nodes within its shards."""
        return cover(self.shards_of_rank[rank], self.num_shards)


@dataclass(frozen=True, slots=True)
class Reduced:
    """What `Exchange.reduce` found.

    Attributes:
        total: (len(slice),) fp32, the sum over all active nodes, zeros when there was none; belongs to the exchange
            and is written again by the next `Exchange.reduce`.
        metas: the ``meta`` of every rank's `Exchange.publish`, by rank, the own included.
    """

    total: torch.Tensor
    metas: list[bytes]
    hidden_s: float = 0.0


class Exchange:
    """One all-reduce of a flat vector in three named phases: publish, reduce my slice, gather.

    Every rank calls ``publish``, ``reduce``, then any number of ``share``, then ``gather``, with the same iteration
    and op numbers, which are never used twice in a generation and grow. Moves 2 (N-1)/N M elements out of and into
    each rank. A store serves one exchange at a time, and no `Communicator` beside it.

    Before the store is closed, a last `share` (of nothing) makes sure that all peers have gathered.

    Any failure in a phase aborts the store, so that the peers fail at once. A caller that fails between phases calls
    ``store.abort`` itself.

    Attributes:
        owned: the own ranges.
        nodes: the tree nodes that this rank contributes, each the sum of its shards.
        weights: (M,) fp32 over region "weights": this rank's copy.
    """

    crosses_hosts = False

    def __init__(
        self, store: BlockStore, layout: ExchangeLayout, *, wire: Wire, weights_wire: Wire = Wire.FP32,
        error_feedback: bool = False, timeout_s: float, timeline: Timeline = NO_TIMELINE,
    ) -> None:  # fmt: skip
        """Map the regions: "weights", "gradients.<k>" per node, "incoming", and "wire" with a 16-bit wire.

        Args:
            store: the door to the peers.
            layout: the same on all ranks.
            wire: element type of the contributions on their way; weights travel in fp32 always.
            timeout_s: seconds each waiting phase may take, a slow peer's compute included.

        Raises:
            ConfigError: the layout is for another number of ranks.
            ArenaError: no memory.
        """
        if len(layout.shards_of_rank) != store.size:
            raise ConfigError(f"the layout is for {len(layout.shards_of_rank)} ranks, the store connects {store.size}")
        self._store = store
        self._layout = layout
        self._wire = wire
        self._timeout_s = timeout_s
        self._slices = layout.slices
        self._owned_by = [layout.owned(rank) for rank in range(store.size)]
        self.owned = self._owned_by[store.rank]
        self.buckets = layout.buckets
        self._weights_wire = weights_wire
        self._error_feedback = error_feedback
        self._timeline = timeline
        self._island = _ISLANDS.setdefault(getattr(store, "_fabric", self), {})
        self._announced: set[int] = set()
        self._opened: tuple[int, int, tuple[Node, ...]] | None = None
        self._nodes_of = tuple(layout.nodes(rank) for rank in range(store.size))
        self._slice = self._slices[store.rank]
        self.nodes = self._nodes_of[store.rank]
        self._vectors: dict[str, tuple[Region, torch.Tensor]] = {}
        self._combiner = TreeCombiner(layout.num_shards)
        self._total = torch.zeros(len(self._slice), dtype=torch.float32)
        self._collective: Collective | None = None
        self._map_regions()
        weights = self.weights
        parts = [weights[own.start : own.stop] for own in self.owned]
        fp32 = weights_wire is Wire.FP32
        self.master = tuple(part if fp32 else torch.zeros(len(part)) for part in parts)

    def vector(self, name: str) -> torch.Tensor:
        """The (M,) fp32 vector over the region of that name, created (zeroed) at first use; `gather` takes any."""
        return self._vector(name)[1]

    def shared_vector(self, name: str) -> torch.Tensor:
        """(M,) fp32, one for all ranks of an island; `gather` takes any."""
        self._vector(name)
        return self._island.setdefault(name, torch.zeros(self._layout.num_elements))

    @property
    def weights(self) -> torch.Tensor:
        """(M,) fp32, one for all ranks of an island."""
        return self.shared_vector(WEIGHTS)

    def memory_bytes(self) -> dict[str, int]:
        """Bytes by purpose."""
        whole = self._layout.num_elements * _FP32_BYTES
        return {
            "weights": whole // self._store.size, "gradients": len(self.nodes) * whole,
            "reduced": self._total.nbytes, "incoming": sum(span.length for span in self._into.values()),
        }  # fmt: skip

    def open(self, iteration: int, op: int, *, active: Collection[Node]) -> None:
        """Begin early."""
        self._opened, self._begun = (iteration, op, tuple(active)), time.perf_counter()
        self._announced.clear()

    def announce(self, bucket: int) -> None:
        """The contributions to this bucket are final."""
        assert self._opened is not None
        assert bucket not in self._announced, bucket
        self._announced.add(bucket)
        self._freeze(bucket)

    def _freeze(self, bucket: int) -> None:
        for part, _ in enumerate(self.nodes):
            own = self.buckets[bucket]
            self._frozen[part][own.start : own.stop] = self._vector(_gradients(part))[1][own.start : own.stop]

    def contribution(self, node: Node) -> torch.Tensor:
        """(M,) fp32, what this rank adds for ``node``; the caller fills it before `publish`.

        Raises:
            ConfigError: the node is not one of `nodes`.
        """
        return self.vector(_gradients(self._part(node)))

    def publish(self, iteration: int, op: int, *, active: Collection[Node], meta: bytes) -> None:
        """Phase 1: announce the contributions and start fetching the peers'. Waits for nobody.

        Args:
            iteration: of the run.
            op: number within the iteration, below 65536.
            active: the own nodes that had samples this time; the others are absent from the sum.
            meta: bytes for every rank, at most 60 KB.
        """
        if self._opened is not None:
            assert self._opened == (iteration, op, tuple(active)), self._opened
            for number in set(range(len(self.buckets))) - self._announced:
                self._freeze(number)
            for part in range(len(self.nodes)):
                self._vector(_gradients(part))[1].copy_(self._frozen[part])
        self._hidden_s = 0.0 if self._opened is None else time.perf_counter() - self._begun
        self._opened = None
        signature = Signature.of(
            "exchange", elements=self._layout.num_elements, alignment=self._layout.alignment,
            shards=self._layout.num_shards, wire=self._wire.value, placement=f"{self._placement:08x}",
        )  # fmt: skip
        with self._new(iteration, op, signature) as collective:
            _check_meta(meta)
            self._collective = collective
            self._meta = meta
            self._active = {node: self._encode(self._part(node)) for node in active}
            payloads = [self._active.get(node) for node in self.nodes] or [None]
            collective.tell(meta, payload_for=lambda rank: self._cut(payloads[0], rank), dtype=self._wire.block_dtype)
            collective.ask(lambda rank: self._into[rank, 0])
            self._asked = self._other_parts(collective, payloads)

    def reduce(self) -> Reduced:
        """Phase 2: wait for the peers' contributions to the own slice, and add all up in tree order, in fp32.

        Raises:
            CollectiveMismatch: a rank has another layout or wire type; names ranks and both. Nothing was summed.
            CollectiveTimeout: names the ranks that are missing.
            PeerLost: a peer is gone: run the group again.
        """
        with self._current() as collective:
            collective.rearm(self._timeout_s)
            heard = collective.hear()
            metas = [heard[rank][1] if rank in heard else self._meta for rank in range(self._store.size)]
            sources: dict[Node, torch.Tensor] = {}
            for rank, nodes in enumerate(self._nodes_of):
                for part, node in enumerate(nodes):
                    if rank == self._store.rank:
                        source = self._own(node)
                    elif part == 0:
                        source = self._checked(heard[rank][0])
                    else:
                        source = self._checked(collective.await_all({rank: self._asked[rank, part]})[rank])
                    if source is not None:
                        sources[node] = source
            self._combiner.combine(sources, self._total)
            # All peers have sent this round, so they have finished with everything before it.
            self._store.drop(collective.iteration, collective.op)
            return Reduced(self._total, metas, self._hidden_s)

    def share(self, iteration: int, op: int, payload: bytes) -> list[bytes]:
        """A tiny all-gather.

        Args:
            iteration: of the run.
            op: number within the iteration, not used by any other call.
            payload: at most 60 KB; lengths may differ between ranks.

        Returns:
            Every rank's payload, by rank.
        """
        signature = Signature.of("share")
        with self._new(iteration, op, signature) as collective:
            _check_meta(payload)
            collective.tell(payload)
            collective.ask()
            heard = collective.hear()
            return [heard[rank][1] if rank in heard else payload for rank in range(self._store.size)]

    def gather(self, vector: str = WEIGHTS) -> None:
        """Phase 3: hand out the own slice of a vector, and take the others' slices into it, in fp32.

        Once per `publish`. The own slice must not change until the next `reduce` has returned.

        Args:
            vector: name of the `vector`: the weights, or, for an optimizer that runs unsharded, reduced gradients.
        """
        values = self.shared_vector(vector)
        if vector == WEIGHTS and self._weights_wire is not Wire.FP32:
            for own, master in zip(self.owned, self.master, strict=True):
                values[own.start : own.stop].copy_(master.to(self._weights_wire.dtype))
        with self._current() as collective:
            self._collective = None
            collective.rearm(self._timeout_s)
            region, packed = self._vector("packed")
            mine = Span(region, *self._slice.of_bytes(_FP32_BYTES))
            if mine.length:
                own_values = torch.cat([values[own.start : own.stop] for own in self.owned])
                packed[self._slice.start : self._slice.stop].copy_(own_values)
            collective.put(Kind.RESULT, mine, to=collective.others, dtype=DType.FLOAT32, slice_=self._store.rank)
            pending: dict[int, Pending] = {}
            for rank in collective.others:
                into = Span(region, *self._slices[rank].of_bytes(_FP32_BYTES))
                pending[rank] = collective.fetch(Kind.RESULT, into, slice_=rank, source=rank)
            for rank, block in collective.await_all(pending).items():
                theirs = self._slices[rank]
                check_length(block, len(theirs) * _FP32_BYTES)
                if not hasattr(self._store, "_fabric"):
                    source, at = over_payload(block.payload, torch.float32), 0
                    for own in self._owned_by[rank]:
                        values[own.start : own.stop].copy_(source[at : at + len(own)])
                        at += len(own)

    def _new(self, iteration: int, op: int, signature: Signature) -> Collective:
        return Collective(self._store, iteration, op, signature=signature, timeout_s=self._timeout_s)

    def _current(self) -> Collective:
        if self._collective is None:
            raise ConfigError("reduce and gather come after publish, gather once")
        return self._collective

    def _vector(self, name: str) -> tuple[Region, torch.Tensor]:
        if name not in self._vectors:
            region = self._store.region(name, max(1, self._layout.num_elements * _FP32_BYTES))
            self._vectors[name] = region, over_region(region, torch.float32, self._layout.num_elements)
        return self._vectors[name]

    def _map_regions(self) -> None:
        """Ask for all memory now, so that a lack of it shows before the first iteration."""
        self._vector(WEIGHTS)
        for part in range(len(self.nodes)):
            self._vector(_gradients(part))
        self._placement = crc32(repr(self._layout.shards_of_rank).encode())
        width = self._wire.element_bytes
        slice_bytes = len(self._slice) * width
        keys = [
            (rank, part)
            for rank in range(self._store.size) if rank != self._store.rank
            for part in range(max(1, len(self._nodes_of[rank])))
        ]  # fmt: skip
        incoming = self._store.region("incoming", max(1, len(keys) * slice_bytes))
        self._into = {key: Span(incoming, i * slice_bytes, slice_bytes) for i, key in enumerate(keys)}
        self._frozen = [torch.zeros(self._layout.num_elements) for _ in self.nodes]
        vector_bytes = self._layout.num_elements * width
        self._rounded = self._store.region("wire", max(1, len(self.nodes) * vector_bytes))

    def _part(self, node: Node) -> int:
        if node not in self.nodes:
            raise ConfigError(f"rank {self._store.rank} contributes {self.nodes}, not {node}")
        return self.nodes.index(node)

    def _encode(self, part: int) -> Span:
        """The bytes of a contribution as they travel."""
        _, values = self._vector(_gradients(part))
        num_bytes = self._layout.num_elements * self._wire.element_bytes
        rounded = over_region(self._rounded, self._wire.dtype, len(values), part * num_bytes)
        parts = [values[own.start : own.stop] for owned in self._owned_by for own in owned]
        self._wire.encode(torch.cat(parts) if parts else values, rounded)
        return Span(self._rounded, part * num_bytes, num_bytes)

    def _cut(self, vector: Span | None, rank: int) -> Span | None:
        """A rank's slice of an encoded vector."""
        if vector is None:
            return None
        offset, length = self._slices[rank].of_bytes(self._wire.element_bytes)
        return Span(vector.region, vector.offset + offset, length)

    def _other_parts(self, collective: Collective, payloads: list[Span | None]) -> dict[tuple[int, int], Pending]:
        """Put and ask for what comes after part 0; a part without samples is put without payload."""
        for rank in collective.others:
            for part, payload in enumerate(payloads[1:], start=1):
                collective.put(
                    Kind.CONTRIBUTION, self._cut(payload, rank), to=(rank,), dtype=self._wire.block_dtype,
                    slice_=rank, part=part,
                )  # fmt: skip
        return {
            (rank, part): collective.fetch(
                Kind.CONTRIBUTION, self._into[rank, part], slice_=self._store.rank, source=rank, part=part
            )
            for rank in collective.others
            for part in range(1, len(self._nodes_of[rank]))
        }

    def _own(self, node: Node) -> torch.Tensor | None:
        span = self._cut(self._active.get(node), self._store.rank)
        if span is None:
            return None
        return over_region(span.region, self._wire.dtype, len(self._slice), span.offset)

    def _checked(self, block: Fetched) -> torch.Tensor | None:
        """A peer's contribution; None when it is absent (or the slice is empty)."""
        if block.header.payload_bytes == 0:
            return None
        if block.header.dtype != self._wire.block_dtype:
            raise CollectiveMismatch(f"{block.header.block} holds {block.header.dtype.name}, not {self._wire.value}")
        check_length(block, len(self._slice) * self._wire.element_bytes)
        return over_payload(block.payload, self._wire.dtype)


def _gradients(part: int) -> str:
    return f"gradients.{part}"


def _check_meta(meta: bytes) -> None:
    if len(meta) > MAX_SHARE_BYTES:
        raise ConfigError(f"{len(meta)} bytes are over the limit of {MAX_SHARE_BYTES} for a message to all ranks")
