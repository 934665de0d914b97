"""Which peers share memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from mizzle.blocks.arena import LocalArena
from mizzle.blocks.bridge import Membership, Peer
from mizzle.blocks.connect import _visible
from mizzle.blocks.notes import prepare_control
from mizzle.errors import ArenaError, PeerLost


def membership(path: str, host_id: str = "here") -> Membership:
    """Seen from rank 0: rank 1 has its control region at ``path``."""
    return Membership("0" * 32, 0, 0, (Peer(0, "here", "/own", "a"), Peer(1, host_id, path, "b")))


def test_peers_of_this_host_share_memory_and_others_do_not() -> None:
    arena = LocalArena()
    path = prepare_control(arena, 2).path
    assert _visible(membership(path), "here") == ["/own", path]
    assert _visible(membership("/proc/1/fd/7", "elsewhere"), "here") == ["/own", ""]
    arena.close()


def test_memory_of_this_host_that_cannot_be_opened_is_an_error_and_no_detour(tmp_path: Path) -> None:
    with pytest.raises(ArenaError, match=r'rank 0 cannot open the memory of rank 1.*transport="blocks"'):
        _visible(membership(str(tmp_path)), "here")


def test_a_peer_whose_memory_is_gone_is_lost(tmp_path: Path) -> None:
    with pytest.raises(PeerLost, match="rank 1 is lost: its memory is gone"):
        _visible(membership(str(tmp_path / "gone")), "here")
