"""Collectives on numpy arrays and torch tensors: what a user calls inside a task, and what `mizzle.all_reduce` is.

Every rank makes the same calls in the same order; the first round of each checks it. Sums follow the canonical tree,
so bits do not depend on timing. Each call allocates its result; for a training loop's vectors there is `Exchange`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import TracebackType
from typing import Self, cast

import torch

from mizzle.blocks.ids import Kind
from mizzle.blocks.region import Span
from mizzle.blocks.store import BlockStore, Pending
from mizzle.collectives.arrays import BLOCK_DTYPES, Array, ArrayT, Form, Formats, dtype_name, dtype_named, flatten
from mizzle.collectives.collective import Collective, check_length
from mizzle.collectives.combine import TreeCombiner, check_reduce_op
from mizzle.collectives.handover import Handover
from mizzle.collectives.reduction import Reduction, refuse_mean_of_integers
from mizzle.collectives.signature import Signature, shape_of, shape_text
from mizzle.collectives.slices import ALIGNMENT, Slice, slices
from mizzle.collectives.small import EAGER_BYTES, SmallReductions
from mizzle.collectives.staging import Staging
from mizzle.collectives.tree import MAX_NODES, Node, cover
from mizzle.collectives.views import over_payload, over_span
from mizzle.collectives.wire import Wire
from mizzle.errors import ConfigError

OPS_PER_ITERATION = 60_000
_PART = struct.Struct("<?q")
_NODE = struct.Struct("<II")


class Communicator:
    """Collectives between the ranks of a store, each with a deadline.

    Takes numpy arrays and torch tensors of float32, float64, float16, bfloat16, int32 and int64 (CUDA tensors by way
    of the host), and returns the same kind, shape and type, in memory of its own. Every call raises:

    - `CollectiveMismatch` when ranks call different things, on all ranks, before any sum: fix the program;
    - `CollectiveTimeout` naming the ranks that are missing: look at these first;
    - `PeerLost` when a peer failed or is gone: run again from where all ranks agree;
    - `ConfigError` for an argument that cannot be: says what to pass instead.

    After any of these the communicator is of no use any more: the peers have been told, open a new generation. One
    thread at a time; no `Exchange` beside it on the same store. As a context manager it ends with a barrier: before a
    store is closed, all peers must have read what its rank put last.

    Args:
        store: the door to the peers.
        timeout_s: seconds for each call as a whole, waiting for slow peers to make it included.
        first_op: number of the first call. A communicator over a generation that had one before goes on with its
            `next_op`, since names are never used twice.
    """

    def __init__(self, store: BlockStore, *, timeout_s: float = 60.0, first_op: int = 0) -> None:
        """See the class."""
        self.rank = store.rank
        self.size = store.size
        self.next_op = first_op
        self._store = store
        self._timeout_s = timeout_s
        self._staging = Staging(store)
        self._small = SmallReductions(self.size, self.rank)
        self._combiners: dict[tuple[int, torch.dtype, str], TreeCombiner] = {}

    def all_reduce(
        self, array: ArrayT, op: str = "sum", *, wire: str | Wire | None = None, timeout_s: float | None = None
    ) -> ArrayT:
        """The sum (mean, max, min) of all ranks' arrays, the same bits on every rank and from run to run.

        Two steps; 2 (N-1)/N of the array's bytes out of and into each rank. Up to 32 KB a rank, and 256 KB on all
        together, it is one step, and N-1 times the bytes. The order of additions is the canonical tree over ranks.
        16-bit arrays are added in fp32 and rounded once. Integers wrap around as in numpy.

        Args:
            array: any shape, the same on all ranks.
            op: "sum", "mean" (floats only), "max" or "min"; NaN wins over everything.
            wire: for float32 arrays: "bf16" or "fp16" halves the traffic; each array and the result are rounded.
            timeout_s: instead of the communicator's.
        """
        with self._begin("all_reduce", timeout_s) as collective:
            flat, form = flatten(array)
            formats = _declare(collective, form, op, wire, ALIGNMENT)
            if self._small.fits(len(flat), formats):
                return cast("ArrayT", form.restore(self._small.all_reduce(collective, flat, formats, op)))
            reduction, total = self._reduce(collective, flat, formats, op, ALIGNMENT)
            return cast("ArrayT", form.restore(reduction.share_result(total)))

    def reduce_scatter(
        self, array: ArrayT, op: str = "sum", *, wire: str | Wire | None = None, alignment: int = ALIGNMENT,
        timeout_s: float | None = None,
    ) -> tuple[ArrayT, Slice]:  # fmt: skip
        """This rank's slice of the reduction of the flattened arrays, and which slice that is. One step.

        Args:
            array: any shape, the same on all ranks.
            op: as in `all_reduce`.
            wire: as in `all_reduce`; the result is not rounded, since it does not travel.
            alignment: elements; with ``n`` elements a rank, and alignment ``n``, rank i gets part i.
            timeout_s: instead of the communicator's.

        Returns:
            (len(slice),) values, and the slice of the flattened array. It may be empty.
        """
        with self._begin("reduce_scatter", timeout_s) as collective:
            flat, form = flatten(array)
            formats = _declare(collective, form, op, wire, alignment)
            reduction, total = self._reduce(collective, flat, formats, op, alignment)
            piece = form.reshaped(len(total)).restore(total.to(form.dtype))
            return cast("ArrayT", piece), reduction.mine

    def all_reduce_shards(
        self, held: Mapping[int, ArrayT], num_shards: int, op: str = "sum", *, timeout_s: float | None = None
    ) -> ArrayT:
        """The reduction over shards, of which a rank may hold any number: its bits depend only on their values.

        Three steps. Whatever rank holds them, shards are combined in the order of the canonical tree over
        ``num_shards``; shards that nobody holds are skipped. A mean divides by the number of shards that are held.

        Args:
            held: shard number -> array, all of one shape and type; may be empty.
            num_shards: V, the same on all ranks.
            op: as in `all_reduce`.
            timeout_s: instead of the communicator's.

        Raises:
            ConfigError: nobody holds a shard, two ranks hold the same, or the own ones differ in shape or type.
        """
        with self._begin("all_reduce_shards", timeout_s) as collective:
            check_reduce_op(op)
            flats, form = _flatten_alike(held)
            nodes = cover(held, num_shards)
            if len(nodes) > MAX_NODES:
                raise ConfigError(
                    f"rank {self.rank} holds shards too scattered over {num_shards}: give it neighbouring ones"
                )
            collective.signature = Signature.of(
                "all_reduce_shards", op=op, shards=num_shards, kind=form and ("numpy" if form.is_numpy else "torch"),
                **_fields(form),
            )  # fmt: skip
            collective.tell(b"".join(_NODE.pack(*node) for node in nodes))
            heard = collective.listen()
            nodes_of = {rank: tuple(Node(*n) for n in _NODE.iter_unpack(rest)) for rank, (_, rest) in enumerate(heard)}
            _check_disjoint(nodes_of)
            form = form or _form_of(next(said for said, _ in heard if "dtype" in said.fields))
            refuse_mean_of_integers(op, form.dtype)
            formats = Formats.of(form.dtype, pre_added=True)
            reduction = Reduction(collective, formats, slices(form.num_elements, self.size), op)
            reduction.reserve(self._staging, self._parity, nodes_of)
            combiner = self._combiner(num_shards, formats.accumulator, op)
            for part, node in enumerate(nodes):
                leaves = {Node(s, s + 1): flats[s] for s in range(node.lo, node.hi)}
                combiner.combine(leaves, over_span(reduction.own[part], formats.contribution))
            total = reduction.combine(combiner, _trade_parts(reduction, nodes_of))
            return cast("ArrayT", form.restore(reduction.share_result(total)))

    def all_gather(self, array: ArrayT, *, timeout_s: float | None = None) -> list[ArrayT]:
        """Every rank's array, by rank. One step up to 32 KB, two above.

        Args:
            array: the same type and number of dimensions on all ranks, and the same shape but for the first
                dimension, which may differ (0 included).
            timeout_s: instead of the communicator's.
        """
        with self._begin("all_gather", timeout_s) as collective:
            flat, form = flatten(array)
            row = form.shape[1:]
            collective.signature = Signature.of(
                "all_gather", dtype=dtype_name(form.dtype), dims=len(form.shape), row=shape_text(row)
            )
            rows = form.shape[0] if form.shape else 1
            raw = _raw(flat) if _num_bytes(flat) <= EAGER_BYTES else b""
            collective.tell(_PART.pack(bool(raw), rows) + raw)
            if not raw:
                self._put_whole(collective, flat)
            forms: dict[int, Form] = {}
            flats: dict[int, torch.Tensor] = {}
            for rank, (_, rest) in enumerate(collective.listen()):
                is_eager, rows = _PART.unpack_from(rest)
                forms[rank] = form.reshaped(rows, *row) if form.shape else form
                if rank == self.rank:
                    flats[rank] = flat.clone()
                elif is_eager or not forms[rank].num_elements:
                    flats[rank] = _from_raw(rest[_PART.size :], form.dtype)
            flats |= self._fetch_whole(collective, {r: f for r, f in forms.items() if r not in flats})
            return [cast("ArrayT", forms[rank].restore(flats[rank])) for rank in range(self.size)]

    def broadcast(self, array: Array | None, root: int = 0, *, timeout_s: float | None = None) -> Array:
        """The root's array on every rank. One step up to 32 KB, two above; all bytes leave the root N-1 times.

        Args:
            array: at the root, what to send; it is handed back as it is. Elsewhere None, or an array of the same
                shape and type, which is not written to: it says what is expected, and in which form.
            root: the rank that sends.
            timeout_s: instead of the communicator's.
        """
        with self._begin("broadcast", timeout_s) as collective:
            flat, form = flatten(array) if array is not None else (None, None)
            if not 0 <= root < self.size or (self.rank == root and array is None):
                raise ConfigError(
                    f"broadcast from root {root} of {self.size} ranks: the root must be one of them and pass an array"
                )
            collective.signature = Signature.of("broadcast", root=root, **_fields(form))
            rest = b""
            if self.rank == root and flat is not None and form is not None:
                raw = _raw(flat) if _num_bytes(flat) <= EAGER_BYTES else b""
                rest = _PART.pack(bool(raw), form.is_numpy) + raw
            collective.tell(rest)
            if rest and len(rest) == _PART.size and flat is not None:
                self._put_whole(collective, flat)
            said, body = collective.listen()[root]
            if self.rank == root and array is not None:
                return array
            is_eager, is_numpy = _PART.unpack_from(body)
            form = form or _form_of(said, is_numpy=bool(is_numpy))
            if is_eager or not form.num_elements:
                return form.restore(_from_raw(body[_PART.size :], form.dtype))
            return form.restore(self._fetch_whole(collective, {root: form})[root])

    def barrier(self, *, timeout_s: float | None = None) -> None:
        """Return when every rank has called it. One step, no payload."""
        with self._begin("barrier", timeout_s) as collective:
            collective.tell()
            collective.listen()

    def __enter__(self) -> Self:
        """Itself: leaving the block waits until all peers have left it too, so that the store may be closed."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """A last barrier; after a failure, tell the peers instead."""
        if kind is None:
            self.barrier()
        else:
            self._store.abort(f"{kind.__name__}: {error}")

    @property
    def _parity(self) -> int:
        """Which staging region the call under way uses."""
        return self.next_op % 2

    @property
    def handover(self) -> Handover:
        """What ranks tell and give each other as bytes."""
        return Handover(self._begin)

    def _begin(self, call: str, timeout_s: float | None = None) -> Collective:
        op = self.next_op
        self.next_op += 1
        # All peers took part in call op-1, so they have finished op-2: its blocks and staging are free.
        self._store.drop(*divmod(max(0, op - 1), OPS_PER_ITERATION))
        return Collective(
            self._store, *divmod(op, OPS_PER_ITERATION), signature=Signature(call),
            timeout_s=self._timeout_s if timeout_s is None else timeout_s,
        )  # fmt: skip

    def _combiner(self, num_shards: int, dtype: torch.dtype, op: str) -> TreeCombiner:
        key = (num_shards, dtype, op)
        if key not in self._combiners:
            self._combiners[key] = TreeCombiner(num_shards, dtype, op)
        return self._combiners[key]

    def _reduce(
        self, collective: Collective, flat: torch.Tensor, formats: Formats, op: str, alignment: int
    ) -> tuple[Reduction, torch.Tensor]:
        """The first step of `all_reduce`: my slice, in the accumulator's type."""
        reduction = Reduction(collective, formats, slices(len(flat), self.size, alignment), op)
        reduction.reserve(self._staging, self._parity, {rank: (Node(rank, rank + 1),) for rank in range(self.size)})
        over_span(reduction.own[0], formats.contribution).copy_(flat)
        collective.tell(payload_for=lambda rank: reduction.cut(0, rank), dtype=BLOCK_DTYPES[formats.contribution])
        collective.ask(lambda rank: reduction.into[rank, 0])
        heard = collective.hear()
        sources = {Node(rank, rank + 1): reduction.source(block) for rank, (block, _, _) in heard.items()}
        sources[Node(self.rank, self.rank + 1)] = reduction.own_source(0)
        return reduction, reduction.combine(self._combiner(self.size, formats.accumulator, op), sources)

    def _put_whole(self, collective: Collective, flat: torch.Tensor) -> None:
        """Publish an array to everybody, from staging: the caller may change his own when the call returns."""
        if not len(flat):
            return
        [span] = self._staging.outgoing(self._parity, [_num_bytes(flat)])
        over_span(span, flat.dtype).copy_(flat)
        collective.put(Kind.RESULT, span, to=collective.others, dtype=BLOCK_DTYPES[flat.dtype], slice_=self.rank)

    def _fetch_whole(self, collective: Collective, forms: Mapping[int, Form]) -> dict[int, torch.Tensor]:
        """What `_put_whole` published on these ranks, copied out."""
        sizes = [form.num_elements * form.dtype.itemsize for form in forms.values()]
        pending: dict[int, Pending] = {
            rank: collective.fetch(Kind.RESULT, span, slice_=rank, source=rank)
            for rank, span in zip(forms, self._staging.incoming(sizes), strict=True)
        }
        flats: dict[int, torch.Tensor] = {}
        for (rank, block), size in zip(collective.await_all(pending).items(), sizes, strict=True):
            check_length(block, size)
            flats[rank] = over_payload(block.payload, forms[rank].dtype).clone()
        return flats


def _fields(form: Form | None) -> dict[str, str]:
    """The signature's fields for an array, none where it is not known."""
    return {} if form is None else {"dtype": dtype_name(form.dtype), "shape": shape_text(form.shape)}


def _declare(collective: Collective, form: Form, op: str, wire: str | Wire | None, alignment: int) -> Formats:
    """Sign the reduction of an array; the element types it goes through."""
    check_reduce_op(op)
    refuse_mean_of_integers(op, form.dtype)
    formats = Formats.of(form.dtype, wire)
    collective.signature = Signature.of(
        collective.signature.call, op=op, wire=dtype_name(formats.contribution), alignment=alignment, **_fields(form)
    )
    return formats


def _form_of(said: Signature, *, is_numpy: bool | None = None) -> Form:
    """The form that a peer's signature tells."""
    fields = said.fields
    as_numpy = fields.get("kind") == "numpy" if is_numpy is None else is_numpy
    return Form.on_host(shape_of(fields["shape"]), dtype_named(fields["dtype"]), is_numpy=as_numpy)


def _flatten_alike(held: Mapping[int, ArrayT]) -> tuple[dict[int, torch.Tensor], Form | None]:
    flats: dict[int, torch.Tensor] = {}
    form: Form | None = None
    for shard, array in held.items():
        flats[shard], found = flatten(array)
        form = form or found
        if (found.shape, found.dtype) != (form.shape, form.dtype):
            raise ConfigError(
                f"shard {shard} is {dtype_name(found.dtype)} {found.shape}, another of this rank "
                f"{dtype_name(form.dtype)} {form.shape}: all arrays must have one shape and type"
            )
    return flats, form


def _check_disjoint(nodes_of: Mapping[int, Sequence[Node]]) -> None:
    spread = sorted((*node, rank) for rank, nodes in nodes_of.items() for node in nodes)
    if not spread:
        raise ConfigError("no rank holds a shard: there is nothing to reduce")
    for (_, hi, rank), (lo, _, other) in pairwise(spread):
        if lo < hi:
            raise ConfigError(f"shard {lo} is held by rank {rank} and by rank {other}: a shard has one holder")


def _trade_parts(reduction: Reduction, nodes_of: Mapping[int, Sequence[Node]]) -> dict[Node, torch.Tensor]:
    """Send every rank its slice of the own nodes, and fetch the others' nodes; part 0 was the first round."""
    collective, rank = reduction.collective, reduction.rank
    for part in range(len(nodes_of[rank])):
        for other in collective.others:
            span: Span = reduction.cut(part, other)
            collective.put(
                Kind.CONTRIBUTION, span, to=(other,), dtype=BLOCK_DTYPES[reduction.formats.contribution],
                slice_=other, part=part + 1,
            )  # fmt: skip
    pending: dict[tuple[int, int], Pending] = {
        (other, part): collective.fetch(Kind.CONTRIBUTION, into, slice_=rank, source=other, part=part + 1)
        for (other, part), into in reduction.into.items()
    }
    sources = {node: reduction.own_source(part) for part, node in enumerate(nodes_of[rank])}
    for (other, part), fetch in pending.items():
        sources[nodes_of[other][part]] = reduction.source(collective.await_all({other: fetch})[other])
    return sources


def _num_bytes(flat: torch.Tensor) -> int:
    return flat.numel() * flat.element_size()


def _raw(flat: torch.Tensor) -> bytes:
    return flat.contiguous().view(torch.uint8).numpy().tobytes()


def _from_raw(body: bytes | memoryview, dtype: torch.dtype) -> torch.Tensor:
    return torch.frombuffer(bytearray(body), dtype=dtype) if body else torch.empty(0, dtype=dtype)
