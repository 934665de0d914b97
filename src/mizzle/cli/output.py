"""JSON files as the commands write them: whole or not at all, and refused before the work rather than after it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from mizzle.errors import ConfigError

JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", dir_okay=False, help="Write the result there, as JSON.")
]
"""The option that all commands have."""


def check_writable(path: Path | None, option: str = "--json") -> None:
    """Refuse a file that could not be written, before anything starts; its directory is made.

    Args:
        path: the file, if one is wanted.
        option: that named it.

    Raises:
        ConfigError: names the file and the reason.
    """
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{option} {path}: {error.strerror}; name a file in a directory of yours") from error
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"{option} {path} cannot be written: name a file in a directory of yours")


def write_json(path: Path | None, content: object) -> None:
    """Write it, unless no file is wanted. A reader never sees half of it."""
    if path is None:
        return
    half = path.with_name(f".{path.name}.{os.getpid()}")
    half.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    half.replace(path)
