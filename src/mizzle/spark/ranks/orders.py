"""What the driver tells ranks: ids and numbers. Loads no torch: tasks that only pass it on use it."""

from __future__ import annotations

from dataclasses import dataclass

from mizzle.config import Transport


@dataclass(frozen=True, slots=True)
class JoinTerms:
    """On what terms ranks come together: ids and numbers.

    Attributes:
        run: the run's id.
        generation: membership epoch.
        group: number of the gathering within the generation.
        size: number of ranks.
        transport: how ranks reach each other.
        timeout_s: deadline in seconds of each collective, and of the ranks' coming together.
    """

    run: str
    generation: int
    group: int
    size: int
    transport: Transport
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Committed:
    """The boundary that a run goes on from, whatever happens: all its states and their copies are there.

    Attributes:
        iteration: iterations done before it.
        generation: whose ranks left the states in their arenas; -1 where none did.
        size: number of those ranks.
        checkpoint: name of the checkpoint that holds the states instead; "" where none does.
    """

    iteration: int = 0
    generation: int = -1
    size: int = 0
    checkpoint: str = ""

    @property
    def is_start(self) -> bool:
        """Whether nothing was done yet."""
        return self.generation < 0 and not self.checkpoint


@dataclass(frozen=True, slots=True)
class StartOrder:
    """What a resident is told when it is hired.

    Attributes:
        terms: of joining.
        wanted: the rank to be, or -1.
        since: where the run goes on.
        executors: by rank, where the driver has put it; empty where it may be anywhere.
        work: file with the pickled `ResidentWork`.
        rows: file with the pickled rows, or None.
        paths: where Python looks for modules in the task that hires: files may have been added to the application
            since the resident was started.
    """

    terms: JoinTerms
    wanted: int
    since: Committed
    executors: tuple[str, ...]
    work: str
    rows: str | None
    paths: tuple[str, ...]
