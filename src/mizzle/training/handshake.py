"""Ranks that would not train the same thing are refused before the first block of weights is written.

What they train is shipped once, by the driver; but code that travels by name is what is installed on each executor.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from mizzle.errors import CollectiveMismatch
from mizzle.training.flat import FlatParameters


def identity(flat: FlatParameters) -> str:
    """What a rank trains, and with what: the model by its names, shapes, dtypes and groups in their order."""
    return f"model {flat.signature()[:16]} of {flat.num_elements} elements, mizzle {_version()}"


def check_identities(told: Sequence[bytes]) -> None:
    """All ranks must have told the same.

    Args:
        told: encoded identities, by rank.

    Raises:
        CollectiveMismatch: says which ranks have what, and what to do.
    """
    ranks_of: dict[str, list[int]] = {}
    for rank, one in enumerate(told):
        ranks_of.setdefault(one.decode(), []).append(rank)
    if len(ranks_of) > 1:
        said = "; ".join(f"ranks {ranks}: {one}" for one, ranks in ranks_of.items())
        raise CollectiveMismatch(
            f"ranks would not train the same model: {said}. Install the same mizzle, and the same version of the "
            "modules that the model is made of, on all executors"
        )


def _version() -> str:
    try:
        return version("mizzle")
    except PackageNotFoundError:  # sent as files, not installed
        return "of no version"
