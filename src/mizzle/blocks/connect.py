"""From a membership to a store: which peers share this host's memory, which are reached through the BlockManager."""

from __future__ import annotations

import logging

from mizzle.blocks.arena import BridgeArena, open_region
from mizzle.blocks.bridge import BridgeClient, Membership
from mizzle.blocks.notes import CONTROL, control_bytes
from mizzle.blocks.routed import RoutedStore
from mizzle.blocks.shared import SharedStore
from mizzle.blocks.store import BlockStore
from mizzle.blocks.transfer import TransferStore
from mizzle.config import Transport
from mizzle.errors import ArenaError, ConfigError

_log = logging.getLogger(__name__)


def connect_store(
    client: BridgeClient, arena: BridgeArena, membership: Membership, *, transport: Transport, timeout_s: float
) -> BlockStore:
    """The store of a rank that has joined its group.

    Args:
        client: the connection that joined.
        arena: this rank's arena, its control region emptied before joining.
        membership: the answer to the join.
        transport: "auto", "shm" (refuse peers that are not visible) or "blocks" (never share memory).
        timeout_s: deadline of what the stores wait for by themselves.

    Raises:
        ConfigError: ``transport="shm"``, but a peer's memory is not visible here; use "auto".
    """
    blocks = TransferStore(client, arena, membership, timeout_s)
    controls = [""] * blocks.size if transport == "blocks" else _visible(membership, client.host_id)
    others = [rank for rank in range(blocks.size) if rank != blocks.rank]
    hidden = [rank for rank in others if not controls[rank]]
    if transport == "shm" and hidden:
        raise ConfigError(
            f'transport="shm", but the memory of rank {hidden[0]} is not visible to rank {blocks.rank} '
            '(another host, container or user): use transport="auto"'
        )
    if len(hidden) == len(others):
        return blocks
    shared = SharedStore(
        arena, run=blocks.run, generation=blocks.generation, rank=blocks.rank, controls=controls, timeout_s=timeout_s
    )
    return RoutedStore(blocks, {rank: shared if controls[rank] else blocks for rank in others})


def _visible(membership: Membership, host_id: str) -> list[str]:
    """Paths of the control regions that this process can open, "" for the others."""
    paths = []
    length = control_bytes(len(membership.peers))
    for peer in membership.peers:
        path = peer.control if peer.host_id == host_id else ""
        if path and peer.rank != membership.rank:
            try:
                open_region(CONTROL, path, length)
            except ArenaError as error:
                _log.info("run=%s rank=%d reaches rank %d through blocks: %s", membership.run[:4], membership.rank,
                          peer.rank, error)  # fmt: skip
                path = ""
        paths.append(path)
    return paths
