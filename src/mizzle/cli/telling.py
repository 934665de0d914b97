"""Saying what a long command is doing: one line that changes on a terminal, a line for each step elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console


@contextmanager
def telling(console: Console) -> Iterator[Callable[[str], None]]:
    """What to call with each step while the ``with`` block lasts."""
    if console.is_terminal:
        with console.status("") as status:
            yield status.update
    else:
        yield lambda what: console.print(what, highlight=False, soft_wrap=True)
