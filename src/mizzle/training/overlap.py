"""Telling the exchange during backward which buckets are final, so that they travel while backward goes on.

Backward visits layers from the last to the first, and a bucket is final with its last gradient: the idea of DDP's
reducer (Li et al., VLDB 2020, section 3.2.3, https://arxiv.org/abs/2006.15704). Which parameters a bucket waits for is
known from the layout; no order is learnt, because any order will do.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch

from mizzle.collectives.slices import Slice
from mizzle.errors import ModelError
from mizzle.training.flat import FlatParameters

_log = logging.getLogger(__name__)


class BucketAnnouncer:
    """Counts the gradients that every bucket still waits for, in hooks that torch calls when one has been added up.

    Announced early is what holds nothing but parameters, each of which got its gradient once. Everything else is final
    only when backward has returned: buffers, parameters that got none, and those that get theirs in several parts, as
    under reentrant checkpointing: the first backward is only watched, to find them.

    Args:
        flat: layout of the model, whose parameters get hooks; `close` takes them away.
        buckets: of the exchange.
        announce: called with a bucket's number, from the thread that runs backward, at most once while `armed`.
    """

    def __init__(self, flat: FlatParameters, buckets: Sequence[Slice], announce: Callable[[int], None]) -> None:
        """See the class."""
        self._flat = flat
        self._announce = announce
        self._buckets_of: list[list[int]] = [
            [number for number, one in enumerate(buckets) if slot.start < one.stop and one.start < slot.stop]
            for slot in flat.slots
        ]
        self._waits = [0] * len(buckets)
        for numbers in self._buckets_of:
            for number in numbers:
                self._waits[number] += 1
        # Where a bucket ends is where buffers may begin; they are written when backward is over.
        self._late = {number for number, one in enumerate(buckets) if one.stop > flat.num_parameters}
        self._left: list[int] = []
        self._seen = [0] * len(flat.slots)
        self._armed = self._watched = False
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(partial(self._arrived, number))  # type: ignore[no-untyped-call]
            for number, parameter in enumerate(flat.parameters)
        ]

    @contextmanager
    def armed(self) -> Iterator[None]:
        """The body is the last backward that adds to the contribution: what becomes final in it is announced."""
        self._left = list(self._waits)
        for number in self._late:
            self._left[number] = 0  # counts down into the negative, and so is never announced here
        self._seen = [0] * len(self._seen)
        self._armed = True
        try:
            yield
        finally:
            self._armed = False
        if not self._watched:
            self._watched = True
            self._give_up_on([number for number, count in enumerate(self._seen) if count > 1])

    def close(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()

    def _arrived(self, number: int, _parameter: torch.Tensor) -> None:
        if not self._armed:
            return
        self._seen[number] += 1
        if not self._watched:
            return
        if self._seen[number] > 1:
            self._check_again(number)
            return
        for bucket in self._buckets_of[number]:
            self._left[bucket] -= 1
            if self._left[bucket] == 0:
                self._announce(bucket)

    def _check_again(self, number: int) -> None:
        """A gradient that grew after it was announced would be summed in part."""
        if any(self._left[bucket] == 0 for bucket in self._buckets_of[number]):
            raise ModelError(
                f"the gradient of parameter {self._flat.slots[number].name!r} came in several parts, but in one in the "
                "first iteration: checkpoint with use_reentrant=False, or train with RunConfig(overlap=False)"
            )

    def _give_up_on(self, repeated: Sequence[int]) -> None:
        for number in repeated:
            self._late.update(self._buckets_of[number])
        if repeated:
            _log.info(
                "parameter=%s and %d more get their gradients in parts: their buckets travel after backward",
                self._flat.slots[repeated[0]].name, len(repeated) - 1,
            )  # fmt: skip
