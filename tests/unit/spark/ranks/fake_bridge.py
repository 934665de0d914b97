"""A bridge for workers that are tried without Spark: it says hello, tells counters, and gives no orders."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from pathlib import Path

from mizzle.blocks.card import CARD
from mizzle.blocks.frames import ANSWER, ERROR, PREFIX, Reader, Request, Writer


class FakeBridge:
    """Answers until it is told to hang.

    Args:
        directory: where a worker looks for its card.
        lease_s: what is written there.

    Attributes:
        hangs: whether it answers nothing.
        closes: so many connections are closed at once.
        told: how often it told its counters.
        serving: pids of residents that wait for an order.
        hires: what it says to the next hires: an answer, code and message of an error, or None, nothing.
    """

    def __init__(self, directory: Path, lease_s: float) -> None:
        self.path = str(directory / "s")
        (directory / CARD).write_text(f"{self.path}\n{'00' * 32}\n{int(lease_s * 1000)}\n")
        self.hangs = False
        self.closes = 0
        self.told = 0
        self.serving: list[int] = []
        self.hires: list[Writer | tuple[int, str] | None] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._sessions: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                session, _ = self._listener.accept()
            except OSError:
                return
            if self.closes:  # as one that has no thread for it
                self.closes -= 1
                session.close()
                continue
            self._sessions.append(session)
            threading.Thread(target=self._answer, args=(session,), daemon=True).start()

    def _answer(self, session: socket.socket) -> None:
        with suppress(OSError):
            while head := session.recv(PREFIX.size, socket.MSG_WAITALL):
                length, kind, tag, _ = PREFIX.unpack(head)
                more = length - PREFIX.size + 4
                body = Reader(session.recv(more, socket.MSG_WAITALL) if more else b"")
                if not self.hangs:
                    self._obey(session, kind, tag, body)

    def _obey(self, session: socket.socket, kind: int, tag: int, body: Reader) -> None:
        if kind == Request.SERVE:
            self.serving.append(body.number("I"))
            return
        if kind == Request.HIRE:
            self._say(session, kind, tag, self.hires.pop(0))
            return
        hello = Writer().text("7").text("host").number("H", 1).text("id").text("/d").text("")
        session.sendall((hello if kind == Request.HELLO else Writer().number("H", 0)).frame(kind | ANSWER, tag))
        self.told += kind == Request.COUNTERS

    def _say(self, session: socket.socket, kind: int, tag: int, said: Writer | tuple[int, str] | None) -> None:
        if isinstance(said, Writer):
            session.sendall(said.frame(kind | ANSWER, tag))
        elif said is not None:
            code, message = said
            session.sendall(Writer().number("Bi", code, -1).text(message).frame(ERROR, tag))

    def close(self) -> None:
        """End all connections."""
        self._listener.close()
        for session in self._sessions:
            with suppress(OSError):  # it is closed already
                session.shutdown(socket.SHUT_RDWR)
            session.close()
