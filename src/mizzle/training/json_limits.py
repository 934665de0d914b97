"""How much JSON of strangers is parsed: what a parser makes of it is limited by its items, whatever they are. Pure."""

from __future__ import annotations

MAX_BYTES = 4 * 2**20
# Together they cost a parser less than 32 MB.
_MAX_ITEMS = 2**18
_MAX_NESTED = 2**16


def beyond_limits(text: str, *, max_names: int = _MAX_ITEMS) -> str:
    """Why this JSON may take more than 32 MB when it is parsed; "" if it cannot.

    Args:
        text: ASCII, as Python writes JSON; others take memory four times. It is not parsed, so what stands inside of
            names counts too.
        max_names: of all objects together, where a name costs more than usual.
    """
    num_names, num_nested = text.count(":"), text.count("[") + text.count("{")
    num_items = text.count(",") + num_names
    if len(text) <= MAX_BYTES and num_items <= _MAX_ITEMS and num_names <= max_names and num_nested <= _MAX_NESTED:
        return ""
    return (
        f"has {len(text)} bytes, {num_items} items, {num_names} names and {num_nested} lists or objects: more than "
        f"{MAX_BYTES}, {_MAX_ITEMS}, {max_names} or {_MAX_NESTED} are not read"
    )
