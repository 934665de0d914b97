"""Write the golden files of the protocol anew: `python protocol/golden/make.py`. Only when the protocol changes.

Plain `struct`, none of mizzle's code: the files are a second writing-down of frames.md, not a copy of what is tested.
"""
# ruff: noqa: INP001 - a script beside what it writes

from __future__ import annotations

import json
import struct
from pathlib import Path

HERE = Path(__file__).parent
RUN = bytes(range(16))
POLYNOMIAL = 0x82F63B78


def crc32c(data: bytes) -> int:
    """The Castagnoli checksum, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (POLYNOMIAL if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def block(meta: bytes, payload: bytes, *, generation: int, iteration: int, op: int) -> bytes:
    """A block: header, meta, payload; kind 2, slice 5, source 6, dtype 1, part 7."""
    front = struct.pack("<2sBB16sIQHHHBB", b"MZ", 1, 2, RUN, generation, iteration, op, 5, 6, 1, 7)
    front += struct.pack("<IQI", len(meta), len(payload), crc32c(meta + payload))
    return front + struct.pack("<II", crc32c(front), 0) + meta + payload


def blob(data: bytes) -> bytes:
    """u32 length, bytes."""
    return struct.pack("<I", len(data)) + data


def frame(kind: int, tag: int, body: bytes) -> bytes:
    """A whole frame."""
    front = struct.pack("<IBI", len(body) + 9, kind, tag)
    return front + struct.pack("<I", crc32c(front + body)) + body


SMALL = block(b"meta", b"payload!", generation=3, iteration=11, op=4)
LARGE = block(b"", b"", generation=2**32 - 1, iteration=2**64 - 1, op=65535)
FILES: dict[str, bytes] = {
    "block_small": SMALL,
    "block_largest_numbers": LARGE,
    "letter": struct.pack("<II", 2, 1) + SMALL,
    "letter_dropped": struct.pack("<II", 2, 0),
    "hello": frame(1, 1, struct.pack("<H", 2) + bytes(range(32))),
    "hello_answer": frame(
        0x81,
        1,
        blob(b"7") + blob(b"host") + struct.pack("<H", 40404) + blob(b"id") + blob(b"/d") + blob(b"0.1.0"),
    ),
    "claim": frame(2, 2, blob(RUN.hex().encode()) + struct.pack("<ii", -1, 6)),
    "region": frame(3, 3, blob(b"weights") + blob(b"/proc/1/fd/2") + struct.pack("<Q", 1 << 33)),
    "join": frame(
        4, 4, struct.pack("<IQHiI", 3, 12, 4, -1, 60000) + blob(b"/proc/1/fd/3") + struct.pack("<HHH", 2, 1, 65535)
    ),
    "put": frame(
        5, 1 << 31 | 5, SMALL[:64] + blob(b"meta") + struct.pack("<BIQQ", 1, 9, 128, 8) + struct.pack("<HHH", 2, 0, 3)
    ),
    "fetch_without_payload": frame(6, 6, struct.pack("<I", 1500) + SMALL[:64] + b"\0"),
    "fetch_answer": frame(0x86, 6, SMALL[:64] + blob(b"meta")),
    "drop": frame(7, 1 << 31 | 7, struct.pack("<QH", 12, 4)),
    "cancel": frame(14, 1 << 31 | 8, struct.pack("<I", 6)),
    "serve": frame(15, 9, struct.pack("<IQi", 4711, 3, -1) + blob(b"outcome")),
    "serve_answer": frame(0x8F, 9, struct.pack("<QB", 2**64 - 1, 2) + blob(b"r") + struct.pack("<I", 3) + blob(b"do")),
    "hire": frame(16, 10, blob(RUN.hex().encode()) + struct.pack("<IBI", 3, 1, 60000) + blob(b"how")),
    "hire_answer": frame(0x90, 10, b"\x01" + blob(b"ready")),
    "hire_answer_nobody": frame(0x90, 10, b"\0"),
    "error_peer_lost": frame(0xFF, 6, struct.pack("<Bi", 2, 3) + blob("gone: \u00e9".encode())),
}


def main() -> None:
    """Write every file and the index, which tells what each holds."""
    index = {}
    for name, content in FILES.items():
        (HERE / f"{name}.bin").write_bytes(content)
        index[name] = {"bytes": len(content), "crc32c": f"{crc32c(content):08x}"}
    (HERE / "index.json").write_text(json.dumps(index, indent=2) + "\n")


if __name__ == "__main__":
    main()
