"""Options that hold several items, separated by commas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from mizzle.errors import ConfigError

_Name = TypeVar("_Name", bound=str)


def listed(text: str) -> list[str]:
    """The items of a comma-separated option, each once, in their order."""
    return list(dict.fromkeys(item.strip() for item in text.split(",") if item.strip()))


def one_of(name: str, known: Sequence[_Name], what: str) -> _Name:
    """The name, if it is known.

    Raises:
        ConfigError: names it and those that are known.
    """
    if name not in known:
        raise ConfigError(f"{name!r} is no {what}: give some of {', '.join(known)}")
    return next(one for one in known if one == name)


def numbers(text: str, what: str) -> list[int]:
    """The items as whole numbers from 1 on.

    Raises:
        ConfigError: names the item that is none.
    """
    found = listed(text)
    for item in found:
        if not (item.isascii() and item.isdigit() and int(item) > 0):
            raise ConfigError(f"{item!r} is no {what}: give whole numbers from 1 on, separated by commas")
    return [int(item) for item in found]
