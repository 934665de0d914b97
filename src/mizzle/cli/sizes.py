"""Sizes as one writes them: 1KB is 1024 bytes, because arrays of a benchmark are; MB and GB are powers of ten."""

from __future__ import annotations

import re

from mizzle.errors import ConfigError

_UNITS = {"B": 1, "KB": 1024, "MB": 10**6, "GB": 10**9}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMG]?B)", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes of ``1KB``, ``28MB``, ``1.5 MB`` or ``100B``.

    Raises:
        ConfigError: it is no size, or no whole number of bytes.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ConfigError(f"{text!r} is no size: write a number and B, KB (1024), MB (10^6) or GB (10^9), as in 28MB")
    scaled = float(found.group(1)) * _UNITS[found.group(2).upper()]
    if scaled < 1 or not scaled.is_integer():
        raise ConfigError(f"a size of {text!r} is {scaled:g} bytes: give a whole number of bytes, at least 1")
    return int(scaled)


def format_size(num_bytes: int) -> str:
    """In the largest unit that needs at most one decimal: `parse_size` reads back the same number."""
    for unit in ("GB", "MB", "KB"):
        tenths, rest = divmod(num_bytes * 10, _UNITS[unit])
        if tenths >= 10 and rest == 0:
            whole, tenth = divmod(tenths, 10)
            return f"{whole}.{tenth}{unit}" if tenth else f"{whole}{unit}"
    return f"{num_bytes}B"
