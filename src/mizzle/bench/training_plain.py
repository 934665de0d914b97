"""The baselines of `mizzle bench training`: the same training in plain PyTorch, alone and as DDP over gloo.

Imports torch, but neither pyspark nor the rest of mizzle: it is loaded in the processes that TorchDistributor starts.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

NUM_CLASSES = 1000
SEED = 7
OPTIMIZER = partial(torch.optim.SGD, lr=1e-3, momentum=0.9)
"""Of all systems. Labels are random: a small learning rate keeps losses finite, whatever is learnt."""
_BATCHES = 4
"""Mini-batches of a rank that lie in memory and come again."""
_COMPUTE_ONLY = 5
"""Iterations at most, and at least one, by which DDP's compute is told from its exchange."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What is trained, the same for all systems.

    Attributes:
        name: as it is typed.
        model: makes the model; a class or function of a module.
        loss: ``loss(output, targets)``.
        shape: of one row's input.
        group_size: iterations of one of mizzle's groups: a second or more, so that their ends weigh little.
    """

    name: str
    model: Callable[[], torch.nn.Module]
    loss: Callable[[Any, torch.Tensor], torch.Tensor]
    shape: tuple[int, ...]
    group_size: int

    def fresh_model(self) -> torch.nn.Module:
        """The model as all systems start with it."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            return self.model()

    def num_parameters(self) -> int:
        """Counted without making any."""
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in self.model().parameters())


@dataclass(frozen=True, slots=True)
class TrainingSamples:
    """What a series gave.

    Attributes:
        iteration_s: seconds of timed iterations, all of them inclusive.
        compute_s: seconds of forward and backward, and of taking the rows; mean over ranks, as the next two.
        exchange_s: seconds by which the exchange made iterations longer.
        hidden_s: seconds of exchange beside compute, which cost no time of their own.
        finite: whether all losses were.
        agreed: whether all ranks had the same weights in the end.
    """

    iteration_s: list[float]
    compute_s: list[float]
    exchange_s: list[float]
    hidden_s: list[float]
    finite: bool
    agreed: bool


@dataclass(frozen=True, slots=True)
class PlainSeries:
    """Iterations in a row, in plain PyTorch.

    Attributes:
        workload: what is trained.
        batch: rows of a rank in an iteration.
        threads: of torch, in each rank.
        warmup: iterations before the clock counts.
        repeats: timed iterations.
    """

    workload: Workload
    batch: int
    threads: int
    warmup: int
    repeats: int

    @property
    def compute_only(self) -> int:
        """Iterations that measure DDP's compute."""
        return min(_COMPUTE_ONLY, self.repeats)


def row(workload: Workload, number: int) -> tuple[np.ndarray, int]:
    """Input (workload.shape, fp32) and class of a row: noise that depends on the number alone."""
    random = np.random.default_rng((SEED, number))
    return random.standard_normal(workload.shape, dtype=np.float32), int(random.integers(NUM_CLASSES))


def checksum(model: torch.nn.Module) -> int:
    """CRC-32 of all parameters: ranks that agree in it have the same bits."""
    value = 0
    for parameter in model.parameters():
        value = zlib.crc32(parameter.detach().contiguous().numpy().data.cast("B"), value)
    return value


def train_alone(series: PlainSeries) -> TrainingSamples:
    """One process, one replica of the model, nobody to exchange with."""
    replica = _Replica(series, series.workload.fresh_model(), rank=0)
    replica.run(series.warmup)
    seconds, compute_s = replica.run(series.repeats)
    none = [0.0] * len(seconds)
    return TrainingSamples(seconds, compute_s, none, none, finite=replica.finite, agreed=True)


def train_ddp(series: PlainSeries) -> TrainingSamples:
    """One rank of DDP over gloo with torch's defaults; TorchDistributor has set the environment.

    Compute is measured by further iterations without exchange, right behind the timed ones, on all ranks at once;
    ``exchange_s`` is what forward and backward take longer with it. ``hidden_s`` is DDP's own figure: seconds in which
    buckets were under way while backward computed.

    Returns:
        Of all ranks, on every rank: an iteration takes as long as its slowest rank.
    """
    torch_dist: Any = dist  # torch's type stubs are incomplete
    torch_dist.init_process_group("gloo")
    try:
        rank, size = torch_dist.get_rank(), torch_dist.get_world_size()
        model = DistributedDataParallel(series.workload.fresh_model())
        replica = _Replica(series, model, rank)
        replica.run(series.warmup)
        seconds, both_s = replica.run(series.repeats)
        hidden_s = _overlapped_s(model)
        mine = checksum(model)
        _, compute_s = replica.run(series.compute_only, model.no_sync)
        told: list[Any] = [None] * size
        torch_dist.all_gather_object(told, (seconds, both_s, compute_s, hidden_s, mine, replica.finite))
    finally:
        torch_dist.destroy_process_group()
    return combine(told)


def combine(told: list[tuple[list[float], list[float], list[float], float, int, bool]]) -> TrainingSamples:
    """One series from what the ranks of DDP saw: seconds of iterations, forward and backward with and without exchange.

    Args:
        told: by rank: both lists, that without exchange, seconds hidden per iteration, checksum, whether finite.
    """
    seconds, both_s, compute_s, hidden_s, checksums, finite = zip(*told, strict=True)
    compute = [_mean(of_ranks) for of_ranks in zip(*compute_s, strict=True)]
    usual_s = float(np.median(compute))
    return TrainingSamples(
        iteration_s=[max(of_ranks) for of_ranks in zip(*seconds, strict=True)],
        compute_s=compute,
        exchange_s=[max(0.0, _mean(of_ranks) - usual_s) for of_ranks in zip(*both_s, strict=True)],
        hidden_s=[_mean(hidden_s)],
        finite=all(finite),
        agreed=len(set(checksums)) == 1,
    )


class _Replica:
    """One process's copy of the model, with mini-batches in memory."""

    def __init__(self, series: PlainSeries, model: torch.nn.Module, rank: int) -> None:
        torch.set_num_threads(series.threads)
        self._loss = series.workload.loss
        self._model = model.train()
        self._optimizer = OPTIMIZER(model.parameters())
        self._batches = list(_batches(series, rank))
        self._done = 0
        self.finite = True

    def run(
        self, iterations: int, around: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> tuple[list[float], list[float]]:
        """Train on.

        Args:
            iterations: how many.
            around: entered around forward and backward.

        Returns:
            Seconds of each iteration; of these, what forward and backward took.
        """
        seconds, both_s = [], []
        for _ in range(iterations):
            begun = time.perf_counter()
            inputs, targets = self._batches[self._done % len(self._batches)]
            self._done += 1
            with around():
                loss = self._loss(self._model(inputs), targets)
                loss.backward()  # type: ignore[no-untyped-call]
            computed = time.perf_counter()
            self._optimizer.step()
            self._optimizer.zero_grad()
            seconds.append(time.perf_counter() - begun)
            both_s.append(computed - begun)
            self.finite = self.finite and math.isfinite(loss.item())
        return seconds, both_s


def _batches(series: PlainSeries, rank: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for first in range(rank * _BATCHES, (rank + 1) * _BATCHES):
        rows = [row(series.workload, first * series.batch + place) for place in range(series.batch)]
        yield torch.from_numpy(np.stack([inputs for inputs, _ in rows])), torch.tensor([label for _, label in rows])


def _overlapped_s(model: DistributedDataParallel) -> float:
    """What DDP says of its last iterations: seconds of each in which the exchange ran beside backward."""
    ask: Any = model._get_ddp_logging_data  # noqa: SLF001 - torch has no public way to ask
    told = ask()
    return float(told.get("avg_backward_compute_comm_overlap_time", 0)) / 1e9


def _mean(values: tuple[float, ...]) -> float:
    return sum(values) / len(values)
