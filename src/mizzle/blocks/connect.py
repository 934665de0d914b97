"""From a membership to a store: which peers share this host's memory, which are reached through the BlockManager.

Both ends of a pair must choose alike, or each waits where the other does not write. So the choice is made by what both
know, the host ids (boot, process namespace and user, as the bridge tells them), and never by whether memory happens to
open: what should be visible and is not is an error.
"""

from __future__ import annotations

from mizzle.blocks.arena import BridgeArena, open_region
from mizzle.blocks.bridge import BridgeClient, Membership
from mizzle.blocks.island import islands_of
from mizzle.blocks.notes import CONTROL, control_bytes
from mizzle.blocks.routed import RoutedStore
from mizzle.blocks.shared import SharedStore
from mizzle.blocks.store import BlockStore
from mizzle.blocks.transfer import TransferStore
from mizzle.config import Transport
from mizzle.errors import ArenaError, ConfigError, PeerLost


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
        ConfigError: ``transport="shm"``, but a peer is not on this host; use "auto".
        ArenaError: a peer on this host does not let its memory be opened; use "blocks".
        PeerLost: a peer on this host is gone already; run the group again.
    """
    apart = transport == "blocks"
    islands = islands_of(range(len(membership.peers)) if apart else [peer.host_id for peer in membership.peers])
    blocks = TransferStore(client, arena, membership, timeout_s, islands=islands)
    controls = [""] * blocks.size if apart else _visible(membership, client.host_id)
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
    return RoutedStore(blocks, {rank: shared if controls[rank] else blocks for rank in others}, islands)


def _visible(membership: Membership, host_id: str) -> list[str]:
    """Paths of the control regions of this host's ranks, all of which can be opened; "" for the others."""
    length = control_bytes(len(membership.peers))
    paths = [peer.control if peer.host_id == host_id else "" for peer in membership.peers]
    for rank, path in enumerate(paths):
        if not path or rank == membership.rank:
            continue
        try:
            open_region(CONTROL, path, length)
        except ArenaError as error:
            if isinstance(error.__cause__, FileNotFoundError | ProcessLookupError):
                raise PeerLost(rank, f"its memory is gone: {error}") from error
            raise ArenaError(
                f"rank {membership.rank} cannot open the memory of rank {rank}, though both are on one host (container "
                f'security or hidden processes?): use transport="blocks" ({error})'
            ) from error
    return paths
