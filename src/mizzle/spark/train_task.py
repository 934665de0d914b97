"""What a rank does in one group of a training: rebuild itself from the arena, run iterations, leave its state there.

Nothing is kept in the Python worker: Spark may give the next group to another one. The arena has the weights, and the
rank's own state twice, in turn: a group that fails leaves that of its boundary untouched.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pyspark import Broadcast, cloudpickle

from mizzle.collectives.exchange import Exchange, ExchangeLayout
from mizzle.errors import Misplaced
from mizzle.scheduling.plan import Group
from mizzle.spark.worker import RankContext
from mizzle.training.columns import Columns
from mizzle.training.flat import FlatParameters
from mizzle.training.rank import RankTrainer
from mizzle.training.shards import ShardFile
from mizzle.training.spec import IterationMetrics, IterationPlan, TrainingSpec


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What all groups of a run share; shipped to each executor once.

    Attributes:
        shipped: initial model, spec and columns, pickled together, so that what they share stays shared.
        shards_of_rank: by rank.
        paths: file of every shard.
    """

    shipped: bytes
    shards_of_rank: tuple[tuple[int, ...], ...]
    paths: Mapping[int, str]

    def load(self) -> tuple[torch.nn.Module, TrainingSpec, Columns]:
        """Fresh copies of the three."""
        model, spec, columns = cloudpickle.loads(self.shipped)
        return model, spec, columns


@dataclass(frozen=True, slots=True)
class GroupReport:
    """What a rank returns to the driver: numbers; and, from rank 0 of the last group, the trained model.

    Attributes:
        executor_id: where it ran.
        metrics: one for each iteration.
        model: safetensors of ``state_dict()``, or None.
    """

    executor_id: str
    metrics: list[IterationMetrics]
    model: bytes | None


@dataclass(frozen=True, slots=True)
class TrainGroup:
    """The body of one group's job.

    Attributes:
        run_plan: broadcast once.
        group: which iterations.
        hyper: their hyper-parameters, by iteration and parameter group.
        last: whether the run ends with it: then the model is wanted.
    """

    run_plan: Broadcast[RunPlan]
    group: Group
    hyper: tuple[tuple[Mapping[str, Any], ...], ...]
    last: bool

    def preferred(self) -> list[int]:
        """Ranks whose shards lie on this host: a rank goes where its data is."""
        plan = self.run_plan.value
        return [
            rank
            for rank, shards in enumerate(plan.shards_of_rank)
            if all(Path(plan.paths[shard]).exists() for shard in shards)
        ]

    def __call__(self, context: RankContext, rows: Iterable[Any]) -> GroupReport:
        """Run the group on one rank."""
        for _ in rows:
            pass  # a task that leaves its input unread costs Spark the Python worker
        plan = self.run_plan.value
        model, spec, columns = plan.load()
        with ExitStack() as files:
            shards = {}
            for shard in plan.shards_of_rank[context.rank]:
                if not Path(plan.paths[shard]).exists():
                    raise Misplaced(f"rank {context.rank} was started on {context.host}, away from its shard {shard}")
                shards[shard] = files.enter_context(ShardFile(plan.paths[shard], columns))
            layout = ExchangeLayout(
                FlatParameters(model, spec.groups).num_elements, spec.num_shards, plan.shards_of_rank
            )  # fmt: skip
            exchange = Exchange(context.store, layout, wire=spec.wire, timeout_s=context.job.timeout_s)
            trainer = RankTrainer(spec, model, exchange, shards, state=self._state(context))
            metrics = trainer.run(self.iterations())
            self._keep(context, trainer.save_state())
            model_bytes = safetensors.torch.save(trainer.model_state()) if self.last and context.rank == 0 else None
        return GroupReport(context.executor_id, metrics, model_bytes)

    def iterations(self) -> list[IterationPlan]:
        """The group's iterations."""
        group = self.group
        return [
            IterationPlan(group.first + k, group.epoch, group.first_in_epoch + k, self.hyper[k])
            for k in range(group.size)
        ]

    def _state(self, context: RankContext) -> bytes | None:
        """This rank's state at the boundary before the group, from the arena; None at the very start."""
        if self.group.first == 0:
            return None
        label = json.loads(context.label or b"{}")
        region = context.arena.find(label.get("region", ""))
        if region is None or (label["rank"], label["boundary"]) != (context.rank, self.group.first):
            raise Misplaced(
                f"rank {context.rank} was started on executor {context.executor_id}, away from its state at iteration "
                f"{self.group.first}"
            )
        return bytes(region.buffer[: label["bytes"]])

    def _keep(self, context: RankContext, state: bytes) -> None:
        """Leave the state at the boundary behind the group in the arena."""
        name = f"state{self.group.number % 2}"
        context.arena.region(name, len(state)).buffer[: len(state)] = state
        label = {"rank": context.rank, "boundary": self.group.stop, "region": name, "bytes": len(state)}
        context.set_label(json.dumps(label).encode())
