"""How a run is laid out, and what it leaves in storage: frozen, checked when made. What is learnt is not here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from mizzle.errors import ConfigError

Transport = Literal["auto", "shm", "blocks"]
"""How ranks reach each other: shared memory on one host, the BlockManager, or (auto) each peer the best way."""


Overlap = bool | Literal["auto"]
"""Whether the exchange begins during backward, or (auto) where that pays."""

Security = Literal["auto", "required"]
"""What happens where Spark does not keep strangers from the blocks: a warning, or (required) nothing starts."""

GroupSize = int | Literal["auto"]
"""Iterations per Spark job, or "auto"."""


def check_count(name: str, value: object, *, other: str | None = None) -> None:
    """Refuse what is no number of things.

    Args:
        name: of the setting, for the message.
        value: must be a whole number, at least 1.
        other: what could be given instead, for the message.

    Raises:
        ConfigError: says what to give.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        also = "" if other is None else f", or {other}"
        raise ConfigError(f"{name} is {value!r}: give a whole number, at least 1{also}")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse what is none of the choices.

    Raises:
        ConfigError: says what to give.
    """
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}: give one of {', '.join(choices)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """The layout of one run.

    Attributes:
        ranks: physical workers, each one task of a group. None: one per executor (embedded Spark: one per slot),
            because one rank per executor keeps the memory of a model to once per executor; when executors are lost
            a training goes on with those that are left, and takes new ones in at the next boundary (`mizzle.iterate`
            waits for others). A number: so many, and the run waits for others when some are lost. (least, most): it
            goes on with anything in between.
        shards: logical data-parallel parts, fixed for the run's life: the result depends on them, never on ``ranks``.
            None: as many as ranks.
        group_size: K, iterations per Spark job. "auto" measures what launching a group costs and keeps it at about 1 %
            of the time; a number fixes it, 1 is plain bulk-synchronous Spark. A group never crosses the end of an
            epoch or a validation, whatever is asked for.
        max_group_s: with "auto", how long a group may last in seconds: within it the run shows no progress and takes
            up no change. 20 s keep both lively, and leave room for 1 % where launching a group takes up to 0.1 s.
        transport: how ranks reach each other; "auto" unless a transport is to be measured.
        overlap: whether gradients travel while backward goes on. It changes no result. "auto" does it where some peer's
            memory is not seen (on another host, or with transport "blocks"): on one host adding up would take the cores
            that backward needs. It is off, whatever is asked for, with a 16-bit ``wire``, and when there are several
            hosts and one of them has more than one rank.
        trace: file for the driver to write, with what every rank did when, for chrome://tracing or Perfetto. None:
            nothing is noted.
        timeout_s: seconds that a rank waits for its peers in one exchange, or for its group to come together. 60 s
            cover a garbage collection or a slow first iteration; a dead peer is noticed at once all the same. Where the
            run needs other executors in place of those it lost, it waits for them as long.
        security: where Spark's block managers can be reached from other machines without authentication and
            encryption, "auto" warns once in an application, "required" refuses before anything starts, with the lines
            to set. "auto", because most clusters are laid out like that, behind a network of their own
            (``docs/security.md``).
    """

    ranks: int | tuple[int, int] | None = None
    shards: int | None = None
    group_size: GroupSize = "auto"
    max_group_s: float = 20.0
    transport: Transport = "auto"
    overlap: Overlap = "auto"
    trace: str | Path | None = None
    timeout_s: float = 60.0
    security: Security = "auto"

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        self._check_ranks()
        for name in ("max_group_s", "timeout_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}: give a positive number of seconds")
        check_choice("transport", self.transport, get_args(Transport))
        check_choice("security", self.security, get_args(Security))
        if not isinstance(self.overlap, bool) and self.overlap != "auto":
            raise ConfigError(f"overlap is {self.overlap!r}: give True, False or 'auto'")
        if self.trace is not None and not isinstance(self.trace, str | Path):
            raise ConfigError(f"trace is {self.trace!r}: give the name of a file, or None")

    def _check_ranks(self) -> None:
        bounds = self.ranks if isinstance(self.ranks, tuple) else (self.ranks,)
        if isinstance(self.ranks, tuple) and (len(bounds) != 2 or None in bounds):
            raise ConfigError(f"ranks is {self.ranks!r}: give a number, (least, most), or None")
        for name, value in (*(("ranks", bound) for bound in bounds), ("shards", self.shards)):
            if value is not None:
                check_count(name, value)
        if self.group_size != "auto":
            check_count("group_size", self.group_size, other='"auto"')
        if isinstance(self.ranks, tuple) and self.ranks[0] > self.ranks[-1]:
            raise ConfigError(f"ranks is {self.ranks}: give (least, most), the smaller number first")
        most = bounds[-1]
        if most is not None and self.shards is not None and self.shards < most:
            raise ConfigError(f"{self.shards} shards cannot be spread over {most} ranks: every rank holds one")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoints:
    """Where and how often a training is saved, so that it survives its driver.

    The ranks write their states beside the next group; a checkpoint is whole or absent (``docs/checkpoints.md``).

    Attributes:
        path: folder of this training alone, on storage that the driver and all executors reach: a local or mounted
            path, or a URI that pyarrow knows (``s3://``, ``gs://``, ``hdfs://``).
        every: iterations between two checkpoints, or "epoch". The last iteration is saved in any case.
        keep: how many checkpoints stay; older ones are deleted when a new one is there. 3 forgive a damaged one or two.
        filesystem: a ``pyarrow.fs.FileSystem`` for what a URI cannot say (end points, credentials); None: from
            ``path``.
        timeout_s: seconds that a checkpoint may take, and that a run waits for the last one at its end; one that takes
            longer is given up. 600 s write 60 GB at 100 MB/s.
    """

    path: str | Path
    every: int | Literal["epoch"] = "epoch"
    keep: int = 3
    filesystem: Any = None
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if not str(self.path):
            raise ConfigError(f"path is {self.path!r}: give the folder for the checkpoints of this training")
        if self.every != "epoch":
            check_count("every", self.every, other='"epoch"')
        check_count("keep", self.keep)
        if self.timeout_s <= 0:
            raise ConfigError(f"timeout_s is {self.timeout_s}: give a positive number of seconds")
