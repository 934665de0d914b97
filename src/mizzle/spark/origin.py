"""Where a training begins, or goes on: what the newest checkpoint of a folder says, before there is a run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from mizzle.config import Checkpoints
from mizzle.errors import CheckpointError, ConfigError
from mizzle.spark.ranks.orders import Committed
from mizzle.training.checkpoint import CheckpointStore
from mizzle.training.evaluate import Evaluation
from mizzle.training.evaluation_log import unpack_evaluations
from mizzle.training.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a training begins, or goes on.

    Attributes:
        iteration: done before.
        groups: done before.
        checkpoint: that holds its states; "" at the start.
        evaluations: done before.
        stopping: `mizzle.training.stopping.StoppingState.as_dict`, or None.
    """

    iteration: int = 0
    groups: int = 0
    checkpoint: str = ""
    evaluations: tuple[Evaluation, ...] = ()
    stopping: Mapping[str, Any] | None = None

    @property
    def boundary(self) -> Committed:
        """For the ranks."""
        return Committed(self.iteration, checkpoint=self.checkpoint)

    def as_dict(self) -> dict[str, Any]:
        """What a manifest keeps of it; evaluations are in a file of their own."""
        return {"groups": self.groups, "stopping": None if self.stopping is None else dict(self.stopping)}

    @classmethod
    def of(cls, store: CheckpointStore, manifest: Manifest) -> Origin:
        """From a checkpoint.

        Raises:
            CheckpointError: it is damaged, or not of a training.
        """
        name, there = manifest.name, manifest.evaluations
        try:
            kept = manifest.training["origin"]
            evaluations = () if there is None else unpack_evaluations(store.read_part(name, there))
            return cls(manifest.iteration, kept["groups"], name, evaluations, kept["stopping"])
        except (ConfigError, KeyError, TypeError) as error:
            raise CheckpointError(f"{store.path}/{name} says nothing of the training: {error!r}") from error


def open_store(config: Checkpoints, resume: Literal["never", "auto"]) -> CheckpointStore:
    """The storage of a training's checkpoints, where something can be written.

    Raises:
        CheckpointError: nothing can be written, or read, there.
        ConfigError: there are checkpoints, and nobody said that they are to be gone on from.
    """
    store = CheckpointStore(str(config.path), config.filesystem)
    if resume == "never" and any(listed.committed for listed in store.listed()):
        raise ConfigError(
            f"{store.path} holds checkpoints already: go on from them with fit(..., resume='auto'), or give this "
            "training a folder of its own"
        )
    try:
        store.sweep()
        store.probe()
    except CheckpointError as error:
        raise CheckpointError(
            f"no checkpoint can be written in {store.path} ({error}): give Checkpoints(path=...) a folder that "
            "driver and executors may write to"
        ) from error
    return store


def shards_of(store: CheckpointStore, num_rows: int) -> int | None:
    """Number of shards of the training that was saved last, as far as that can be read: it keeps them for life.

    Args:
        store: of its checkpoints.
        num_rows: of the training that goes on.

    Raises:
        CheckpointError: no training on so many rows has that many, and nothing was made for them.
    """
    for listed in store.listed():
        with suppress(CheckpointError):
            manifest = store.read(listed.name)
            break
    else:
        return None
    found = manifest.training.get("shards")
    if type(found) is not int or not 1 <= found <= num_rows:
        raise CheckpointError(
            f"{store.path}/{manifest.name} is of a training on {str(found)[:40]} shards, the DataFrame has {num_rows} "
            "rows: give the rows that it was trained on, or RunConfig(shards=...) if there were so many"
        )
    return found
