"""The history of a run, written down while it runs: by ranks the rows that their models met, by the driver its groups.

Nothing of it is in the product: a model of the tests brings the recorder to the ranks, as it brings faults.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pyspark import cloudpickle
from torch import nn

from mizzle.spark.runner import GroupRun, GroupRunner
from mizzle.training.history import FaultRecord, TrainingHistory
from unit.training.runs import NUM_SHARDS, Rows, Training

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]

ERROR_S = 60.0
"""From the last fault until a run ends that cannot go on."""


@dataclass(frozen=True)
class Limits:
    """How long a run may take for a fault, seconds.

    Attributes:
        known_s: until the driver knows of it.
        resumed_s: until the first group after it is done, where the scene itself does not hold the run up.
    """

    known_s: float
    resumed_s: float


DEATH = Limits(10.0, 40.0)
"""Of what ends its connections. On an idle machine the run goes on after 8 s where it waits for the executor that Spark
starts instead, and 20 s are the most that it should take: `mizzle bench recovery` measures that. Here it is found out
when something waits for a deadline; tests share their machine with whatever else runs there."""
SILENCE = Limits(14.0, 50.0)
"""Of what is silent: 9 s of `spark.mizzle.verdict`, then its peers are given 2 s. On an idle machine the run goes on
after 17 s."""


def rank_here() -> dict[str, Any]:
    """What this process knows of its part in a run, whichever copy of this module looks: numbers and names only.

    Whatever of the run itself was held here would outlive it.
    """
    here: dict[str, Any] = vars(nn).setdefault("mizzle_rank_here", {})
    return here


def join_records(ledger: Path) -> None:
    """From now on the rows that this rank meets are noted there. Called where a rank unpickles its model."""
    here = rank_here()
    here["ledger"] = ledger
    frame = sys._getframe()
    while frame is not None:
        part = frame.f_locals.get("self")
        if type(part).__name__ == "TrainPart" and hasattr(part, "_context"):
            _note_place(part)
        frame = frame.f_back  # type: ignore[assignment]
    if not here.get("recorded"):
        here["recorded"] = True
        _record()


def _note_place(part: Any) -> None:
    context = part._context
    rank_here().update(
        run=context.run, generation=context.terms.generation, rank=context.rank, executor=context.executor_id
    )  # fmt: skip


def _record() -> None:
    """Once in a process: a group begins, a shard of an iteration is computed."""
    from mizzle.spark.ranks.train_task import TrainPart
    from mizzle.training.local import ShardCompute

    here, run_group, run = rank_here(), TrainPart.run_group, ShardCompute.run

    def noted_group(part: Any, order: Any) -> Any:
        _note_place(part)
        here["first"] = order.group.first if hasattr(order, "group") else -1
        return run_group(part, order)

    def noted_run(compute: Any, rows: Any, positions: Any, iteration: int, shard: int, *more: Any) -> Any:
        here["met"], begun = [], time.perf_counter()
        found = run(compute, rows, positions, iteration, shard, *more)
        took_s = time.perf_counter() - begun
        line = json.dumps([here["generation"], here["first"], iteration, shard, here["rank"], took_s, here["met"]])
        file = os.open(here["ledger"] / f"{here['run']}.rows", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(file, f"{line}\n".encode())  # at once, so that lines of several ranks do not mix
        os.close(file)
        return found

    TrainPart.run_group = noted_group  # type: ignore[method-assign, assignment]
    ShardCompute.run = noted_run  # type: ignore[method-assign, assignment]


def note_rows(inputs: torch.Tensor) -> None:
    """The model met these: (n, features) fp32, of which the first says which row it is."""
    met: list[int] | None = rank_here().get("met")
    if met is not None:
        met.extend(inputs[:, 0].contiguous().view(torch.int32).tolist())


@dataclass
class Watched:
    """What the driver did in one run.

    Attributes:
        tried: (generation, boundary) of every group ordered.
        committed: (generation, first, stop) of every group that all ranks have done.
        sizes: ranks of every order that was done.
        ends: when, seconds since the epoch.
    """

    tried: list[tuple[int, int]] = field(default_factory=list)
    committed: list[tuple[int, int, int]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)


class Watch:
    """What the driver does, by run. ``at_boundary`` is called before every order, with what was done of its run."""

    def __init__(self) -> None:
        self.of: dict[str, Watched] = defaultdict(Watched)
        self.at_boundary: Callable[[GroupRunner, Watched], None] = lambda _runner, _done: None
        run_once = GroupRunner._run_once

        def watched(runner: GroupRunner, title: str, pickled: bytes) -> GroupRun:
            seen = self.of[runner.run]
            self.at_boundary(runner, seen)
            generation = runner._generation
            seen.tried.append((generation, runner._since.iteration))
            found = run_once(runner, title, pickled)
            group = getattr(cloudpickle.loads(pickled), "group", None)
            if group is not None:
                seen.committed.append((generation, group.first, group.stop))
            seen.sizes.append(len(found.results))
            seen.ends.append(time.time())
            return found

        GroupRunner._run_once = watched  # type: ignore[method-assign, assignment]


def history_of(
    training: Training, history: TrainingHistory, model: Mapping[str, str], done: Watched, lines: Sequence[str]
) -> dict[str, Any]:
    """A run's history for the checker, JSON-able; waits, what was left and errors are still to come."""
    return {
        "losses": history.losses, "model": dict(model), "num_rows": training.data.num_rows, "num_shards": NUM_SHARDS,
        "per_epoch": training.order().iterations_per_epoch, "committed": done.committed, "tried": done.tried,
        "seen": rows_met(training.data, lines), "waits": [], "left": [], "error": "",
    }  # fmt: skip


def rows_met(data: Rows, lines: Sequence[str]) -> list[Any]:
    """What ranks have noted, with the numbers of the rows in place of their contents."""
    of = {bits: row for row, bits in enumerate(data.inputs[:, 0].contiguous().view(torch.int32).tolist())}
    assert len(of) == data.num_rows, "two rows look alike"
    return [[*one[:4], [of[bits] for bits in one[-1]]] for one in map(json.loads, lines)]


def shard_seconds(lines: Sequence[str]) -> list[list[float]]:
    """From the same: iteration, rank, and the seconds that a shard took."""
    return [[one[2], *one[4:6]] for one in map(json.loads, lines)]


def over_with(history: TrainingHistory, at: float) -> FaultRecord | None:
    """The fault with which a run was over what struck it then (seconds since the epoch), if it saw one."""
    # What strikes while the run goes on after another is noticed with that one.
    return next((fault for fault in history.faults if fault.resumed_at > at), None)


def waits_of(history: TrainingHistory, struck_at: Sequence[float], limits: Limits) -> list[tuple[str, float, float]]:
    """How long the driver took to know of each fault that it saw, and until the next group was done."""
    found = []
    for number, at in enumerate(struck_at):
        over = over_with(history, at)
        if over is not None:
            found.append((f"the verdict on fault {number}", max(over.noticed_at - at, 0.0), limits.known_s))
            found.append((f"the first group after fault {number}", over.resumed_at - at, limits.resumed_s))
    return found
