"""How much memory a rank holds for the exchange and a sharded optimizer, beside what `mizzle plan` says of it.

    python benchmarks/memory.py --models vgg16,mlp-7m --ranks 2,4 --transport shm,blocks --json FILE

Flat vectors of the models' sizes are exchanged and updated a few times, on real executors of one host; what came of it
is checked. With ``shm`` the ranks are one island, with ``blocks`` each is alone, as on a host of its own. Counted are
the pages that each region of the arena really has, what ranks share divided among them, and the anonymous memory that
the process got meanwhile. The rest of a process, Python and torch, is there without any model, and listed apart.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from pyspark.sql import SparkSession

from mizzle.bench.application import Settings, left_behind
from mizzle.blocks.deadline import Deadline
from mizzle.collectives.exchange import Exchange
from mizzle.collectives.layout import ExchangeLayout
from mizzle.collectives.wire import Wire
from mizzle.config import Transport
from mizzle.errors import MizzleError
from mizzle.scheduling.cost import CostModel
from mizzle.spark.driver import await_slots
from mizzle.spark.groups import run_group
from mizzle.spark.ranks.worker import RankContext

MODELS = {"vgg16": 138_357_544, "mlp-7m": 7_000_000}
"""Parameters; of VGG-16 as published (Simonyan and Zisserman 2015, https://arxiv.org/abs/1409.1556)."""
STATE = {"sgd-momentum": 1, "adam": 2}
"""Numbers that an optimizer keeps per parameter."""
ITERATIONS = 3
_START_S, _TIMEOUT_S, _PART_S = 120.0, 300.0, 1800.0
_REGIONS = ("shared.weights", "gradients.0", "incoming", "rounded", "control")


@dataclass(frozen=True, slots=True)
class Held:
    """What one rank held after its last iteration, in bytes.

    Attributes:
        said: as the exchange and the optimizer count it, by purpose.
        arena: pages of each region of its arena; of a shared one, this rank's part.
        anonymous: what its process got since before the exchange was made.
        process: of the whole process, from the kernel: resident, and proportional to who else maps a page.
        verified: whether the weights were right.
    """

    said: Mapping[str, int]
    arena: Mapping[str, int]
    anonymous: int
    process: Mapping[str, int]
    verified: bool

    @property
    def measured(self) -> int:
        """All that came with the model."""
        return sum(self.arena.values()) + self.anonymous


@dataclass(frozen=True, slots=True)
class Holding:
    """A rank's part: make everything, use it, and look.

    Attributes:
        num_elements: M.
        optimizer: one of `STATE`.
    """

    num_elements: int
    optimizer: str

    def __call__(self, context: RankContext) -> Held:
        """Do it."""
        trained_by(self.optimizer, (torch.zeros(1024),))  # what torch loads at first use is no model's memory
        before = pages("Pss_Anon")["Pss_Anon"]
        layout = ExchangeLayout(self.num_elements, context.size, tuple((rank,) for rank in range(context.size)))
        exchange = Exchange(context.store, layout, wire=Wire.FP32, timeout_s=_TIMEOUT_S)
        optimizer = trained_by(self.optimizer, exchange.master, steps=0)
        mine = exchange.contribution(exchange.nodes[0])
        for iteration in range(ITERATIONS):
            mine.fill_(1.0 + context.rank)
            exchange.publish(iteration, 0, active=exchange.nodes, meta=b"")
            step(optimizer, exchange.reduce().total)
            exchange.gather()
        low, high = torch.aminmax(exchange.weights)
        exchange.share(ITERATIONS, 0, b"")  # all still hold what they hold
        after = pages("Rss", "Pss", "Pss_Anon", "Pss_Shmem", "Pss_File")
        held = Held(
            exchange.memory_bytes() | {"optimizer": state_bytes(optimizer)},
            {name: self._allocated(context, name) for name in _REGIONS if context.arena.find(name)},
            after["Pss_Anon"] - before, after, verified=bool(low == high == self._expected(context.size)),
        )  # fmt: skip
        exchange.share(ITERATIONS + 1, 0, b"")  # and all have looked
        return held

    def _allocated(self, context: RankContext, name: str) -> int:
        region = context.arena.find(name)
        assert region is not None, name
        sharers = len(context.store.island.ranks) if name.startswith("shared.") else 1
        return 512 * Path(region.path).stat().st_blocks // sharers

    def _expected(self, ranks: int) -> float:
        """What one weight becomes of the same steps."""
        weight = torch.zeros(1)
        optimizer = trained_by(self.optimizer, (weight,), steps=0)
        for _ in range(ITERATIONS):
            step(optimizer, torch.tensor([ranks * (ranks + 1) / 2]))
        return float(weight)


def trained_by(name: str, weights: tuple[torch.Tensor, ...], steps: int = 1) -> torch.optim.Optimizer:
    """An optimizer over tensors, after some steps of it."""
    parameters = [torch.nn.Parameter(one) for one in weights]
    made: torch.optim.Optimizer = torch.optim.SGD(parameters, 0.5, momentum=0.5)
    if name == "adam":
        made = torch.optim.Adam(parameters, 0.5)
    for _ in range(steps):
        step(made, torch.ones(sum(map(len, weights))))
    return made


def step(optimizer: torch.optim.Optimizer, gradient: torch.Tensor) -> None:
    """One step, from the gradients of all parameters one behind the other; they are views."""
    [group] = optimizer.param_groups
    for parameter, part in zip(group["params"], torch.split(gradient, list(map(len, group["params"]))), strict=True):
        parameter.grad = part
    optimizer.step()


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Memory of its state."""
    kept = [value for state in optimizer.state.values() for value in state.values()]
    return sum(value.nbytes for value in kept if isinstance(value, torch.Tensor))


def pages(*names: str) -> dict[str, int]:
    """Bytes of this process, as /proc/self/smaps_rollup names them."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    found = dict(line.split(":", 1) for line in lines)
    return {name: 1024 * int(found[name].split()[0]) for name in names}


def measured(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Every combination with one number of ranks, in one application."""
    ranks, found = int(asked.ranks), []
    settings = Settings(ranks, with_mizzle=True)
    # A worker that has done another series has memory in hand, which would not be seen to come.
    conf = settings.conf | {"spark.python.worker.reuse": "false"}
    spark = SparkSession.builder.master(settings.master).config(map=conf).getOrCreate()
    left = left_behind(spark)
    try:
        await_slots(spark.sparkContext, ranks, Deadline.after(_START_S))
        for model in asked.models.split(","):
            for optimizer in asked.optimizers.split(","):
                for transport in asked.transport.split(","):
                    body = Holding(MODELS[model], optimizer)
                    how = cast("Transport", transport)
                    held = run_group(spark, body, ranks=ranks, transport=how, timeout_s=_TIMEOUT_S)
                    found.append(record(model, optimizer, transport, held))
    finally:
        spark.stop()
        shutil.rmtree(left, ignore_errors=True)
    return found


def record(model: str, optimizer: str, transport: str, held: list[Held]) -> dict[str, Any]:
    """The figures of the rank that held most, and what they are compared with.

    Raises:
        MizzleError: some rank's weights were wrong.
    """
    if not all(one.verified for one in held):
        raise MizzleError(f"{model} with {optimizer} over {transport}: the weights are not what they should be")
    ranks, state = len(held), STATE[optimizer]
    most = max(held, key=lambda one: one.measured)
    plan = CostModel(num_parameters=MODELS[model], compute_s=1.0, bytes_per_s=1.0).memory(
        ranks, hosts=1 if transport == "shm" else ranks, optimizer_state=state
    )
    vector = 4 * MODELS[model]
    return {
        "model": model, "parameters": MODELS[model], "optimizer": optimizer, "ranks": ranks, "transport": transport,
        "measured_bytes": most.measured, "plan_bytes": plan.sum, "plan": asdict(plan),
        "limit_bytes": 2 * vector + (3 + state) * vector // ranks, "recovery_bytes": plan.recovery, **asdict(most),
    }  # fmt: skip


def show(found: list[dict[str, Any]]) -> None:
    """Print a table; MB are 10^6 bytes."""
    print("| model | optimizer | ranks | transport | arena | anonymous | measured | plan | limit | measured / plan |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for one in found:
        sizes = [sum(one["arena"].values()), *(one[name] for name in (
            "anonymous", "measured_bytes", "plan_bytes", "limit_bytes",
        ))]  # fmt: skip
        cells = [one["model"], one["optimizer"], str(one["ranks"]), one["transport"]]
        cells += [f"{size / 1e6:,.1f}" for size in sizes] + [f"{one['measured_bytes'] / one['plan_bytes']:.3f}"]
        print(f"| {' | '.join(cells)} |")


def in_a_process(asked: argparse.Namespace, ranks: str) -> list[dict[str, Any]]:
    """One number of ranks, in a process and Spark of its own; its noise goes to a file."""
    with tempfile.TemporaryDirectory(prefix="mizzle-memory-") as directory:
        result, log = Path(directory, "result.json"), Path(directory, "log")
        environment = {"PYSPARK_PYTHON": sys.executable} | os.environ | {"SPARK_LOCAL_HOSTNAME": "127.0.0.1"}
        options = ["--models", asked.models, "--optimizers", asked.optimizers, "--transport", asked.transport]
        with log.open("wb") as stream:
            done = subprocess.run(
                [sys.executable, __file__, *options, "--ranks", ranks, "--here", "--json", str(result)],
                stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=environment, timeout=_PART_S, check=False,
            )  # fmt: skip
        if done.returncode != 0:
            sys.exit(f"{ranks} ranks failed:\n{log.read_text(errors='replace')[-4000:]}")
        found: list[dict[str, Any]] = json.loads(result.read_text())
        return found


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="which sizes")
    parser.add_argument("--optimizers", default=",".join(STATE), help="which optimizers")
    parser.add_argument("--ranks", default="2,4", help="numbers of executors, one rank each")
    parser.add_argument("--transport", default="shm,blocks", help="shm: ranks share memory; blocks: none does")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Run the parts one after the other, print, and write the file."""
    asked = parsed()
    if asked.here:
        found = measured(asked)
    else:
        found = [one for ranks in asked.ranks.split(",") for one in in_a_process(asked, ranks)]
        show(found)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
