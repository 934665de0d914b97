"""How a run is laid out on the cluster: frozen, checked when made. What is learnt (model, loss, ...) is not here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from mizzle.errors import ConfigError

Transport = Literal["auto", "shm", "blocks"]
"""How ranks reach each other: shared memory on one host, the BlockManager, or (auto) each peer the best way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """The layout of one run.

    Attributes:
        ranks: physical workers, each one task of a group. None: one per executor (embedded Spark: one per slot),
            because one rank per executor keeps the memory of a model to once per executor.
        shards: logical data-parallel parts, fixed for the run's life: the result depends on them, never on ``ranks``.
            None: as many as ranks.
        group_size: iterations per Spark job. 10 makes a job's launch a small part of a group for iterations
            above some 50 ms, and still shows progress every few seconds; 1 is plain bulk-synchronous Spark. A group
            never crosses the end of an epoch. Small models on small data spend most of their time on launching groups:
            raise it there.
        transport: how ranks reach each other; "auto" unless a transport is to be measured.
        timeout_s: seconds that a rank waits for its peers in one exchange, or for its group to come together. 60 s
            cover a garbage collection or a slow first iteration; a dead peer is noticed at once all the same.
    """

    ranks: int | None = None
    shards: int | None = None
    group_size: int = 10
    transport: Transport = "auto"
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        for name in ("ranks", "shards", "group_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}: give at least 1")
        if self.ranks is not None and self.shards is not None and self.shards < self.ranks:
            raise ConfigError(f"{self.shards} shards cannot be spread over {self.ranks} ranks: every rank holds one")
        if self.transport not in get_args(Transport):
            raise ConfigError(f"transport is {self.transport!r}: give one of {', '.join(get_args(Transport))}")
        if self.timeout_s <= 0:
            raise ConfigError(f"timeout_s is {self.timeout_s}: give a positive number of seconds")
