"""One shard's forward and backward: its gradients come into the vector that travels.

Knows nothing of ranks or peers. The loss is scaled by the rows of the shard, so that adding shards and dividing by
all rows gives the mean over the whole batch, however unevenly the rows fall.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mizzle.collectives.timeline import NO_TIMELINE, Timeline
from mizzle.errors import ModelError
from mizzle.training.buffers import ModelBuffers
from mizzle.training.flat import FlatParameters
from mizzle.training.gradients import LandingGradients
from mizzle.training.overlap import BucketAnnouncer
from mizzle.training.report import FINITE, ShardReport
from mizzle.training.spec import ShardRows, TrainingSpec


def stream_seed(seed: int, shard: int, iteration: int) -> int:
    """Seed of torch's generator for one shard in one iteration: the numbers depend on nothing else."""
    words = np.random.SeedSequence((seed, shard, iteration)).generate_state(1, np.uint64)
    return int(words[0]) >> 1  # torch takes signed 64 bits


@contextmanager
def random_stream(seed: int, shard: int, iteration: int) -> Iterator[None]:
    """Run the body with torch's CPU generator on its own stream; the caller's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream_seed(seed, shard, iteration))
        yield


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run the body with so many intra-op threads; afterwards the caller has its own number again."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class ShardCompute:
    """Forward and backward of shards over one model.

    Args:
        spec: of the run.
        model: bound to the weights; put into training mode, and gets hooks that `close` takes away.
        flat: its layout.
        buffers: its buffers.
        guard: held while a shard computes. torch's random generator belongs to the process: ranks that are threads
            of one process must be given the same lock, and so take turns. A rank with a process of its own needs none.
        timeline: where its parts are noted.
    """

    def __init__(
        self,
        spec: TrainingSpec,
        model: torch.nn.Module,
        flat: FlatParameters,
        buffers: ModelBuffers,
        guard: AbstractContextManager[Any] | None = None,
        *,
        timeline: Timeline = NO_TIMELINE,
    ) -> None:
        """See the class."""
        self._spec = spec
        self._model = model.train()
        self._flat = flat
        self._buffers = buffers
        self._gradients = LandingGradients(flat)
        self._guard = guard if guard is not None else nullcontext()
        self._timeline = timeline
        self.changed: set[int] = set()
        self.others: dict[int, dict[int, bytes]] = {}

    def begin_iteration(self) -> None:
        """Forget what the last iteration's shards made of the buffers."""
        self.changed.clear()
        self.others.clear()

    def close(self) -> None:
        """Take the hooks off the model."""
        self._gradients.close()

    def run(
        self,
        rows: ShardRows,
        positions: npt.NDArray[np.int64],
        iteration: int,
        shard: int,
        into: torch.Tensor,
        announcer: BucketAnnouncer | None = None,
    ) -> ShardReport:
        """Compute one shard's contribution.

        Args:
            rows: the shard.
            positions: (n,) int64, n > 0, rows of this iteration.
            iteration: of the run.
            shard: its number.
            into: (M,) fp32; overwritten with the gradient of (loss * n), and the float buffers after the forward.
            announcer: told of the last backward, where nothing is added to ``into`` afterwards.

        Raises:
            ModelError: the loss is not a scalar that can be differentiated, gradients went elsewhere, or the model
                wrote to its parameters.
        """
        self._buffers.begin()
        self._gradients.begin(into)
        loss_sum, versions = 0.0, self._flat.versions()
        *earlier, last = np.array_split(positions, min(self._spec.accumulate, len(positions)))
        with self._guard, random_stream(self._spec.seed, shard, iteration):
            for part in earlier:
                loss_sum += self._micro_batch(rows, part, shard)
            loss_sum += self._micro_batch(rows, last, shard, announcer)
        self._gradients.end()
        self._flat.check_unwritten(versions)
        changed, self.others[shard] = self._buffers.end(into)
        self.changed |= changed
        # buffers are not looked at: an attention mask is full of -inf
        gradient = into[: self._flat.num_parameters]
        position, peak = survey(gradient)
        return ShardReport(shard, len(positions), loss_sum, position, peak)

    def _micro_batch(
        self,
        rows: ShardRows,
        positions: npt.NDArray[np.int64],
        shard: int,
        announcer: BucketAnnouncer | None = None,
    ) -> float:
        """Add one micro-batch's gradients; its loss times its rows."""
        with self._timeline.span("rows", "compute", shard=shard):
            inputs, targets = rows.batch(positions)
        with (
            self._timeline.span("forward", "compute", shard=shard),
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._spec.autocast),
        ):
            output = self._model(*inputs) if isinstance(inputs, tuple) else self._model(inputs)
            loss = self._spec.loss(output, targets)
        check_loss(loss)
        armed = nullcontext() if announcer is None else announcer.armed()
        with self._timeline.span("backward", "compute", shard=shard), armed:
            # cast first: a 16-bit loss would be rounded again by the product
            (loss.float() * len(positions)).backward()  # type: ignore[no-untyped-call]
        return float(loss.detach().double()) * len(positions)


def check_loss(loss: object) -> None:
    """Refuse a loss that backward cannot start from.

    Raises:
        ModelError: not a tensor, not a scalar, not floating point, or not connected to a trainable parameter.
    """
    if not isinstance(loss, torch.Tensor):
        raise ModelError(f"the loss returned {type(loss).__name__}: return a scalar tensor")
    if loss.dim() != 0:
        raise ModelError(f"the loss returned a tensor of shape {tuple(loss.shape)}: reduce it to a scalar, .mean()")
    if not loss.is_floating_point():
        raise ModelError(f"the loss returned {loss.dtype}: it must be a floating-point scalar")
    if not loss.requires_grad:
        raise ModelError(
            "the loss does not depend on any trainable parameter: check for .detach(), .item() or torch.no_grad() "
            "in the model or the loss"
        )


def survey(vector: torch.Tensor, limit: float = math.inf) -> tuple[int, float]:
    """Look at every element once.

    Returns:
        Position of the first element that is NaN or not strictly within (-limit, limit), `FINITE` for none; and the
        largest magnitude (of no meaning when there is such an element).
    """
    if vector.numel() == 0:
        return FINITE, 0.0
    low, high = torch.aminmax(vector)  # one pass without a copy; NaN comes through
    peak = max(-float(low), float(high))
    if -limit < float(low) and float(high) < limit:
        return FINITE, peak
    return int((~(vector.abs() < limit)).to(torch.uint8).argmax()), peak
