"""What becomes of DDP under TorchDistributor when an executor is killed: to be read beside `mizzle bench recovery`.

    python benchmarks/killed_ddp.py --workers 4 --repeats 3 --json killed.json

A training of 200 iterations, in which an executor is killed (SIGKILL) behind the fiftieth. The JSON is a list of
{system, fault, repeats, ended_s, returned, started_again, error}: median seconds from the signal until TorchDistributor
returned or raised; how many trainings returned a result; how many Spark began anew, from iteration 0; what the last
error says.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pyspark.ml.torch.distributor import TorchDistributor
from pyspark.sql import SparkSession
from torch.nn.parallel import DistributedDataParallel

from mizzle.bench.recovery import await_executors, executor_pids
from mizzle.blocks.deadline import Deadline
from mizzle.cli.quiet import quiet_session, reason_of
from mizzle.errors import MizzleError

ITERATIONS, STRUCK_AT, PACE_S = 200, 50, 0.05
DEADLINE_S = 600.0
BEGUN = "begun"


def train(ledger: str) -> int:
    """A rank: DDP over gloo; the first one notes its iterations."""
    torch_dist: Any = dist  # torch's type stubs are incomplete
    torch_dist.init_process_group("gloo")
    is_first = torch_dist.get_rank() == 0
    model = DistributedDataParallel(torch.nn.Linear(512, 512))
    optimizer = torch.optim.Adam(model.parameters())
    with Path(ledger).open("a", buffering=1) as notes:
        for iteration in range(ITERATIONS):
            time.sleep(PACE_S)
            optimizer.zero_grad()
            model(torch.randn(64, 512)).square().mean().backward()
            optimizer.step()
            if is_first:
                notes.write(f"{iteration or BEGUN}\n")
    torch_dist.destroy_process_group()
    return ITERATIONS


def lines(ledger: Path) -> list[str]:
    """What was noted so far."""
    return ledger.read_text().splitlines() if ledger.exists() else []


def struck_once(spark: SparkSession, workers: int, ledger: Path, chance: random.Random) -> dict[str, Any]:
    """One training, and what became of it."""
    await_executors(spark, workers)
    distributor = TorchDistributor(num_processes=workers, local_mode=False, use_gpu=False)
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(distributor.run, train, str(ledger))
        deadline, paused = Deadline.after(DEADLINE_S), threading.Event()
        while len(lines(ledger)) < STRUCK_AT and not job.done():
            deadline.check("the training's first iterations")
            paused.wait(0.02)
        if job.done():
            raise MizzleError(f"the training was over before it was struck: {job.exception()}")
        struck_at = time.time()
        os.kill(chance.choice(executor_pids(spark)), signal.SIGKILL)
        error = job.exception(DEADLINE_S)
    begun = lines(ledger).count(BEGUN)
    ended_s, said = time.time() - struck_at, "" if error is None else reason_of(str(error))[:200]
    return {"ended_s": ended_s, "returned": error is None, "again": begun > 1, "error": said}


def main() -> None:
    """Strike, and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=4, help="ranks, each an executor")
    parser.add_argument("--repeats", type=int, default=3, help="trainings struck")
    parser.add_argument("--json", type=Path, required=True, help="where the result goes")
    given = parser.parse_args()
    chance = random.Random(7)  # noqa: S311 - no secret
    with tempfile.TemporaryDirectory(prefix="mizzle-bench-") as home:
        conf = {"spark.app.name": "mizzle bench", "spark.local.dir": home}
        ledgers = [Path(home) / f"ledger{number}" for number in range(given.repeats)]
        with quiet_session(f"local-cluster[{given.workers},1,1024]", conf=conf) as spark:
            seen = [struck_once(spark, given.workers, ledger, chance) for ledger in ledgers]
    record = {
        "system": "torch_distributor", "fault": "executor_kill", "repeats": len(seen),
        "ended_s": statistics.median(one["ended_s"] for one in seen),
        "returned": sum(one["returned"] for one in seen), "started_again": sum(one["again"] for one in seen),
        "error": seen[-1]["error"],
    }  # fmt: skip
    given.json.write_text(json.dumps([record], indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
