"""What an iteration costs, in closed form: t(N, K) = compute + launches / K + exchange + stragglers.

Launching is serial work of the driver, a per job and b per task: so it grows with N whatever the cluster does, which is
what BigDL met with two jobs an iteration (SoCC 2019, https://arxiv.org/abs/1804.05839) and what groups of K iterations
divide by K (Drizzle, SOSP 2017, https://doi.org/10.1145/3132747.3132750). The other parts K cannot change.

Assumed: all ranks run at once and alike; every rank sends and receives at full bandwidth at the same time, through a
network that does not congest; nothing overlaps. A prediction is a model until it has been measured: say so beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from mizzle.errors import ConfigError

_FP32_BYTES = 4
_PAGE_BYTES = 4096
# Of a bucket, what a rank owns of it: as `mizzle.collectives.layout` cuts the vector.
_SHORTEST_RANGE_BYTES, _LONGEST_RANGE_BYTES, _LEAST_BUCKETS, _MOST_BUCKETS = 64 * 1024, 1024 * 1024, 12, 512
_MEDIAN_TO_SIGMA = 1.4826  # of the absolute errors, where they are normal
_DISTURBED = 2.5  # sigmas from which on a point is left out


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchCost:
    """What the driver spends on one job of N tasks that do nothing: ``a_s + b_s * N``.

    Attributes:
        a_s: seconds per job.
        b_s: seconds per task.
        residual: of the fit, the root mean square of its relative errors, at disturbed points too: 0.02 is 2 %.
    """

    a_s: float
    b_s: float
    residual: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what costs less than nothing."""
        for name in ("a_s", "b_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} of a launch is {getattr(self, name)}: give seconds, at least 0")

    def seconds(self, tasks: int) -> float:
        """Of one job."""
        return self.a_s + self.b_s * tasks

    def relative_errors(self, points: Sequence[tuple[int, float]]) -> list[float]:
        """Predicted over measured, less 1, of every (tasks, seconds): 0.1 is foretold 10 % too long."""
        return [self.seconds(tasks) / seconds - 1 for tasks, seconds in points]


# Measured on a 2-core virtual machine that also ran the executors, warm, medians: a Spark job of 2 to 256 JVM tasks
# that do nothing (benchmarks/results/scheduling_2-core-vm_2026-11-22.md). A driver with cores of its own is faster: fit
# your own with `fit_launch`.
MEASURED_LAUNCH = LaunchCost(a_s=0.0218, b_s=0.00077)


def fit_launch(points: Sequence[tuple[int, float]]) -> LaunchCost:
    """Fit per-job and per-task cost to measured jobs.

    Least squares of *relative* errors, as a job of 256 tasks also scatters more than one of 2, without the points that
    lie far from what most of the points agree on: of the lines through two points, the one with the least median error
    (Rousseeuw 1984, https://doi.org/10.1080/01621459.1984.10477105). Neither cost may be negative.

    Args:
        points: (tasks, seconds) of jobs whose tasks do nothing; best a median each, at two or more numbers of tasks.

    Raises:
        ConfigError: there are not two different numbers of tasks, or some job took no time.
    """
    if len({tasks for tasks, _ in points}) < 2:
        raise ConfigError(f"a fit of launch costs needs two or more numbers of tasks, not {points!r}")
    for tasks, seconds in points:
        if tasks < 1 or not 0 < seconds < math.inf:
            raise ConfigError(f"a job of {tasks} tasks that took {seconds} s: give measured seconds of real jobs")
    # both sides divided by the seconds: a / s + b * n / s is to be 1
    rows = np.array([(1 / seconds, tasks / seconds) for tasks, seconds in points], dtype=np.float64)
    pairs = [rows[[i, j]] for (i, one), (j, other) in combinations(enumerate(points), 2) if one[0] != other[0]]
    costs = min((_least_squares(pair) for pair in pairs), key=lambda costs: float(np.median(_errors(rows, costs))))
    errors = _errors(rows, costs)
    few = 1 + 5 / max(1, len(points) - 2)  # few points: their median error is too good
    limit = _DISTURBED * max(1e-9, few * _MEDIAN_TO_SIGMA * float(np.median(errors)))
    a_s, b_s = _least_squares(rows[errors <= limit])
    errors = _errors(rows, (a_s, b_s))
    return LaunchCost(a_s=a_s, b_s=b_s, residual=float(np.sqrt(np.mean(errors**2))))


def _errors(rows: NDArray[np.float64], costs: tuple[float, float]) -> NDArray[np.float64]:
    """Absolute relative errors of a line."""
    errors: NDArray[np.float64] = np.abs(rows @ np.array(costs) - 1)
    return errors


def _least_squares(rows: NDArray[np.float64]) -> tuple[float, float]:
    """The two costs, none below 0, with which the rows, (points, 2), add up to 1 as nearly as they can."""
    ones = np.ones(len(rows))
    a_s, b_s = map(float, np.linalg.lstsq(rows, ones, rcond=None)[0])
    if a_s < 0:
        return 0.0, float(np.linalg.lstsq(rows[:, 1:], ones, rcond=None)[0][0])
    if b_s < 0:
        return float(np.linalg.lstsq(rows[:, :1], ones, rcond=None)[0][0]), 0.0
    return a_s, b_s


@dataclass(frozen=True, slots=True)
class IterationCost:
    """One iteration of all ranks, on average over a group.

    Attributes:
        compute_s: forward and backward of an average rank.
        scheduling_s: its part of launching the group.
        exchange_s: gradients to their slices, new weights back.
        stragglers_s: how much longer the slowest rank computes than the average one.
    """

    compute_s: float
    scheduling_s: float
    exchange_s: float
    stragglers_s: float

    @property
    def total_s(self) -> float:
        """Wall clock."""
        return self.compute_s + self.scheduling_s + self.exchange_s + self.stragglers_s

    @property
    def scheduling_share(self) -> float:
        """Of the wall clock; 0 where nothing takes any time."""
        return self.scheduling_s / (self.total_s or 1.0)


@dataclass(frozen=True, slots=True)
class MemoryPerRank:
    """The most bytes that one rank holds besides activations and rows (docs/collectives.md derives them).

    For one shard a rank, hosts whose ranks make one node of the sum, sharded optimizer state and no error feedback;
    without what ranges are rounded up to, which is a few percent of a small model.

    Attributes:
        weights: this rank's part of the vector that the models of its host share.
        gradients: the flat vector that ``.grad`` are views of.
        reduced: the own ranges of the sum.
        window: where gradients and rounded weights of other hosts arrive, and where own ones are rounded.
        master: the own ranges in fp32, where weights travel in 16 bits.
        optimizer: its state for the own ranges.
        recovery: on top, states of two boundaries in the arena, and copies of another rank's; no part of `sum`. Ranks
            in one executor alone have no copies, which is left out here.
    """

    weights: int
    gradients: int
    reduced: int
    window: int
    master: int
    optimizer: int
    recovery: int

    @property
    def sum(self) -> int:
        """What an iteration needs."""
        return self.weights + self.gradients + self.reduced + self.window + self.master + self.optimizer


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """The cost of training one model on ranks of one kind.

    Attributes:
        num_parameters: M; weights and gradients are fp32.
        compute_s: seconds of forward and backward of a rank's part of the batch, mean.
        bytes_per_s: a rank's bandwidth, in each direction.
        launch: what a job costs. The default is measured, on a small machine.
        latency_s: seconds from sending a message until a peer has it, without its bytes. 0.2 ms is an assumption: a
            round trip through one network switch, and some work on both sides.
        sigma_s: standard deviation of the compute time between ranks. 0: none straggles.
    """

    num_parameters: int
    compute_s: float
    bytes_per_s: float
    launch: LaunchCost = MEASURED_LAUNCH
    latency_s: float = 0.0002
    sigma_s: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        for name, least in (("num_parameters", 1), ("compute_s", 0), ("latency_s", 0), ("sigma_s", 0)):
            if not least <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}: give at least {least}")
        if not self.bytes_per_s > 0:
            raise ConfigError(f"bytes_per_s is {self.bytes_per_s}: give a bandwidth above 0")

    def iteration(self, ranks: int, group_size: int, *, jobs: int = 1) -> IterationCost:
        """Cost of an iteration.

        Args:
            ranks: N, the tasks of a job, at least 1.
            group_size: K, iterations per ``jobs`` jobs, at least 1. 1 is plain bulk-synchronous Spark.
            jobs: J, that Spark runs for a group: 1, or the 2 per iteration of BigDL (with K = 1).
        """
        for name, value in (("ranks", ranks), ("group_size", group_size), ("jobs", jobs)):
            if value < 1:
                raise ConfigError(f"{name} is {value}: give at least 1")
        return IterationCost(
            self.compute_s, jobs * self.launch.seconds(ranks) / group_size, self.exchange_s(ranks),
            self.stragglers_s(ranks),
        )  # fmt: skip

    def exchange_s(self, ranks: int) -> float:
        """Direct slices: in each of two phases a rank sends N - 1 messages of M / N elements, and receives as many."""
        num_bytes = self.num_parameters * _FP32_BYTES
        return 2 * (ranks - 1) * self.latency_s + 2 * (ranks - 1) / ranks * num_bytes / self.bytes_per_s

    def stragglers_s(self, ranks: int) -> float:
        """What the slowest of N normally distributed ranks takes beyond the mean: at most sigma * sqrt(2 ln N).

        The bound is reached only as N grows: their mean lies 11 % below it at 4096 ranks, 19 % at 64, 52 % at 2.
        """
        return self.sigma_s * math.sqrt(2 * math.log(ranks))

    def group_size_for(self, ranks: int, share: float = 0.01) -> int:
        """The smallest K with which scheduling takes at most that share of the wall clock.

        Raises:
            ConfigError: iterations take no time at all, so that no K is enough.
        """
        if not 0 < share < 1:
            raise ConfigError(f"share is {share}: give one between 0 and 1, such as 0.01")
        one = self.iteration(ranks, 1)
        inside_s = one.total_s - one.scheduling_s
        if one.scheduling_s > 0 and inside_s <= 0:
            raise ConfigError(
                "compute, exchange and stragglers all take 0 s: no group size makes scheduling a small part"
            )
        if one.scheduling_s == 0:
            return 1
        size = max(1, math.ceil(one.scheduling_s * (1 - share) / (share * inside_s)))
        # rounding may leave the quotient a hair above a whole number
        fits = size > 1 and self.iteration(ranks, size - 1).scheduling_share <= share
        return size - 1 if fits else size

    def memory(
        self, ranks: int, *, hosts: int | None = None, optimizer_state: int = 2, narrow_weights: bool = False
    ) -> MemoryPerRank:
        """Memory of one rank, at most.

        Args:
            ranks: N.
            hosts: H, that the ranks are spread over evenly; None: each has one of its own.
            optimizer_state: numbers that the optimizer keeps per parameter: 2 for Adam, 1 for SGD with momentum.
            narrow_weights: whether weights travel in 16 bits.
        """
        hosts = ranks if hosts is None else hosts
        if ranks < 1 or optimizer_state < 0:
            raise ConfigError(f"{ranks} ranks, {optimizer_state} numbers per parameter: give at least 1 and 0")
        if hosts < 1 or ranks % hosts:
            raise ConfigError(f"{ranks} ranks do not spread evenly over {hosts} hosts: give a divisor of the ranks")
        vector = self.num_parameters * _FP32_BYTES
        part = -(-self.num_parameters // ranks) * _FP32_BYTES
        rounded = part // 2 if narrow_weights else 0
        state = max(_PAGE_BYTES, 1 << ((1 + optimizer_state) * part - 1).bit_length())
        return MemoryPerRank(
            weights=-(-vector * hosts // ranks), gradients=vector, reduced=part,
            window=_window(part, hosts) + rounded, master=part if narrow_weights else 0,
            optimizer=optimizer_state * part, recovery=(2 if ranks == 1 else 4) * state,
        )  # fmt: skip


def _window(part: int, hosts: int) -> int:
    """Room for eight ranges from every other host if they fit into 2/N of the vector, for two in any case."""
    longest = max(_LONGEST_RANGE_BYTES, part // _MOST_BUCKETS)
    each = (hosts - 1) * min(part, longest, max(_SHORTEST_RANGE_BYTES, part // _LEAST_BUCKETS))
    return min(8 * each, max(2 * part, 2 * each))
