"""A resident ends with its bridge: here a bridge that answers as long as the test wants."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from mizzle.blocks.bridge import CARD, BridgeClient, lease_s
from mizzle.blocks.deadline import Deadline
from mizzle.blocks.frames import ANSWER, PREFIX, Request, Writer
from mizzle.spark import lifeline

LEASE_S, SOON_S = 0.4, 10.0


class Bridge:
    """Says hello and tells its counters, until it is told to hang."""

    def __init__(self, directory: Path) -> None:
        path = directory / "s"
        (directory / CARD).write_text(f"{path}\n{'00' * 32}\n{int(LEASE_S * 1000)}\n")
        self.hangs = False
        self.told = 0
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self.sessions: list[socket.socket] = []
        self.client_path = str(path)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                session, _ = self._listener.accept()
            except OSError:
                return
            self.sessions.append(session)
            threading.Thread(target=self._answer, args=(session,), daemon=True).start()

    def _answer(self, session: socket.socket) -> None:
        while head := session.recv(PREFIX.size, socket.MSG_WAITALL):
            length, kind, tag = PREFIX.unpack(head)
            if length > PREFIX.size - 4:
                session.recv(length - PREFIX.size + 4, socket.MSG_WAITALL)
            if self.hangs:
                continue
            hello = Writer().text("7").text("host").number("H", 1).text("id").text("/d")
            session.sendall((hello if kind == Request.HELLO else Writer().number("H", 0)).frame(kind | ANSWER, tag))
            self.told += kind == Request.COUNTERS

    def close(self) -> None:
        self._listener.close()
        for session in self.sessions:
            with suppress(OSError):  # it is closed already
                session.shutdown(socket.SHUT_RDWR)
            session.close()


@pytest.fixture
def bridge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bridge]:
    monkeypatch.setenv("SPARK_LOCAL_DIRS", str(tmp_path))
    monkeypatch.setattr(lifeline, "_PERIOD_S", 0.02)
    made = Bridge(tmp_path)
    yield made
    made.close()


def outliving(bridge: Bridge) -> tuple[threading.Thread, BridgeClient]:
    client = BridgeClient(bridge.client_path, bytes(32), Deadline.after(SOON_S))
    thread = threading.Thread(target=lifeline.outlive, args=(client,), daemon=True)
    thread.start()
    while bridge.told < 3:
        assert thread.is_alive(), "as long as the bridge answers it goes on"
        thread.join(0.01)
    return thread, client


def test_a_bridge_that_hangs_is_outlived_by_its_lease_and_no_longer(bridge: Bridge) -> None:
    thread, client = outliving(bridge)
    bridge.hangs, begun = True, time.monotonic()
    thread.join(SOON_S)
    assert not thread.is_alive()
    assert LEASE_S <= time.monotonic() - begun < LEASE_S + 2
    client.close()


def test_a_bridge_that_ends_is_followed_at_once(bridge: Bridge) -> None:
    thread, client = outliving(bridge)
    bridge.close()
    thread.join(SOON_S)
    assert not thread.is_alive()
    client.close()


def test_the_lease_is_told_by_the_bridge(bridge: Bridge, tmp_path: Path) -> None:
    assert lease_s(f"/nowhere,{tmp_path}") == pytest.approx(LEASE_S)
