"""The driver's part in checkpoints: it says when, gathers what the ranks tell, commits, and finds where to go on.

It sees names, lengths and checksums only; the states go from the ranks to storage (after the failure model of
CheckFreq, Mohan et al., FAST 2021: training goes on while a snapshot is written, and one is under way at a time).
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch

from mizzle.config import Checkpoints
from mizzle.errors import CheckpointError, ConfigError, MizzleError
from mizzle.scheduling.plan import EPOCH_END, Triggers
from mizzle.spark.origin import Origin
from mizzle.spark.ranks.part_writer import Progress, Told, Wanted
from mizzle.training.checkpoint import CheckpointStore
from mizzle.training.evaluation_log import pack_evaluations
from mizzle.training.export import adopt_frozen, describe, written_with
from mizzle.training.flat import FlatParameters
from mizzle.training.history import CheckpointRecord
from mizzle.training.manifest import EVALUATIONS, FROZEN, Manifest, Part
from mizzle.training.optimizer import is_elementwise, probe
from mizzle.training.spec import TrainingSpec
from mizzle.training.state import PackedState, unpack_state

_log = logging.getLogger(__name__)
_TOO_LONG = "it took longer than Checkpoints(timeout_s=...): raise that, or give it faster storage"
_MAKE_S = 10.0
"""How long a training waits at a boundary until storage has a folder for the next checkpoint."""
CHECKPOINT = "checkpoint"
"""Name of the trigger of a period in iterations."""


T = TypeVar("T")


def _beside(work: Callable[[], T]) -> Future[T]:
    """Do it beside the training, in a daemon: storage that hangs must not keep the driver from ending."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except Exception as error:  # noqa: BLE001 - the outermost frame of a thread
            done.set_exception(error)

    threading.Thread(target=run, name="checkpoint", daemon=True).start()
    return done


def _more_state(optimizer: torch.optim.Optimizer) -> str:
    """Options with which it keeps more: it cannot go on with what it kept without them."""
    names = ["amsgrad", "centered", *(["momentum"] if isinstance(optimizer, torch.optim.RMSprop) else [])]
    return "".join(f", {name}" for name in names if any(group.get(name) for group in optimizer.param_groups))


@dataclass(slots=True)
class _Save:
    """One checkpoint under way."""

    wanted: Wanted
    origin: Origin
    begun: float
    commit: Future[int] | None = None
    given_up: threading.Event = field(default_factory=threading.Event)


class Saving:
    """The checkpoints of one run.

    Args:
        config: where, how often, how many.
        store: the same storage.
        triggers: of the run, with `CHECKPOINT` among them where it has a period.
        run: the run's id.
        spec: of the training.
        model: that is trained, not bound to anything. The first call of `newest` may write to what is not trained.

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
        self._model: torch.nn.Module | None = model  # until the ranks have it
        self._parameters, self._frozen = describe(model, flat)
        optimizer = probe(spec.optimizer, flat)
        self._trained = {
            "optimizer": f"{type(optimizer).__module__}.{type(optimizer).__qualname__}, "
            f"{'sharded' if is_elementwise(optimizer) else 'whole'}{_more_state(optimizer)}",
            "model": flat.signature(), "rows": spec.num_rows, "shards": spec.num_shards,
            "global_batch_size": spec.global_batch_size, "seed": spec.seed,
        }  # fmt: skip
        self._save: _Save | None = None
        self._given_up: list[_Save] = []
        self._newest = -1
        self._useless: set[str] = set()
        self._making: Future[str] | None = None

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
        if self._save is not None and time.monotonic() - self._save.begun > self._config.timeout_s:
            self._give_up(self._save, _TOO_LONG)
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
            save.commit = _beside(partial(self._commit, save, tuple(told), generation))

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

        The first call gives the model the parameters of that checkpoint that are not trained. Later the ranks have the
        model, so that checkpoints with other ones are refused.

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
                self._check_same(listed.name, manifest)
                self._take_frozen(manifest)
                origin = Origin.of(self.store, manifest)
            except CheckpointError as error:
                self.refuse(listed.name, error)
                continue
            self._newest, self._model = origin.iteration, None
            return origin
        self._model = None
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
            wanted = Wanted(self._made(origin.iteration), generation)
        except Exception as error:  # noqa: BLE001 - storage of others may raise anything; it costs no training
            self._record(origin.iteration, "", 0, 0.0, f"{error}")
            return None
        self._save = _Save(wanted, origin, time.monotonic())
        return wanted

    def _made(self, iteration: int) -> str:
        """A new checkpoint's name; the training waits for it, but not for storage that hangs."""
        if self._making is None or self._making.done():
            self._making = _beside(partial(self._make, iteration))
        else:
            raise CheckpointError("storage still does not answer")  # nobody waits for it twice
        try:
            return self._making.result(_MAKE_S)
        except TimeoutError as error:
            raise CheckpointError(f"storage has not answered for {_MAKE_S:g} s") from error

    def _make(self, iteration: int) -> str:
        self._sweep()
        return self.store.begin(iteration)

    def _commit(self, save: _Save, told: Sequence[Told], generation: int) -> int:
        """The manifest makes the parts a checkpoint; the ranks have read again what they wrote."""
        store, name = self.store, save.wanted.name
        parts = [
            store.written_part(name, rank, one.num_bytes, one.sha256.hex())
            for rank, one in enumerate(told) if one.progress is Progress.WRITTEN
        ]  # fmt: skip
        evaluations = pack_evaluations(save.origin.evaluations) if save.origin.evaluations else None
        manifest = Manifest(
            name=name, iteration=save.origin.iteration, run=self._run, generation=generation,
            num_elements=self._num_elements, parts=tuple(parts), parameters=self._parameters,
            training={**self._trained, "origin": save.origin.as_dict()},
            frozen=self._write(name, FROZEN, self._frozen),
            evaluations=self._write(name, EVALUATIONS, evaluations), written_with=written_with(),
        )  # fmt: skip
        if save.given_up.is_set():
            raise CheckpointError(_TOO_LONG)
        store.commit(manifest)
        try:
            store.retain(self._config.keep, protect={name}, checked={name})
        except Exception as error:  # noqa: BLE001 - storage of others may raise anything; the checkpoint is there
            _log.warning("run=%s older checkpoints are still there: %r", self._run[:4], error)
        return sum(part.num_bytes for part in manifest.files)

    def _write(self, name: str, file: str, content: PackedState | None) -> Part | None:
        """A file of the driver's, read again; None where there is nothing to write."""
        if content is None:
            return None
        part = self.store.write_shared(name, file, content.to_bytes())
        self.store.check_part(name, part)
        return part

    def _sweep(self) -> None:
        """Remove what was given up, so that there is room, but for what may still be committed."""
        try:
            self.store.sweep(protect=self._hanging())
        except Exception as error:  # noqa: BLE001 - storage of others may raise anything; there may be room enough
            _log.warning("run=%s what broken saves have left is still there: %r", self._run[:4], error)

    def _hanging(self) -> set[str]:
        """What was given up, but may still be committed."""
        self._given_up = [save for save in self._given_up if save.commit is not None and not save.commit.done()]
        return {save.wanted.name for save in self._given_up}

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
        if save.commit is not None:
            self._given_up.append(save)
        self._record(save.origin.iteration, save.wanted.name, 0, time.monotonic() - save.begun, why)

    def _record(self, iteration: int, name: str, num_bytes: int, wall_s: float, fault: str) -> None:
        self.records.append(CheckpointRecord(iteration, name, num_bytes, wall_s, fault))
        if fault:
            _log.warning("run=%s there is no checkpoint of iteration %d: %s", self._run[:4], iteration, fault)
        else:
            _log.info("run=%s checkpoint=%s bytes=%d wall_s=%.3f", self._run[:4], name, num_bytes, wall_s)

    def _take_frozen(self, manifest: Manifest) -> None:
        """Go on with the parameters of a checkpoint that are not trained, as far as the model is not sent yet."""
        if manifest.frozen is None or self._frozen is None:
            return
        if self._model is not None:
            raw = self.store.read_part(manifest.name, manifest.frozen)
            try:
                tensors, _ = unpack_state(raw)
            except ConfigError as error:
                raise CheckpointError(f"{manifest.name}/{FROZEN}: {error}") from error
            adopt_frozen(self._model, tensors)
        elif hashlib.sha256(self._frozen.to_bytes()).hexdigest() != manifest.frozen.sha256:
            raise CheckpointError("parameters that are not trained have other values there than in this run")

    def _other_model(self, manifest: Manifest) -> str:
        """What is another in the model, as far as names and shapes tell."""
        there = {one.name: one.shape for one in manifest.parameters}
        here = {one.name: one.shape for one in self._parameters}
        names = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
        if not names:
            return "the model has other parameter groups or dtypes, or trains others of its parameters"
        return "; ".join(
            f"parameter {name!r} {'of shape ' + str(there[name]) if name in there else 'not'} there, "
            f"{'of shape ' + str(here[name]) if name in here else 'not'} here" for name in names[:3]
        )  # fmt: skip

    def _check_same(self, checkpoint: str, manifest: Manifest) -> None:
        kept = manifest.training
        differ = [
            self._other_model(manifest) if name == "model" else f"{name} {kept[name]!r} there, {mine!r} here"
            for name, mine in self._trained.items() if name in kept and kept[name] != mine
        ]  # fmt: skip
        if not differ and (others := set(manifest.parameters) ^ set(self._parameters)):
            names = sorted({one.name for one in others})
            differ = [f"{', '.join(map(repr, names[:3]))} of its state_dict() are not the same here"]
        if differ:
            raise ConfigError(
                f"checkpoint {checkpoint} in {self._config.path} is of another training: {'; '.join(differ)}. Make "
                "them equal, or give this training a folder of its own"
            )
