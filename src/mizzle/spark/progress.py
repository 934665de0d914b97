"""A progress bar on the driver: quiet when nobody looks at a terminal."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mizzle.training.history import TrainingHistory


class TrainingProgress:
    """One line for a run: iterations, loss, samples per second, where the time goes. A context manager."""

    def __init__(self, num_iterations: int, *, enabled: bool | None = None) -> None:
        """Make the bar.

        Args:
            num_iterations: of the whole run.
            enabled: None shows it when standard error is a terminal.
        """
        shown = sys.stderr.isatty() if enabled is None else enabled
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  {task.fields[rate]:,.0f} samples/s  {task.fields[split]}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            disable=not shown,
        )
        self._task = self._progress.add_task("", total=num_iterations, epoch=0, loss=float("nan"), rate=0.0, split="")

    def update(self, history: TrainingHistory, rows: int, wall_s: float) -> None:
        """Show where the run is after a group.

        Args:
            history: of the run so far.
            rows: rows of that group.
            wall_s: seconds it took.
        """
        time = history.time
        total = max(1e-9, time.compute_s + time.update_s + time.exchange_s + time.scheduling_s)
        split = (
            f"compute {(time.compute_s + time.update_s) / total:.0%} exchange {time.exchange_s / total:.0%} "
            f"scheduling {time.scheduling_s / total:.0%}"
        )
        self._progress.update(
            self._task,
            completed=history.iterations,
            epoch=history.groups[-1].epoch,
            loss=history.last_loss,
            rate=rows / max(1e-9, wall_s),
            split=split,
        )

    def __enter__(self) -> Self:
        """Start to draw."""
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the last state on the screen."""
        self._progress.stop()
