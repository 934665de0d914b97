"""What may happen to the files of a checkpoint while nobody looks; and the check that it is seen."""

from __future__ import annotations

import logging
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mizzle.training.checkpoint import CheckpointStore
from unit.spark import saved
from unit.spark.resumed import resumed
from unit.training.checkpoints import assert_loads, save

CHOSEN_WITHIN_S = 2.0


def truncated(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def flipped(path: Path, rng: random.Random) -> None:
    raw = bytearray(path.read_bytes())
    raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    path.write_bytes(raw)


def swapped(path: Path, rng: random.Random) -> None:
    others = [other for other in path.parent.iterdir() if other != path]
    other = rng.choice(others)
    content = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)


def from_the_older(path: Path, rng: random.Random) -> None:
    older = min(path.parent.parent.iterdir())
    path.write_bytes(
        (older / rng.choice(["part-00000.safetensors", "part-00001.safetensors", "MANIFEST.json"])).read_bytes()
    )


def deleted(path: Path, _: random.Random) -> None:
    path.unlink()


def longer(path: Path, rng: random.Random) -> None:
    with path.open("ab") as file:
        file.write(rng.randbytes(rng.randrange(1, 5000)))


def blanked(path: Path, rng: random.Random) -> None:
    raw = bytearray(path.read_bytes())
    start = rng.randrange(len(raw))
    raw[start : start + 4096] = bytes(len(raw[start : start + 4096]))
    path.write_bytes(raw)


DAMAGES: tuple[Callable[[Path, random.Random], None], ...] = (
    truncated, flipped, swapped, from_the_older, deleted, longer, blanked,
)  # fmt: skip


@dataclass(frozen=True)
class Way:
    """How checkpoints are saved, and how one is chosen.

    Attributes:
        save_two: at a path: the names of the older and the newer one.
        choose: at a path: the name of the one that is taken, with just what was saved in it.
    """

    save_two: Callable[[Path], tuple[str, str]]
    choose: Callable[[Path], str | None]


def _saved_by_store(path: Path) -> tuple[str, str]:
    store = CheckpointStore(str(path))
    return save(store, 1), save(store, 2)


def _newest_valid(path: Path) -> str | None:
    store = CheckpointStore(str(path))
    found = store.newest_valid()
    if found is not None:
        assert_loads(store, found[1])
    return None if found is None else found[0]


def _saved_by_training(path: Path) -> tuple[str, str]:
    one = saved.saving(path)
    old, new = (saved.save(one, iteration, evaluations=saved.EVALUATIONS) for iteration in (5, 10))
    return old, new


def _resumed(path: Path) -> str | None:
    found = resumed(path)
    return None if found is None else found[0]


WAYS = {
    "mizzle ckpt": Way(_saved_by_store, _newest_valid),
    "resume": Way(_saved_by_training, _resumed),
}


def check_damages(path: Path, count: int, seed: int, caplog: pytest.LogCaptureFixture, way: Way) -> None:
    """Damage the newest of two checkpoints so many times; each time the older one is chosen, and the file is named."""
    rng = random.Random(seed)  # noqa: S311 - which damage comes next is no secret
    old, new = way.save_two(path / "run")
    whole, folder = path / "whole", path / "run" / new
    folder.rename(whole)
    done = 0
    while done < count:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        file, damage = rng.choice(sorted(folder.iterdir())), rng.choice(DAMAGES)
        damage(file, rng)
        hurt = [
            one.name for one in whole.iterdir() if not (folder / one.name).exists() or _differ(one, folder / one.name)
        ]
        if not hurt:
            continue  # such as zeros for zeros
        done += 1
        caplog.clear()
        start = time.monotonic()
        with caplog.at_level(logging.WARNING):
            found = way.choose(path / "run")
        what = f"damage {done} (seed {seed}): {file.name} {damage.__name__}"
        assert time.monotonic() - start < CHOSEN_WITHIN_S, what
        assert found == old, what
        # without its manifest it is none that anybody would have loaded
        assert (hurt == ["MANIFEST.json"] and damage is deleted) or any(
            f"{new}/{name}" in caplog.text for name in hurt
        ), what


def _differ(one: Path, other: Path) -> bool:
    return one.read_bytes() != other.read_bytes()
