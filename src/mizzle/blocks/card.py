"""The card that a bridge leaves in its executor's local directory, for the Python workers of that executor alone."""

from __future__ import annotations

from pathlib import Path

from mizzle.errors import BridgeMissing

CARD = "mizzle.bridge"
"""Name of the file in the executor's local directory that tells socket and token."""


def find_bridge(local_dirs: str | None) -> tuple[str, bytes]:
    """Socket path and token of the bridge of the executor this worker belongs to.

    Args:
        local_dirs: what Spark tells its Python workers in ``SPARK_LOCAL_DIRS``.

    Raises:
        BridgeMissing: this is no Spark worker, or its session has no bridge.
    """
    path, token, _ = _card(local_dirs)
    return path, bytes.fromhex(token)


def lease_s(local_dirs: str | None) -> float:
    """For so many seconds that bridge may be silent; after that others may have taken over from its ranks.

    Raises:
        BridgeMissing: as `find_bridge` does.
    """
    return int(_card(local_dirs)[2]) / 1000


def _card(local_dirs: str | None) -> list[str]:
    """Socket path, token, and the length of the lease in ms."""
    for directory in (local_dirs or "").split(","):
        card = Path(directory) / CARD
        if directory and card.is_file():
            return card.read_text().split()
    raise BridgeMissing(
        "no mizzle bridge in this executor: start the session with mizzle.session(...), or with "
        "SparkSession.builder.config(map=mizzle.spark_conf())"
    )
