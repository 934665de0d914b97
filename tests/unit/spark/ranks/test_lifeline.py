"""A resident ends with its bridge: here a bridge that answers as long as the test wants."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mizzle.blocks.bridge import BridgeClient
from mizzle.blocks.card import lease_s
from mizzle.blocks.deadline import Deadline
from mizzle.spark.ranks import lifeline
from unit.spark.ranks.fake_bridge import FakeBridge

LEASE_S, SOON_S = 0.4, 10.0


@pytest.fixture
def bridge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeBridge]:
    monkeypatch.setenv("SPARK_LOCAL_DIRS", str(tmp_path))
    monkeypatch.setattr(lifeline, "_PERIOD_S", 0.02)
    made = FakeBridge(tmp_path, LEASE_S)
    yield made
    made.close()


def outliving(bridge: FakeBridge, closes: int = 0) -> tuple[threading.Thread, BridgeClient]:
    client = BridgeClient(bridge.path, bytes(32), Deadline.after(SOON_S))
    bridge.closes = closes
    thread = threading.Thread(target=lifeline.outlive, args=(client,), daemon=True)
    thread.start()
    while bridge.told < 3:
        assert thread.is_alive(), "as long as the bridge answers it goes on"
        thread.join(0.01)
    return thread, client


def test_a_bridge_that_hangs_is_outlived_by_its_lease_and_no_longer(bridge: FakeBridge) -> None:
    thread, client = outliving(bridge)
    bridge.hangs, begun = True, time.monotonic()
    thread.join(SOON_S)
    assert not thread.is_alive()
    assert LEASE_S <= time.monotonic() - begun < LEASE_S + 2
    client.close()


def test_a_bridge_that_ends_is_followed_at_once(bridge: FakeBridge) -> None:
    thread, client = outliving(bridge)
    bridge.close()
    thread.join(SOON_S)
    assert not thread.is_alive()
    client.close()


def test_a_bridge_that_has_no_thread_for_another_connection_is_asked_again(bridge: FakeBridge) -> None:
    thread, client = outliving(bridge, closes=2)
    bridge.close()
    thread.join(SOON_S)
    assert not thread.is_alive()
    client.close()


def test_a_bridge_that_never_has_one_is_outlived_by_its_lease(bridge: FakeBridge) -> None:
    client = BridgeClient(bridge.path, bytes(32), Deadline.after(SOON_S))
    bridge.closes, begun = 1_000_000, time.monotonic()
    lifeline.outlive(client)
    assert LEASE_S <= time.monotonic() - begun < LEASE_S + 2
    client.close()


def test_the_lease_is_told_by_the_bridge(bridge: FakeBridge, tmp_path: Path) -> None:
    assert lease_s(f"/nowhere,{tmp_path}") == pytest.approx(LEASE_S)
