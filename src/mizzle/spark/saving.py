"""The driver's part in checkpoints: it says when, gathers what the ranks tell, commits, and finds where to go on.

It sees names, lengths and checksums only; the states go from the ranks to storage (after the failure model of
CheckFreq, Mohan et al., FAST 2021: training goes on while a snapshot is written, and one is under way at a time).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from mizzle.config import Checkpoints
from mizzle.errors import CheckpointError, ConfigError, MizzleError
from mizzle.scheduling.plan import EPOCH_END, Triggers
from mizzle.spark.orders import Committed
from mizzle.spark.part_writer import Progress, Told, Wanted
from mizzle.training.checkpoint import CheckpointStore
from mizzle.training.evaluate import Evaluation
from mizzle.training.export import describe, written_with
from mizzle.training.flat import FlatParameters
from mizzle.training.history import CheckpointRecord
from mizzle.training.manifest import Manifest
from mizzle.training.spec import TrainingSpec

_log = logging.getLogger(__name__)
CHECKPOINT = "checkpoint"
"""Name of the trigger of a period in iterations."""


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
        """What a manifest keeps of it."""
        return {
            "groups": self.groups,
            "evaluations": [asdict(one) for one in self.evaluations],
            "stopping": None if self.stopping is None else dict(self.stopping),
        }

    @classmethod
    def of(cls, checkpoint: str, manifest: Manifest) -> Origin:
        """From `as_dict`.

        Raises:
            CheckpointError: the manifest is not of a training.
        """
        try:
            kept = manifest.training["origin"]
            evaluations = tuple(Evaluation(**one) for one in kept["evaluations"])
            return cls(manifest.iteration, kept["groups"], checkpoint, evaluations, kept["stopping"])
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"the manifest of {checkpoint} says nothing of the training: {error!r}") from error


@dataclass(slots=True)
class _Save:
    """One checkpoint under way."""

    wanted: Wanted
    origin: Origin
    begun: float
    commit: Future[int] | None = None
    given_up: threading.Event = field(default_factory=threading.Event)


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
    store.probe()
    return store


def shards_of(store: CheckpointStore) -> int | None:
    """Number of shards of the training that was saved last, as far as that can be read: it keeps them for life."""
    for listed in store.listed():
        with suppress(CheckpointError):
            found = store.read(listed.name).training.get("shards")
            return found if isinstance(found, int) else None
    return None


class Saving:
    """The checkpoints of one run.

    Args:
        config: where, how often, how many.
        store: the same storage.
        triggers: of the run, with `CHECKPOINT` among them where it has a period.
        run: the run's id.
        spec: of the training.
        model: that is trained, not bound to anything.

    Attributes:
        records: checkpoints that are there or were given up, in their order.
        store: as given.
    """

    def __init__(
        self, config: Checkpoints, store: CheckpointStore, triggers: Triggers, run: str, spec: TrainingSpec,
        model: torch.nn.Module,
    ) -> None:  # fmt: skip
        """See the class."""
        self.records: list[CheckpointRecord] = []
        self.store = store
        self._config, self._triggers, self._run = config, triggers, run
        flat = FlatParameters(model, spec.groups)
        self._num_elements = flat.num_elements
        self._parameters, self._frozen = describe(model, flat)
        self._trained = {
            "model": flat.signature(), "rows": spec.num_rows, "shards": spec.num_shards,
            "global_batch_size": spec.global_batch_size, "seed": spec.seed,
        }  # fmt: skip
        self._save: _Save | None = None
        self._newest = -1
        self._useless: set[str] = set()

    @property
    def timeout_s(self) -> float:
        """How long writing a checkpoint may take in the end."""
        return self._config.timeout_s

    def due(self, origin: Origin, generation: int) -> Wanted | None:
        """The checkpoint that the ranks are to write of this boundary, beside the group that comes next; None for none.

        Args:
            origin: what the training would go on from.
            generation: of the ranks.
        """
        self._look()
        fired = self._triggers.fires(origin.iteration)
        if (EPOCH_END if self._config.every == "epoch" else CHECKPOINT) not in fired:
            return None
        if self._save is not None:
            _log.warning(
                "run=%s no checkpoint at iteration %d: the one of iteration %d is still being written",
                self._run[:4], origin.iteration, self._save.origin.iteration,
            )  # fmt: skip
            return None
        return self._begin(origin, generation)

    def take(self, told: Sequence[Told], generation: int) -> None:
        """What the ranks said behind a group, by rank, and in which generation."""
        self._look()
        save = self._save
        if save is None or save.commit is not None:
            return
        if any(one.iteration != save.origin.iteration for one in told):
            self._give_up(save, "ranks were replaced while it was written")
        elif failed := [one.why for one in told if one.progress is Progress.FAILED]:
            self._give_up(save, failed[0])
        elif all(one.progress is not Progress.UNDER_WAY for one in told):
            save.commit = Future()
            # A daemon: storage that hangs must not keep the driver from ending.
            threading.Thread(
                target=self._commit_into, args=(save.commit, save, tuple(told), generation), name="checkpoint",
                daemon=True,
            ).start()  # fmt: skip

    def wanted_at_the_end(self, origin: Origin, generation: int) -> tuple[Wanted, int] | None:
        """What is still to be written when a training ends, and of which boundary; None: nothing is.

        Args:
            origin: the training's last boundary.
            generation: of the ranks.
        """
        self.await_commit()
        if self._save is None and origin.iteration > max(0, self._newest):
            self._begin(origin, generation)
        return None if self._save is None else (self._save.wanted, self._save.origin.iteration)

    def await_commit(self) -> None:
        """Until what is being committed is there, or has taken too long."""
        self._look(timeout_s=self._config.timeout_s)

    def newest(self) -> Origin | None:
        """Where the newest checkpoint is that may be whole; ranks find out whether it is. None: there is none.

        Raises:
            ConfigError: it is of another training; names what differs.
            CheckpointError: there are some, and all are damaged.
        """
        there = [listed for listed in self.store.listed() if listed.committed]
        for listed in there:
            if listed.name in self._useless:
                continue
            try:
                manifest = self.store.read(listed.name)
                origin = Origin.of(listed.name, manifest)
            except CheckpointError as error:
                self.refuse(listed.name, error)
                continue
            self._check_same(listed.name, manifest)
            self._newest = origin.iteration
            return origin
        if there:
            raise CheckpointError(
                f"none of the {len(there)} checkpoints in {self.store.path} can be used: the log says why. Try again "
                "if storage was out of reach; else look for a copy of them before you begin anew in another folder"
            )
        return None

    def refuse(self, checkpoint: str, error: MizzleError) -> None:
        """This one is damaged: an older one is looked for."""
        _log.warning("run=%s checkpoint %s cannot be used: %s", self._run[:4], checkpoint, error)
        self._useless.add(checkpoint)
        self._newest = -1

    def abandon(self) -> None:
        """The training goes back: what is being written is not committed."""
        self.await_commit()
        if self._save is not None:
            self._give_up(self._save, "the training went back")

    def _begin(self, origin: Origin, generation: int) -> Wanted | None:
        if origin.iteration == self._newest:
            return None
        try:
            wanted = Wanted(self.store.begin(origin.iteration), generation)
        except Exception as error:  # noqa: BLE001 - storage of others may raise anything; it costs no training
            self._record(origin.iteration, "", 0, 0.0, f"{error}")
            return None
        self._save = _Save(wanted, origin, time.monotonic())
        return wanted

    def _commit_into(self, done: Future[int], save: _Save, told: Sequence[Told], generation: int) -> None:
        """Runs beside the training."""
        try:
            done.set_result(self._commit(save, told, generation))
        except Exception as error:  # noqa: BLE001 - the outermost frame of a thread
            done.set_exception(error)

    def _commit(self, save: _Save, told: Sequence[Told], generation: int) -> int:
        """The manifest makes the parts a checkpoint; the ranks have read again what they wrote."""
        store, name = self.store, save.wanted.name
        parts = [
            store.written_part(name, rank, one.num_bytes, one.sha256.hex())
            for rank, one in enumerate(told) if one.progress is Progress.WRITTEN
        ]  # fmt: skip
        frozen = None if self._frozen is None else store.write_frozen(name, self._frozen.to_bytes())
        if frozen is not None:
            store.check_part(name, frozen)
        manifest = Manifest(
            name=name, iteration=save.origin.iteration, run=self._run, generation=generation,
            num_elements=self._num_elements, parts=tuple(parts), parameters=self._parameters,
            training={**self._trained, "origin": save.origin.as_dict()}, frozen=frozen, written_with=written_with(),
        )  # fmt: skip
        if save.given_up.is_set():
            raise CheckpointError("it took too long")
        store.commit(manifest)
        try:
            store.retain(self._config.keep, protect={name}, checked={name})
        except CheckpointError as error:
            _log.warning("run=%s older checkpoints are still there: %s", self._run[:4], error)
        return sum(part.num_bytes for part in manifest.files)

    def _look(self, timeout_s: float = 0.0) -> None:
        """Whether what is being committed is done."""
        save = self._save
        if save is None or save.commit is None or (timeout_s == 0 and not save.commit.done()):
            return
        try:
            num_bytes = save.commit.result(timeout_s)
        except Exception as error:  # noqa: BLE001 - storage of others may raise anything; it costs no training
            self._give_up(save, f"{type(error).__name__}: {error}")
            return
        self._save, self._newest = None, save.origin.iteration
        self._record(save.origin.iteration, save.wanted.name, num_bytes, time.monotonic() - save.begun, "")

    def _give_up(self, save: _Save, why: str) -> None:
        save.given_up.set()
        self._save = None
        self._record(save.origin.iteration, save.wanted.name, 0, time.monotonic() - save.begun, why)

    def _record(self, iteration: int, name: str, num_bytes: int, wall_s: float, fault: str) -> None:
        self.records.append(CheckpointRecord(iteration, name, num_bytes, wall_s, fault))
        if fault:
            _log.warning("run=%s there is no checkpoint of iteration %d: %s", self._run[:4], iteration, fault)
        else:
            _log.info("run=%s checkpoint=%s bytes=%d wall_s=%.3f", self._run[:4], name, num_bytes, wall_s)

    def _check_same(self, checkpoint: str, manifest: Manifest) -> None:
        other = {name: (manifest.training.get(name), mine) for name, mine in self._trained.items()}
        differ = [f"{name} {there!r} there, {here!r} here" for name, (there, here) in other.items() if there != here]
        if differ:
            raise ConfigError(
                f"checkpoint {checkpoint} in {self._config.path} is of another training: {'; '.join(differ)}. Make "
                "them equal, or give this training a folder of its own"
            )
