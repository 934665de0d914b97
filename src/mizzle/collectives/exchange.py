"""One all-reduce of a flat vector in three named phases: publish, reduce my ranges, gather.

Works on the memory where gradients and weights live. Ranks that see each other's memory (an island) read each other's
gradients and share one copy of the weights; islands send each other one contribution a node, bucket after bucket.
Between `reduce` and `gather` the caller updates its ranges of the weights (BigDL's parameter manager). It never touches
values itself, knows no optimizer, and never waits without a deadline. Steps, messages and bytes are counted in
``docs/collectives.md``.

Memory: the vectors are single-buffered. When `gather` returns, all readers have reduced, so contributions may be
written again. When the next `reduce` returns, all ranks have computed, so the weights may be.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import count
from typing import Any
from zlib import crc32

import torch

from mizzle.blocks.deadline import Deadline
from mizzle.blocks.region import Region
from mizzle.blocks.store import BlockStore
from mizzle.collectives.ahead import Ahead
from mizzle.collectives.collective import OPS, Collective
from mizzle.collectives.combine import TreeCombiner
from mizzle.collectives.gathering import Gathering
from mizzle.collectives.handover import Handover, check_share
from mizzle.collectives.layout import ExchangeLayout
from mizzle.collectives.opening import Opening
from mizzle.collectives.outgoing import Outgoing
from mizzle.collectives.reducing import Reducing
from mizzle.collectives.routes import Routes
from mizzle.collectives.signature import Signature
from mizzle.collectives.slices import Slice
from mizzle.collectives.timeline import NO_TIMELINE, Timeline
from mizzle.collectives.tree import Node
from mizzle.collectives.views import over_region
from mizzle.collectives.window import Window
from mizzle.collectives.wire import Wire
from mizzle.errors import ConfigError

WEIGHTS = "weights"
_FP32_BYTES = 4


@dataclass(frozen=True, slots=True)
class Reduced:
    """What `Exchange.reduce` found.

    Attributes:
        total: (sum of len(owned),) fp32, the sum over all active nodes, zeros when there was none: the own ranges
            behind each other. Belongs to the exchange and is written again by the next `Exchange.reduce`.
        metas: the ``meta`` of every rank's `Exchange.publish`, by rank, the own included.
        hidden_s: seconds of this exchange's work that were done before `Exchange.publish` was called.
    """

    total: torch.Tensor
    metas: list[bytes]
    hidden_s: float = 0.0


class Exchange:
    """One all-reduce of a flat vector in three named phases: publish, reduce my ranges, gather.

    Every rank calls ``publish``, ``reduce``, then any number of ``share``, then ``gather``, with the same iteration
    and op numbers, which are never used twice in a generation and grow. A store serves one exchange at a time, and no
    `Communicator` beside it. A rank that calls ``open`` before may ``announce`` buckets while it still computes others.

    Before the store is closed, a last `share` (of nothing) makes sure that all peers have gathered.

    Any failure in a phase aborts the store, so that the peers fail at once. A caller that fails between phases calls
    ``store.abort`` itself.

    Attributes:
        num_elements: M, length of the vectors.
        owned: the own ranges, ascending: one of each bucket, without empty ones.
        buckets: what is announced and travels by itself.
        nodes: the tree nodes that this rank contributes, each the sum of its shards.
        crosses_hosts: whether some peer's memory is not seen, so that bytes travel.
        sends_sums: whether some island adds its ranks' contributions up before it sends them.
        keeps_contributions: whether contributions are still what they were when they have been sent: nothing is rounded
            or added up in their place.
    """

    def __init__(
        self, store: BlockStore, layout: ExchangeLayout, *, wire: Wire, weights_wire: Wire = Wire.FP32,
        error_feedback: bool = False, timeout_s: float, timeline: Timeline = NO_TIMELINE,
    ) -> None:  # fmt: skip
        """Map the regions "gradients.<k>" per node, and "window" where bytes travel.

        Args:
            store: the door to the peers; every rank makes its exchange at the same time.
            layout: the same on all ranks.
            wire: element type of contributions between islands; sums are fp32 always. Where nothing travels nothing is
                rounded.
            weights_wire: element type of weights between islands. With 16 bits all ranks compute with rounded weights,
                wherever they are, so that the bits do not depend on it; the owners keep fp32.
            error_feedback: whether what ``wire`` rounds away is added to the next contribution.
            timeout_s: seconds each waiting phase may take, a slow peer's compute included.
            timeline: where to note what took how long.

        Raises:
            ConfigError: the layout is for another number of ranks.
            ArenaError: no memory.
            CollectiveTimeout: the other ranks of this host did not come.
        """
        if len(layout.shards_of_rank) != store.size:
            raise ConfigError(f"the layout is for {len(layout.shards_of_rank)} ranks, the store connects {store.size}")
        self._store = store
        self._layout = layout
        self._wire, self._timeout_s, self._timeline = wire, timeout_s, timeline
        self._routes = Routes(layout, store.islands, store.rank)
        self.crosses_hosts = len(store.islands) > 1
        self.sends_sums = self.crosses_hosts and any(len(island) > 1 for island in store.islands)
        self.keeps_contributions = not self.crosses_hosts or (wire is Wire.FP32 and not self.sends_sums)
        self._weights_wire = weights_wire
        self.num_elements = layout.num_elements
        self.owned = layout.owned(store.rank)
        self.buckets = layout.buckets
        self.nodes = layout.nodes(store.rank)
        self._vectors: dict[str, tuple[Region, torch.Tensor]] = {}
        self._total = torch.zeros(sum(map(len, self.owned)))
        self._totals = torch.split(self._total, [len(own) for own in self.owned])
        self._master: tuple[torch.Tensor, ...] | None = None
        self._ahead: Ahead | None = None
        self._collective: Collective | None = None
        self._signature, self._sum_signature = self._sign("exchange"), self._sign("all_reduce of an exchange")
        self._build(error_feedback=error_feedback)

    def _build(self, *, error_feedback: bool) -> None:
        layout, wire, timeline = self._layout, self._wire, self._timeline
        own = [self._vector(_gradients(part), shared=False) for part in range(len(self.nodes))]
        combiner = TreeCombiner(layout.num_shards)
        outgoing = Outgoing(wire, combiner, own, error_feedback=error_feedback)
        window = Window.of(self._store, layout, self._routes, (wire, self._weights_wire))
        self._reducing = Reducing(
            layout, self._routes, wire, combiner=combiner, outgoing=outgoing, window=window, own=own, timeline=timeline
        )
        self._gathering = Gathering(self._store, layout, self._routes, window, self._weights_wire, timeline)
        self._outgoing, self._window = outgoing, window

    def _sign(self, call: str) -> Signature:
        layout = self._layout
        placement = crc32(repr((layout.shards_of_rank, self._store.islands)).encode())
        return Signature.of(
            call, elements=layout.num_elements, alignment=layout.alignment, bucket=len(self.buckets[0]),
            shards=layout.num_shards, wire=self._wire.value, weights_wire=self._weights_wire.value,
            placement=f"{placement:08x}",
        )  # fmt: skip

    @property
    def master(self) -> tuple[torch.Tensor, ...]:
        """For each own range (len,) fp32, what the optimizer updates between `reduce` and `gather`.

        Views of `weights`, or, where weights travel in 16 bits, memory of its own.
        """
        if self._master is None:
            weights = self.weights
            views = tuple(weights[own.start : own.stop] for own in self.owned)
            self._master = views if self._weights_wire is Wire.FP32 else tuple(view.clone() for view in views)
        return self._master

    def vector(self, name: str) -> torch.Tensor:
        """The (M,) fp32 vector over the region of that name, created (zeroed) at first use: this rank's own."""
        return self._vector(name, shared=False)[1]

    def shared_vector(self, name: str) -> torch.Tensor:
        """(M,) fp32, one for all ranks of an island, zeroed when it is new; `gather` takes any.

        All ranks of the island ask for it at the same time.
        """
        return self._vector(name, shared=True)[1]

    @property
    def weights(self) -> torch.Tensor:
        """(M,) fp32, one copy for all ranks of an island: only to be read, what a rank writes goes to `master`."""
        return self.shared_vector(WEIGHTS)

    def contribution(self, node: Node) -> torch.Tensor:
        """(M,) fp32, what this rank adds for ``node``; the caller fills it before `publish`, which may overwrite it.

        Raises:
            ConfigError: the node is not one of `nodes`.
        """
        if node not in self.nodes:
            raise ConfigError(f"rank {self._store.rank} contributes {self.nodes}, not {node}")
        return self.vector(_gradients(self.nodes.index(node)))

    def memory_bytes(self) -> dict[str, int]:
        """What this rank holds, in bytes by purpose; what an island shares is divided among its ranks."""
        whole = self._layout.num_elements * _FP32_BYTES
        shared = sum(name.startswith("shared.") for name in self._vectors)
        return {
            "weights": shared * whole // len(self._routes.island),
            "gradients": len(self.nodes) * whole,
            "private": (len(self._vectors) - shared - len(self.nodes)) * whole,
            "reduced": self._total.nbytes,
            "master": sum(one.nbytes for one in self._master or ()) if self._weights_wire is not Wire.FP32 else 0,
            "incoming": self._window.num_bytes + self._gathering.num_bytes,
            "errors": self._outgoing.error_bytes,
        }

    def open(self, iteration: int, op: int, *, active: Collection[Node]) -> None:
        """Begin before all contributions are final: those to announced buckets are reduced while others are computed.

        A thread of the exchange's own works from now on until `reduce` returns; no other call may come in between but
        `announce` and `publish`.

        Args:
            iteration: as in `publish`.
            op: as in `publish`.
            active: as in `publish`.
        """
        collective = self._collective = self._new(iteration, op, self._signature)
        opening = self._opening(self._signature, active, b"", is_final=False)

        def work(ahead: Ahead) -> list[bytes]:
            with collective:
                self._reducing.begin(collective, opening)
                return self._reducing.run(self._totals, ahead)

        self._ahead = Ahead(self._timeout_s)
        self._ahead.start(work)

    def abandon(self) -> None:
        """The computation that an `open` was for has failed: the exchange's thread waits for it no longer."""
        if self._ahead is not None:
            self._ahead.abandon()

    def announce(self, bucket: int) -> None:
        """The contributions to that bucket are final, all own nodes. Any order, each once; never waits.

        Any thread may call, between `open` and `publish`. From now on the exchange may write to them, unless it
        `keeps_contributions`.

        Raises:
            ConfigError: there was no `open`.
        """
        if self._ahead is None:
            raise ConfigError("announce comes after open")
        self._ahead.announce(bucket)

    def publish(self, iteration: int, op: int, *, active: Collection[Node], meta: bytes) -> None:
        """Phase 1: announce all contributions that were not announced before. Waits for nobody.

        Args:
            iteration: of the run.
            op: number within the iteration, below 64.
            active: the own nodes that had samples this time; the others are absent from the sum.
            meta: bytes for every rank, at most 60 KB.
        """
        if self._ahead is not None:
            try:
                check_share(meta)
            except ConfigError:
                self.abandon()
                raise
            self._ahead.publish(meta)
            return
        with self._new(iteration, op, self._signature) as collective:
            check_share(meta)
            self._collective = collective
            self._reducing.begin(collective, self._opening(self._signature, active, meta, is_final=True))

    def reduce(self) -> Reduced:
        """Phase 2: wait for the peers' contributions to the own ranges, and add all up in tree order, in fp32.

        Raises:
            CollectiveMismatch: a rank has another layout or wire type; names ranks and both. Nothing was summed.
            CollectiveTimeout: names the ranks that are missing.
            PeerLost: a peer is gone: run the group again.
        """
        collective = self._current()
        if self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            metas, hidden_s = ahead.result()
        else:
            with collective:
                collective.rearm(self._timeout_s)
                metas, hidden_s = self._reducing.run(self._totals), 0.0
        # All peers have sent this round, so they have finished with everything before it.
        self._store.drop(collective.iteration, collective.op)
        return Reduced(self._total, metas, hidden_s)

    def all_reduce(self, iteration: int, op: int, vector: str = "sum") -> torch.Tensor:
        """All phases for a plain sum, bucket by bucket: what all ranks contribute, added up, in a shared vector.

        A bucket is gathered as soon as it is reduced, so links are not idle between two phases.

        Nothing is copied where ranks see each other's memory: contributions are read where they lie, and every rank
        writes its ranges of the sum where all read it. The sum travels as weights do, in ``weights_wire``.

        Args:
            iteration: as in `publish`.
            op: as in `publish`.
            vector: name of the `shared_vector` to leave the sum in.

        Returns:
            (M,) fp32: only to be read, and written again by this rank's next call.

        Raises:
            ConfigError: an exchange was opened or published and is not gathered yet.
            Exception: as `reduce` does.
        """
        if self._collective is not None:
            raise ConfigError("all_reduce was called between publish, or open, and gather: call it after gather")
        region, values = self._vector(vector, shared=True)
        gathering = self._gathering
        with self._new(iteration, op, self._sum_signature) as collective:

            def hand_on(number: int, total: torch.Tensor | None) -> None:
                collective.rearm(self._timeout_s)
                if total is not None:
                    gathering.offer(number, total)
                gathering.take(number)

            opening = self._opening(self._sum_signature, self.nodes, b"", is_final=True)
            self._reducing.begin(collective, opening, hand_on)
            gathering.begin(collective, region, values, self._weights_wire, beside_reduce=True)
            self._reducing.run([values[own.start : own.stop] for own in self.owned])
            gathering.finish()
            self._store.drop(iteration, op)
        return values

    def owned_among(self, size: int) -> list[tuple[Slice, ...]]:
        """The ranges that each of so many ranks would own, by rank."""
        layout = self._layout.among(size)
        return [layout.owned(rank) for rank in range(size)]

    def share(self, iteration: int, op: int, payload: bytes) -> list[bytes]:
        """A tiny all-gather, under a name as in `publish`; see `Handover.share`."""
        return self.handover(iteration, op).share(payload)

    def handover(self, iteration: int, op: int) -> Handover:
        """What ranks tell and give each other beside the sums.

        Args:
            iteration: as in `publish`.
            op: of the first call; every further one takes the next number.
        """
        ops = count(op)
        return Handover(lambda call: self._new(iteration, next(ops), Signature.of(call)))

    def gather(self, vector: str = WEIGHTS) -> None:
        """Phase 3: hand out the own ranges of a vector, and take the others' into it; one copy for each island.

        Once per `publish`. The own ranges must not change until the next `reduce` has returned.

        Args:
            vector: name of the `shared_vector`: the weights, of which `master` counts, or, for an optimizer that runs
                unsharded, reduced gradients, which travel in fp32.
        """
        master = self.master if vector == WEIGHTS else None
        with self._current() as collective:
            self._collective = None
            collective.rearm(self._timeout_s)
            region, values = self._vector(vector, shared=True)
            self._gathering.run(collective, region, values, master)

    def _new(self, iteration: int, op: int, signature: Signature) -> Collective:
        if not 0 <= op < OPS:
            raise ConfigError(f"op {op} of an exchange: give a number below {OPS}")
        return Collective(self._store, iteration, op, signature=signature, timeout_s=self._timeout_s)

    def _current(self) -> Collective:
        if self._collective is None:
            raise ConfigError("reduce and gather come after publish, gather once")
        return self._collective

    def _opening(self, signature: Signature, active: Collection[Node], meta: bytes, *, is_final: bool) -> Opening:
        places = (self._vector(_gradients(part), shared=False)[0] for part in range(len(self.nodes)))
        return Opening(
            signature, tuple(node in active for node in self.nodes),
            tuple(map(self._store.island.place, places)), meta, is_final,
        )  # fmt: skip

    def _vector(self, name: str, *, shared: bool) -> tuple[Region, torch.Tensor]:
        key = f"shared.{name}" if shared else name
        if key not in self._vectors:
            num_bytes = max(1, self._layout.num_elements * _FP32_BYTES)
            region: Any = (
                self._store.island.shared(name, num_bytes, Deadline.after(self._timeout_s)) if shared
                else self._store.region(name, num_bytes)
            )  # fmt: skip
            self._vectors[key] = region, over_region(region, torch.float32, self._layout.num_elements)
        return self._vectors[key]


def _gradients(part: int) -> str:
    return f"gradients.{part}"
