"""What a rank is calling, as text that travels in front of every first-round message.

Ranks must agree on it before anything is summed. A field that a rank cannot know (the shape of a broadcast, at a
receiver) is left out and agrees with everything.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mizzle.errors import CollectiveMismatch

_LENGTH = struct.Struct("<H")


@dataclass(frozen=True, slots=True)
class Signature:
    """A call's name and fields: ``all_reduce op=sum dtype=float32 shape=3x4``."""

    text: str

    @classmethod
    def of(cls, call: str, **fields: object) -> Signature:
        """From a name and fields; a field that is None is left out."""
        return cls(" ".join([call, *(f"{name}={value}" for name, value in fields.items() if value is not None)]))

    @property
    def call(self) -> str:
        """The name of the collective."""
        return self.text.split(" ", 1)[0]

    @property
    def fields(self) -> Mapping[str, str]:
        """The fields that are given."""
        return dict(field.split("=", 1) for field in self.text.split(" ")[1:])

    def pack(self, rest: bytes) -> bytes:
        """A message's meta: the signature, then ``rest``."""
        text = self.text.encode()
        return _LENGTH.pack(len(text)) + text + rest


def unpack(meta: bytes) -> tuple[Signature, bytes]:
    """Signature and rest of a message's meta."""
    start = _LENGTH.size
    stop = start + _LENGTH.unpack_from(meta)[0]
    return Signature(meta[start:stop].decode()), meta[stop:]


def shape_text(shape: Sequence[int]) -> str:
    """``3x4``; ``scalar`` for no dimensions."""
    return "x".join(map(str, shape)) or "scalar"


def shape_of(text: str) -> tuple[int, ...]:
    """The shape that `shape_text` wrote."""
    return () if text == "scalar" else tuple(int(dim) for dim in text.split("x"))


def check_agree(by_rank: Mapping[int, Signature], where: str) -> None:
    """Refuse ranks that call different things.

    Args:
        by_rank: the signatures of some ranks or all, in their order.
        where: which collective this is about, for the message.

    Raises:
        CollectiveMismatch: names the ranks with each of the signatures. Every rank must make the same calls, in the
            same order, with the same arguments.
    """
    signatures = set(by_rank.values())
    if len(signatures) <= 1:
        return
    agree = len({signature.call for signature in signatures}) == 1
    seen: dict[str, str] = {}
    for signature in signatures if agree else ():
        agree = agree and all(seen.setdefault(name, value) == value for name, value in signature.fields.items())
    if not agree:
        ranks_of: dict[str, list[int]] = {}
        for rank, signature in by_rank.items():
            ranks_of.setdefault(signature.text, []).append(rank)
        said = "; ".join(
            f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}: {text}"
            for text, ranks in ranks_of.items()
        )
        raise CollectiveMismatch(f"{where}: ranks do not make the same call; {said}")
