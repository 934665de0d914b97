"""What leaves an island: its ranks' contributions, added up along the tree, and rounded where the wire is narrow.

Sums and rounded values are made in the sender's own gradients, in ranges that nobody else reads: no memory is needed
for them. With error feedback what rounding took away is kept and added the next time (Seide et al., Interspeech 2014,
https://doi.org/10.21437/Interspeech.2014-274; Karimireddy et al., ICML 2019, https://arxiv.org/abs/1901.09847).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from mizzle.blocks.region import Region, Span
from mizzle.collectives.combine import PIECE_ELEMENTS, TreeCombiner
from mizzle.collectives.routes import Held, Parcel
from mizzle.collectives.slices import Slice
from mizzle.collectives.tree import Node
from mizzle.collectives.views import over_region
from mizzle.collectives.wire import Wire

_FP32_BYTES = 4
_FP16_MAX = 65504.0


class Outgoing:
    """Makes the bytes of parcels.

    Args:
        wire: how contributions travel.
        error_feedback: whether what rounding takes away is added the next time.
        combiner: adds in tree order.
        own: region and (M,) fp32 vector of each of the own nodes.
    """

    def __init__(
        self, wire: Wire, combiner: TreeCombiner, own: Sequence[tuple[Region, torch.Tensor]], *, error_feedback: bool
    ) -> None:
        """See the class."""
        self._wire = wire
        self._combiner = combiner
        self._own = own
        self._rounded = torch.empty(PIECE_ELEMENTS if wire is not Wire.FP32 else 0, dtype=wire.dtype)
        self._keeps_errors = error_feedback and wire is not Wire.FP32
        self._errors: dict[tuple[int, int, int], torch.Tensor] = {}

    @property
    def error_bytes(self) -> int:
        """Memory that error feedback holds."""
        return sum(error.nbytes for error in self._errors.values())

    def make(self, parcel: Parcel, cut: Slice, vectors: Mapping[Held, torch.Tensor]) -> Span | None:
        """A parcel's bytes for a range of its owner.

        Args:
            parcel: what to send.
            cut: the range, not empty.
            vectors: (M,) of every piece that has samples this time; the others are absent from the sum.

        Returns:
            Where they lie: in this rank's gradients. None: no piece has samples.
        """
        sources: dict[Node, torch.Tensor] = {
            piece.node: vectors[piece][cut.start : cut.stop] for piece in parcel.pieces if piece in vectors
        }
        if not sources:
            return None
        region, vector = self._own[parcel.own_part]
        target = vector[cut.start : cut.stop]
        if len(parcel.pieces) > 1:
            self._combiner.combine(sources, target)
        if self._wire is Wire.FP32:
            return Span(region, *cut.of_bytes(_FP32_BYTES))
        self._round(target, region, cut, (parcel.owner, parcel.number, cut.start))
        return Span(region, cut.start * _FP32_BYTES, len(cut) * self._wire.element_bytes)

    def _round(self, values: torch.Tensor, region: Region, cut: Slice, key: tuple[int, int, int]) -> None:
        """Overwrite fp32 values, from the front, by their rounded form: it is shorter, so it never overtakes them."""
        if self._keeps_errors:
            error = self._errors.setdefault(key, torch.zeros(len(values)))
            values.add_(error)
            if self._wire is Wire.FP16:
                values.clamp_(-_FP16_MAX, _FP16_MAX)  # an error may add what the caller's look did not see
            error.copy_(values)
        packed = over_region(region, self._wire.dtype, len(values), cut.start * _FP32_BYTES)
        for start in range(0, len(values), PIECE_ELEMENTS):
            stop = min(len(values), start + PIECE_ELEMENTS)
            rounded = self._rounded[: stop - start]
            self._wire.encode(values[start:stop], rounded)
            if self._keeps_errors:
                # What is not finite makes the caller leave the iteration out; it must not come back with the next one.
                error[start:stop].sub_(rounded).nan_to_num_(0.0, 0.0, 0.0)
            packed[start:stop].copy_(rounded)
