"""mizzle: data-parallel PyTorch on an unmodified Apache Spark, from Python. This is the front door.

Names are loaded when they are first used: executors and the command line do not wait for what they do not need.
Nothing inside the house imports this module.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mizzle import models as models
    from mizzle.config import Checkpoints as Checkpoints
    from mizzle.config import RunConfig as RunConfig
    from mizzle.spark.all_reduce import all_reduce as all_reduce
    from mizzle.spark.groups import run_group as run_group
    from mizzle.spark.iterate import Boundary as Boundary
    from mizzle.spark.iterate import IterationResult as IterationResult
    from mizzle.spark.iterate import iterate as iterate
    from mizzle.spark.ranks.step import StepContext as StepContext
    from mizzle.spark.ranks.worker import RankContext as RankContext
    from mizzle.spark.session import session as session
    from mizzle.spark.session import spark_conf as spark_conf
    from mizzle.spark.trainer import Trainer as Trainer
    from mizzle.spark.trainer import TrainingResult as TrainingResult
    from mizzle.training.clipping import ClipByNorm as ClipByNorm
    from mizzle.training.clipping import ClipByValue as ClipByValue
    from mizzle.training.history import CheckpointRecord as CheckpointRecord
    from mizzle.training.history import FaultRecord as FaultRecord
    from mizzle.training.history import GroupRecord as GroupRecord
    from mizzle.training.history import StragglerRecord as StragglerRecord
    from mizzle.training.history import TrainingHistory as TrainingHistory
    from mizzle.training.stopping import EarlyStopping as EarlyStopping

_HOMES = {
    "Boundary": "mizzle.spark.iterate",
    "CheckpointRecord": "mizzle.training.history",
    "Checkpoints": "mizzle.config",
    "ClipByNorm": "mizzle.training.clipping",
    "ClipByValue": "mizzle.training.clipping",
    "EarlyStopping": "mizzle.training.stopping",
    "FaultRecord": "mizzle.training.history",
    "GroupRecord": "mizzle.training.history",
    "IterationResult": "mizzle.spark.iterate",
    "RankContext": "mizzle.spark.ranks.worker",
    "RunConfig": "mizzle.config",
    "StepContext": "mizzle.spark.ranks.step",
    "StragglerRecord": "mizzle.training.history",
    "Trainer": "mizzle.spark.trainer",
    "TrainingHistory": "mizzle.training.history",
    "TrainingResult": "mizzle.spark.trainer",
    "all_reduce": "mizzle.spark.all_reduce",
    "iterate": "mizzle.spark.iterate",
    "run_group": "mizzle.spark.groups",
    "session": "mizzle.spark.session",
    "spark_conf": "mizzle.spark.session",
}
_ROOMS = ("errors", "models")

__all__ = [*sorted(_HOMES), *_ROOMS]  # noqa: PLE0604 - all of them are strings


def __getattr__(name: str) -> object:
    """Fetch a public name from the room it lives in."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"mizzle.{name}")
    raise AttributeError(f"module 'mizzle' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
