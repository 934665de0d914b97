"""A driver, executors and ranks as discrete events, to see where the closed form of `mizzle.scheduling.cost` holds.

The driver is one server that does one thing at a time: it begins a job (a per job), launches its tasks one after the
other and takes in their results as they come (together b per task). Ranks compute for random times and exchange. In a
group of K iterations they wait for each other, in every one, and for the driver only at its beginning and end; in
plain Spark every iteration is J jobs, and its tasks know nothing of each other.

What the closed form leaves out is seen here: launching that overlaps with computing, results that arrive while others
still compute, more tasks than slots, rare pauses, and how single iterations scatter.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mizzle.errors import ConfigError
from mizzle.scheduling.cost import LaunchCost

_LAUNCH, _RESULT = range(2)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedCluster:
    """What is simulated.

    Attributes:
        launch: what a job costs the driver.
        executors: their number; with ``slots`` it says how many tasks run at once.
        slots: task slots per executor.
        result_share: how much of the cost per task comes after the task has ended, between 0 and 1.
        compute_s: mean seconds of forward and backward on a rank.
        sigma_s: their standard deviation, normal and never below 0 s.
        exchange_s: seconds of an exchange, once all ranks are there.
        pause_probability: that a rank pauses in an iteration (garbage collection, a busy neighbour).
        pause_s: how long it then does.
    """

    launch: LaunchCost
    executors: int
    slots: int = 1
    result_share: float = 0.5
    compute_s: float = 0.0
    sigma_s: float = 0.0
    exchange_s: float = 0.0
    pause_probability: float = 0.0
    pause_s: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        for name, least in (("executors", 1), ("slots", 1), ("compute_s", 0), ("sigma_s", 0), ("exchange_s", 0),
                            ("pause_s", 0)):  # fmt: skip
            if getattr(self, name) < least:
                raise ConfigError(f"{name} of the simulated cluster is {getattr(self, name)}: give at least {least}")
        for name in ("result_share", "pause_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} of the simulated cluster is {getattr(self, name)}: give 0 to 1")


@dataclass(frozen=True, slots=True)
class Simulated:
    """What a simulation found.

    Attributes:
        iterations_s: seconds of every iteration, (iterations,): from the end of the one before to its own end. The
            driver's work before and after a group belongs to the group's first and last iteration.
        driver_busy_s: seconds in which the driver worked.
        jobs: that it ran.
    """

    iterations_s: NDArray[np.float64]
    driver_busy_s: float
    jobs: int

    @property
    def mean_s(self) -> float:
        """Seconds per iteration."""
        return float(self.iterations_s.mean())

    def quantile_s(self, which: float) -> float:
        """Seconds that this part of the iterations does not exceed: 0.99 is the slowest of a hundred."""
        return float(np.quantile(self.iterations_s, which))


def simulate_groups(cluster: SimulatedCluster, ranks: int, group_size: int, iterations: int, *, seed: int) -> Simulated:
    """Iterations in groups of K: one job a group, whose tasks are the ranks.

    Args:
        cluster: what it runs on.
        ranks: N; all of them must run at once.
        group_size: K; the last group may be shorter.
        iterations: of the run.
        seed: of the random times.

    Raises:
        ConfigError: there are fewer slots than ranks, so that a group could never begin.
    """
    if ranks > cluster.executors * cluster.slots:
        raise ConfigError(f"{ranks} ranks need as many slots; there are {cluster.executors * cluster.slots}")
    generator = np.random.default_rng(seed)
    now, jobs = 0.0, 0
    ends: list[float] = []
    for first in range(0, iterations, group_size):
        compute = _compute(cluster, generator, (min(group_size, iterations - first), ranks))
        started = _started(cluster, now, ranks)
        ready = started
        for of_rank in compute:  # the exchange is over when the slowest rank has come
            end = float((ready + of_rank).max()) + cluster.exchange_s
            ready = np.full(ranks, end)
            ends.append(end)
        now = ends[-1] = _job(cluster, now, ready - started)
        jobs += 1
    return _simulated(cluster, ends, ranks, jobs)


def simulate_plain(cluster: SimulatedCluster, tasks: int, jobs: int, iterations: int, *, seed: int) -> Simulated:
    """Plain bulk-synchronous Spark: J jobs an iteration, the first computes, the last exchanges.

    Args:
        cluster: what it runs on.
        tasks: N; those beyond the slots wait for one.
        jobs: J, 1 or the 2 of BigDL.
        iterations: of the run.
        seed: of the random times.
    """
    generator = np.random.default_rng(seed)
    now = 0.0
    ends: list[float] = []
    for _ in range(iterations):
        bodies = np.zeros((jobs, tasks))
        bodies[0] += _compute(cluster, generator, (1, tasks))[0]
        bodies[-1] += cluster.exchange_s
        for of_task in bodies:
            now = _job(cluster, now, of_task)
        ends.append(now)
    return _simulated(cluster, ends, tasks, jobs * iterations)


def _simulated(cluster: SimulatedCluster, ends: Sequence[float], tasks: int, jobs: int) -> Simulated:
    return Simulated(np.diff(np.array([0.0, *ends])), jobs * cluster.launch.seconds(tasks), jobs)


def _compute(cluster: SimulatedCluster, generator: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Seconds of every iteration on every rank, (iterations, ranks)."""
    seconds: NDArray[np.float64] = np.maximum(0.0, generator.normal(cluster.compute_s, cluster.sigma_s, shape))
    seconds += cluster.pause_s * (generator.random(shape) < cluster.pause_probability)
    return seconds


def _started(cluster: SimulatedCluster, begun_s: float, ranks: int) -> NDArray[np.float64]:
    """When each rank of a group begins: no result comes in between, as all wait for the last one."""
    number = np.arange(1, ranks + 1, dtype=np.float64)
    started: NDArray[np.float64] = begun_s + cluster.launch.a_s + _launch_s(cluster) * number
    return started


def _job(cluster: SimulatedCluster, begun_s: float, bodies: NDArray[np.float64]) -> float:
    """Run a job whose tasks take these seconds on their slots, (tasks,); when the driver has all its results.

    The driver serves events in the order of their times: a task may be launched once there is a slot, a result be
    taken in once its task has ended. Taking it in frees the slot, as Spark learns of the free slot by it.
    """
    launch_s, result_s = _launch_s(cluster), cluster.launch.b_s * cluster.result_share
    now = begun_s + cluster.launch.a_s
    tasks = len(bodies)
    running = min(tasks, cluster.executors * cluster.slots)
    events = [(now, number, _LAUNCH, number) for number in range(running)]
    waiting = iter(range(running, tasks))
    order = running  # of events at one time: the one that came first
    while events:
        at, _, kind, task = heapq.heappop(events)
        order += 1
        if kind == _LAUNCH:
            now = max(now, at) + launch_s
            heapq.heappush(events, (now + float(bodies[task]), order, _RESULT, task))
        else:
            now = max(now, at) + result_s
            following = next(waiting, None)
            if following is not None:
                heapq.heappush(events, (now, order, _LAUNCH, following))
    return now


def _launch_s(cluster: SimulatedCluster) -> float:
    """Seconds of the driver before one task starts."""
    return cluster.launch.b_s * (1 - cluster.result_share)
