"""Started by `test_soak`: fit after fit while a nemesis strikes, until the time is up or there were enough faults."""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from chaos.inventory import fds, resident_kb, residents
from chaos.membership import Executors
from chaos.nemesis import FAULTS, Nemesis
from chaos.on_faulty_cluster import Cast, played
from mizzle.blocks.deadline import Deadline

IDLE_S = 60.0
"""After which residents that nobody wants end."""
COLLECTED = 5
"""How often garbage is collected before the driver's heap is measured."""
WARM_UP = 5
"""Fits before what the driver holds is counted: Spark and torch fill their caches in the first."""


class Soak:
    """One application under a nemesis."""

    def __init__(self, home: Path, stage: dict[str, Any]) -> None:
        self.home, self.stage = home, stage
        self.cast = Cast(home, stage)
        self.spark, self.watch = self.cast.spark, self.cast.watch
        self.executors = Executors(self.spark)
        self.fits = 0

    def fit(self) -> dict[str, Any]:
        """One training, judged later; what its ranks noted is taken away again, and nothing of it stays in memory."""
        ledger = self.home / f"ledger{self.fits}"
        ledger.mkdir()
        self.fits += 1
        found = played(self.spark, self.stage["scene"], ledger, self.watch, [])
        for path in ledger.iterdir():
            path.unlink()
        with (self.home / "fits.json").open("a") as out:
            out.write(json.dumps(found) + "\n")
        return found

    def held(self) -> dict[str, int]:
        """What the driver's two processes hold, and what works for them."""
        gc.collect()
        jvm: Any = self.spark.sparkContext._jvm
        heap, paused = jvm.java.lang.Runtime.getRuntime(), threading.Event()
        for _ in range(COLLECTED):
            # Spark lets go of shuffles and broadcasts when it learns that nobody knows them any more.
            heap.gc()
            paused.wait(1)
        gateway: Any = self.spark.sparkContext._gateway
        pid = int(gateway.proc.pid)  # the scripts that start it become it
        return {
            "heap_kb": (int(heap.totalMemory()) - int(heap.freeMemory())) // 1024,
            "python_kb": resident_kb(os.getpid()), "jvm_fds": fds(pid), "python_fds": fds(os.getpid()),
        }  # fmt: skip

    def ends(self) -> list[float]:
        """When groups were done, of all fits."""
        return sorted(end for one in list(self.watch.of.values()) for end in one.ends)

    def run(self) -> dict[str, Any]:
        """Fit, strike, fit, strike."""
        wanted = self.stage["executors"]
        self.executors.await_count(wanted)
        calm = [self.fit() for _ in range(WARM_UP)][-1]
        left = self.cast.inventory.left()
        before = self.held()
        begun = time.time()
        nemesis = Nemesis(
            self.spark, self.home / "local", seed=self.stage["seed"], every_s=self.stage["every_s"],
            got_on=self._got_on, executors=wanted, faults=self.stage.get("faults", FAULTS),
        )  # fmt: skip
        while self._goes_on(nemesis, begun):
            self.fit()
            logging.getLogger(__name__).info("fit %d, %d faults", self.fits, len(nemesis.struck))
            (self.home / "so_far.json").write_text(json.dumps({"struck": nemesis.struck}))
        wall_s, under_fire = time.time() - begun, self.fits - WARM_UP
        nemesis.end()
        self.executors.await_count(wanted)
        self.fit()  # with nobody striking
        self._await_idle_ones()
        left += self.cast.inventory.left()
        return {
            "calm": calm, "under_fire": under_fire, "struck": nemesis.struck, "begun": begun, "wall_s": wall_s,
            "ends": [end for end in self.ends() if end > begun], "before": before, "after": self.held(), "left": left,
        }  # fmt: skip

    def _await_idle_ones(self) -> None:
        """Residents that followed killed ones end when nobody has wanted them for a while."""
        deadline, paused = Deadline.after(IDLE_S + 10), threading.Event()
        while len(residents(self.home / "local")) > self.stage["executors"] and not deadline.passed:
            paused.wait(0.2)

    def _got_on(self, since: float) -> bool:
        return any(end > since for end in self.ends()[-1:])

    def _goes_on(self, nemesis: Nemesis, begun: float) -> bool:
        if "strikes" in self.stage:
            return len(nemesis.struck) < int(self.stage["strikes"])
        return time.time() - begun < float(self.stage["soak_s"])


def main(home: Path) -> None:
    """Soak."""
    logging.basicConfig(level=logging.INFO, filename=home / "driver.log", format="%(asctime)s %(name)s %(message)s")
    soak = Soak(home, json.loads((home / "stage.json").read_text()))
    (home / "found.json").write_text(json.dumps(soak.run()))
    soak.spark.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
