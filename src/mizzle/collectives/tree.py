"""The canonical tree over shards, which fixes the order of every sum. Pure: no tensors here.

Node (lo, hi) stands for the shards lo..hi-1; it splits at lo + the largest power of two below its width. A rank that
holds a whole node may add it up beforehand: the bits stay the same, whatever the number of ranks and the placement.
Absent shards are skipped: combining nothing with x gives x.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mizzle.errors import ConfigError

MAX_NODES = 48
"""Nodes that one rank may contribute. Each travels as a block of its own, all are put before one is read, and shared
memory has room for 64 notes to a reader. Neighbouring shards, however many, make few nodes."""


class Node(NamedTuple):
    """A node of the canonical tree: the shards lo..hi-1."""

    lo: int
    hi: int

    def children(self) -> tuple[Node, Node]:
        """Left and right child; only for a node of two shards or more."""
        mid = self.lo + (1 << ((self.hi - self.lo - 1).bit_length() - 1))
        return Node(self.lo, mid), Node(mid, self.hi)

    @property
    def is_leaf(self) -> bool:
        """Whether it stands for a single shard."""
        return self.hi - self.lo == 1


def cover(shards: Collection[int], num_shards: int) -> tuple[Node, ...]:
    """The maximal nodes that lie wholly within ``shards``, in shard order: what a rank holding them contributes.

    Args:
        shards: distinct shard numbers in 0..num_shards-1, any order, may be empty.
        num_shards: V, >= 1.

    Raises:
        ConfigError: a shard is out of range or named twice.
    """
    held = sorted(shards)
    if num_shards < 1 or len(set(held)) != len(held) or (held and not 0 <= held[0] <= held[-1] < num_shards):
        raise ConfigError(f"shards {held} are not distinct numbers in 0..{num_shards - 1}")
    found: list[Node] = []

    def visit(node: Node) -> None:
        inside = bisect_left(held, node.hi) - bisect_left(held, node.lo)
        if inside == node.hi - node.lo:
            found.append(node)
        elif inside:
            for child in node.children():
                visit(child)

    visit(Node(0, num_shards))
    return tuple(found)


class Step(NamedTuple):
    """Combine operands ``left`` and ``right`` into scratch ``into``.

    Operand i < number of sources is source i; operand sources + j is scratch j.
    """

    left: int
    right: int
    into: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The order in which given sources are combined.

    Attributes:
        sources: the nodes combined, as given.
        steps: in order; the last one gives the result. Empty with one source or none.
        num_scratch: scratch places needed, at most the depth of the tree.
    """

    sources: tuple[Node, ...]
    steps: tuple[Step, ...]
    num_scratch: int


class _Planner:
    """Walks the tree once, giving out scratch places and taking them back."""

    def __init__(self, sources: Sequence[Node]) -> None:
        self.index = {node: i for i, node in enumerate(sources)}
        self.starts = sorted(node.lo for node in sources)
        self.steps: list[Step] = []
        self.free: list[int] = []
        self.num_scratch = 0
        self.visited = 0

    def visit(self, node: Node) -> int | None:
        """The operand that holds the node's value; None when it is absent."""
        if node in self.index:
            self.visited += 1
            return self.index[node]
        if node.is_leaf or bisect_left(self.starts, node.lo) == bisect_left(self.starts, node.hi):
            return None
        left, right = (self.visit(child) for child in node.children())
        if left is None or right is None:
            return right if left is None else left
        return self.combine(left, right)

    def combine(self, left: int, right: int) -> int:
        """Append a step; its result takes the place of an operand where it can."""
        held = [operand - len(self.index) for operand in (left, right) if operand >= len(self.index)]
        if held:
            into = held[0]
            self.free.extend(held[1:])
        elif self.free:
            into = self.free.pop()
        else:
            into = self.num_scratch
            self.num_scratch += 1
        self.steps.append(Step(left, right, into))
        return len(self.index) + into


def plan(sources: Sequence[Node], num_shards: int) -> Plan:
    """The canonical order of combining ``sources`` (in any order, disjoint; shards of none of them are absent).

    Raises:
        ConfigError: a source is not a node of the tree over ``num_shards``, or two of them overlap.
    """
    planner = _Planner(sources)
    planner.visit(Node(0, num_shards))
    if planner.visited != len(sources):
        raise ConfigError(f"{list(map(tuple, sources))} are not disjoint nodes of the tree over {num_shards} shards")
    return Plan(tuple(sources), tuple(planner.steps), planner.num_scratch)
