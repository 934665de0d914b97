"""Judges the history of a run, not its exit code (after Jepsen): what was seen of it, against six promises.

Pure: `chaos.records` writes the history down while scenes are played, `chaos.inventory` what they left behind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mizzle import errors

OVER_S = 1.0
"""What a wait may take beyond its deadline."""
DOCUMENTED = frozenset(
    name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.MizzleError)
)


@dataclass(frozen=True)
class Wait:
    """Something that was waited for.

    Attributes:
        what: for messages.
        waited_s: how long it took.
        deadline_s: how long it may take.
    """

    what: str
    waited_s: float
    deadline_s: float


@dataclass(frozen=True)
class Seen:
    """Rows that one rank's model met for one shard in one iteration.

    Attributes:
        generation: of the rank.
        first: first iteration of the group that the rank did.
        iteration: of the run.
        shard: whose rows they are.
        rows: their numbers in the data.
    """

    generation: int
    first: int
    iteration: int
    shard: int
    rows: tuple[int, ...]


@dataclass(frozen=True)
class History:
    """What was seen of one run.

    Attributes:
        losses: of all iterations, as the user gets them.
        model: its tensors' bits, by name.
        num_rows: of the data.
        num_shards: V.
        per_epoch: iterations of an epoch.
        committed: (generation, first iteration, the one behind the last) of every group that the driver counts.
        tried: (generation, boundary) of every group that the driver ordered, in order.
        seen: all rows that any model met, whether its group counts or not.
        waits: what was waited for.
        left: what was still there ten seconds after the run.
        error: the class of what the run ended with, or "".
    """

    losses: tuple[float, ...] = ()
    model: Mapping[str, str] = field(default_factory=dict)
    num_rows: int = 0
    num_shards: int = 1
    per_epoch: int = 1
    committed: tuple[tuple[int, int, int], ...] = ()
    tried: tuple[tuple[int, int], ...] = ()
    seen: tuple[Seen, ...] = ()
    waits: tuple[Wait, ...] = ()
    left: tuple[str, ...] = ()
    error: str = ""

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> History:
        """From what JSON made of it: lists are tuples again."""
        return cls(
            tuple(told["losses"]), dict(told["model"]), told["num_rows"], told["num_shards"], told["per_epoch"],
            tuple((gen, first, stop) for gen, first, stop in told["committed"]),
            tuple((gen, boundary) for gen, boundary in told["tried"]),
            tuple(Seen(gen, first, at, shard, tuple(rows)) for gen, first, at, shard, rows in told["seen"]),
            tuple(Wait(*wait) for wait in told["waits"]), tuple(told["left"]), told["error"],
        )  # fmt: skip


def recomputed(history: History) -> list[int]:
    """Iterations that some rank had begun in a group that does not count."""
    group_of = {(gen, first): range(first, stop) for gen, first, stop in history.committed}
    return sorted({
        one.iteration for one in history.seen if one.iteration not in group_of.get((one.generation, one.first), ())
    })  # fmt: skip


def complaints(history: History, calm: History) -> list[str]:
    """All that is wrong with a history; nothing, if it keeps the promises.

    Args:
        history: of a run that was struck by faults.
        calm: of the same run without them.
    """
    found = [*_i3_never_back(history), *_i4_in_time(history), *_i5_nothing_left(history), *_i6_documented(history)]
    if not history.error:
        found += [*_i1_same_bits(history, calm), *_i2_every_row_once(history)]
    return found


def _i1_same_bits(history: History, calm: History) -> Iterator[str]:
    if not calm.losses or not calm.model:
        yield "I1: there is nothing to compare with"
    if history.losses != calm.losses:
        at = next((t for t, (a, b) in enumerate(zip(history.losses, calm.losses, strict=False)) if a != b), -1)
        yield f"I1: {len(history.losses)} losses differ from the {len(calm.losses)} of the calm run, first in {at}"
    names = sorted(
        name for name in history.model.keys() | calm.model.keys() if history.model.get(name) != calm.model.get(name)
    )
    if names:
        yield f"I1: bits of {', '.join(names)} differ from those of the calm run"


def _i2_every_row_once(history: History) -> Iterator[str]:
    """Every iteration is committed once, and every (epoch, shard, row) was met once in what was committed."""
    counts = Counter(t for _, first, stop in history.committed for t in range(first, stop))
    wrong = sorted(t for t in counts.keys() | set(range(len(history.losses))) if counts[t] != 1)
    if wrong:
        yield f"I2: iterations {wrong} were not committed just once"
    group_of = {(gen, first): range(first, stop) for gen, first, stop in history.committed}
    met: Counter[tuple[int, int, int]] = Counter()
    for one in history.seen:
        if one.iteration not in group_of.get((one.generation, one.first), ()):
            continue
        epoch = one.iteration // history.per_epoch
        met.update((epoch, one.shard, row) for row in one.rows)
        strange = [row for row in one.rows if row % history.num_shards != one.shard]
        if strange:
            yield f"I2: rows {strange} are not of shard {one.shard}, which had them in iteration {one.iteration}"
    twice = sorted(key for key, times in met.items() if times > 1)
    if twice:
        yield f"I2: (epoch, shard, row) {twice[:5]} and {max(0, len(twice) - 5)} more were met more than once"
    whole = {(epoch, row % history.num_shards, row) for epoch in range(len(history.losses) // history.per_epoch)
             for row in range(history.num_rows)}  # fmt: skip
    missing = sorted(whole - met.keys())
    if missing:
        yield f"I2: (epoch, shard, row) {missing[:5]} and {max(0, len(missing) - 5)} more were never met"


def _i3_never_back(history: History) -> Iterator[str]:
    for before, after in zip(history.tried, history.tried[1:], strict=False):
        if after[0] < before[0] or after[1] < before[1]:
            yield f"I3: (generation, boundary) went from {before} to {after}"


def _i4_in_time(history: History) -> Iterator[str]:
    for wait in history.waits:
        if wait.waited_s > wait.deadline_s + OVER_S:
            yield f"I4: {wait.what} took {wait.waited_s:.1f} s, {wait.deadline_s:g} s are allowed"


def _i5_nothing_left(history: History) -> Iterator[str]:
    yield from (f"I5: ten seconds after the run there is {what}" for what in history.left)


def _i6_documented(history: History) -> Iterator[str]:
    if history.error and history.error not in DOCUMENTED:
        yield f"I6: the run ended with {history.error}, which is on no page"
