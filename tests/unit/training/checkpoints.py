"""Checkpoints of small made-up states, for the tests of storage: every element says which one it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mizzle.collectives.slices import Slice
from mizzle.training.checkpoint import CheckpointStore
from mizzle.training.manifest import FROZEN, Manifest, Parameter
from mizzle.training.recut import OWNED, SPANS, recut
from mizzle.training.state import pack_state, unpack_state

NUM_ELEMENTS = 96
GROUP = (16, 80)  # the optimizer's tensors are cut from this range
HALVES = ([(0, 32), (64, 96)], [(32, 64)])
PARAMETERS = (
    Parameter("a", (4, 4), "weights", 0), Parameter("b", (8,), "weights", 32), Parameter("tied", (8,), "weights", 32),
    Parameter("counter", (), "buffer.counter"), Parameter("fixed", (3,), "frozen.fixed"),
)  # fmt: skip

Ranges = Sequence[tuple[int, int]]


def tensors_of(iteration: int, owned: Ranges) -> dict[str, torch.Tensor]:
    vector = torch.arange(NUM_ELEMENTS, dtype=torch.float32) + 1000 * iteration
    mine = [vector[start:stop] for start, stop in owned]
    cut = [vector[max(start, GROUP[0]) : max(start, GROUP[0], min(stop, GROUP[1]))] for start, stop in owned]
    return {
        "weights": torch.cat([*mine, torch.empty(0)]),
        "optimizer.0.exp_avg": torch.cat([*cut, torch.empty(0)]) * 2,
        "optimizer.0.step": torch.tensor(float(iteration)),
        "buffer.counter": torch.tensor(iteration),
    }


def state_of(iteration: int, owned: Ranges) -> bytes:
    scalars = {
        "signature": "5" * 64, "log": {"first": 0, "length": iteration}, "scalars": {},
        OWNED: [list(one) for one in owned], SPANS: {"weights": [0, NUM_ELEMENTS], "optimizer.0.exp_avg": list(GROUP)},
    }  # fmt: skip
    return pack_state(tensors_of(iteration, owned), scalars)


def training_of(iteration: int) -> dict[str, Any]:
    return {
        "iteration": iteration,
        "losses": [0.1 + 0.2, 1e-310, float("inf")],
        "best": None,
        "nested": {"é\n": [-0.0]},
    }


def save(store: CheckpointStore, iteration: int, owned: Sequence[Ranges] = HALVES, run: str = "r1") -> str:
    """Save one as ranks and a driver do."""
    name = store.begin(iteration)
    parts = [store.write_part(name, rank, state_of(iteration, mine), mine) for rank, mine in enumerate(owned)]
    frozen = store.write_shared(name, FROZEN, pack_state({"frozen.fixed": torch.tensor([7.0, 8.0, 9.0])}, {}))
    store.commit(
        Manifest(
            name, iteration, run, 2, NUM_ELEMENTS, tuple(parts), PARAMETERS, training_of(iteration), frozen,
            {"mizzle": "test"},
        )
    )  # fmt: skip
    return name


def assert_loads(store: CheckpointStore, manifest: Manifest, owned: Sequence[Ranges] = ([(0, NUM_ELEMENTS)],)) -> None:
    """Ranks with these ranges get just what was saved at that iteration."""
    iteration = manifest.iteration
    assert manifest.training == training_of(iteration)
    states = [unpack_state(store.read_part(manifest.name, part)) for part in manifest.parts]
    for mine in owned:
        tensors, scalars = recut(states, [Slice(*one) for one in mine])
        assert scalars["log"]["length"] == iteration
        wanted = tensors_of(iteration, mine)
        assert tensors.keys() == wanted.keys()
        assert all(torch.equal(tensors[name], value) for name, value in wanted.items())


def files_of(store: CheckpointStore, name: str) -> list[Path]:
    """The files of a checkpoint on the local file system."""
    return sorted((Path(store.path) / name).iterdir())
