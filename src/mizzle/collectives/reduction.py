"""The common part of the reducing collectives on arrays: collect contributions, combine my slice, share results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from mizzle.blocks.ids import Kind
from mizzle.blocks.region import Span
from mizzle.blocks.store import Fetched, Pending
from mizzle.collectives.arrays import BLOCK_DTYPES, Formats, dtype_name
from mizzle.collectives.collective import Collective, check_length
from mizzle.collectives.combine import TreeCombiner
from mizzle.collectives.slices import Slice
from mizzle.collectives.staging import Staging
from mizzle.collectives.tree import Node
from mizzle.collectives.views import over_payload, over_span
from mizzle.errors import CollectiveMismatch, ConfigError


class Reduction:
    """One reducing collective under way.

    Args:
        collective: its names and deadline.
        formats: element types.
        cuts: the slice of every rank.
        op: "sum", "mean", "max" or "min".
    """

    def __init__(self, collective: Collective, formats: Formats, cuts: Sequence[Slice], op: str) -> None:
        """See the class."""
        self.collective = collective
        self.formats = formats
        self.cuts = cuts
        self.op = op
        self.rank = collective.store.rank
        self.mine = cuts[self.rank]

    def reserve(self, staging: Staging, parity: int, nodes_of: Mapping[int, Sequence[Node]]) -> None:
        """Set memory aside: own contributions and result, everybody's contributions to my slice, their results."""
        width, result_width = self.formats.contribution.itemsize, self.formats.result.itemsize
        num_elements = self.cuts[-1].stop
        parts = [(rank, part) for rank in self.collective.others for part in range(len(nodes_of[rank]))]
        sizes = [num_elements * width] * len(nodes_of[self.rank]) + [len(self.mine) * result_width]
        *self.own, self.result = staging.outgoing(parity, sizes)
        sizes = [len(self.mine) * width] * len(parts)
        sizes += [len(self.cuts[rank]) * result_width for rank in self.collective.others]
        spans = staging.incoming(sizes)
        self.into = dict(zip(parts, spans[: len(parts)], strict=True))
        self.results_into = dict(zip(self.collective.others, spans[len(parts) :], strict=True))

    def cut(self, part: int, rank: int) -> Span:
        """A rank's slice of an own contribution."""
        own = self.own[part]
        offset, length = self.cuts[rank].of_bytes(self.formats.contribution.itemsize)
        return Span(own.region, own.offset + offset, length)

    def own_source(self, part: int) -> torch.Tensor:
        """My slice of an own contribution, as it would have travelled."""
        return over_span(self.cut(part, self.rank), self.formats.contribution)

    def source(self, block: Fetched) -> torch.Tensor:
        """My slice of a peer's contribution."""
        if len(self.mine):
            self._check_dtype(block, self.formats.contribution)
        check_length(block, len(self.mine) * self.formats.contribution.itemsize)
        return over_payload(block.payload, self.formats.contribution)

    def combine(self, combiner: TreeCombiner, sources: Mapping[Node, torch.Tensor]) -> torch.Tensor:
        """My slice of the reduction over all sources, in the accumulator's type, not rounded yet."""
        total = torch.empty(len(self.mine), dtype=self.formats.accumulator)
        combiner.combine(sources, total)
        if self.op == "mean":
            total.div_(sum(node.hi - node.lo for node in sources))
        return total

    def share_result(self, total: torch.Tensor) -> torch.Tensor:
        """Round my slice, hand it to everybody, and take theirs: the whole vector (M,), in the native type.

        The owner too uses what was rounded, so that all ranks hold the same bits.
        """
        collective, dtype = self.collective, self.formats.result
        rounded = over_span(self.result, dtype)
        rounded.copy_(total)
        collective.put(Kind.RESULT, self.result, to=collective.others, dtype=BLOCK_DTYPES[dtype], slice_=self.rank)
        pending: dict[int, Pending] = {
            rank: collective.fetch(Kind.RESULT, self.results_into[rank], slice_=rank, source=rank)
            for rank in collective.others
        }
        whole = torch.empty(self.cuts[-1].stop, dtype=self.formats.native)
        whole[self.mine.start : self.mine.stop].copy_(rounded)
        for rank, block in collective.await_all(pending).items():
            cut = self.cuts[rank]
            check_length(block, len(cut) * dtype.itemsize)
            whole[cut.start : cut.stop].copy_(over_payload(block.payload, dtype))
        return whole

    def _check_dtype(self, block: Fetched, dtype: torch.dtype) -> None:
        if block.header.dtype != BLOCK_DTYPES[dtype]:
            raise CollectiveMismatch(
                f"{block.header.block} holds {block.header.dtype.name} where {dtype_name(dtype)} was agreed"
            )


def refuse_mean_of_integers(op: str, dtype: torch.dtype) -> None:
    """A mean of integers is not an integer.

    Raises:
        ConfigError: says to convert first.
    """
    if op == "mean" and not dtype.is_floating_point:
        raise ConfigError(
            f"mean of {dtype_name(dtype)} is not exact: convert to float64 first, or use op='sum' and divide"
        )
