"""Settings with which Spark surely starts a second attempt of every task that runs longer than a second.

It does so on another host only, so a test needs two, and free slots on both.
"""

from __future__ import annotations

import re
from typing import Any

from pyspark import SparkContext

SPECULATION = {
    "spark.speculation": "true",
    "spark.speculation.interval": "50ms",
    # A task that takes longer than this is slow, whatever the others do (which would all have to be done before they
    # are compared). It holds for stages that would fit into one executor.
    "spark.speculation.task.duration.threshold": "1s",
    "spark.speculation.quantile": "1.0",
    # What is told of stages is up to date at every event, not ten seconds later with the next heartbeat.
    "spark.ui.liveUpdate.period": "0",
}
_GROUP = re.compile(r"mizzle run \w+: iterations (\d+)-")


def superfluous_attempts(context: SparkContext) -> dict[int, int]:
    """How many attempts, running or ended, no failure made necessary: by the first iteration of their group."""
    jvm: Any = context._jvm
    quantiles = context._gateway.new_array(jvm.double, 0)  # type: ignore[union-attr]
    store = context._jsc.sc().statusStore()
    stages = store.stageList(None, False, False, quantiles, jvm.java.util.ArrayList())  # noqa: FBT003 - py4j
    found: dict[int, int] = {}
    for one in (stages.apply(at) for at in range(stages.size())):
        group = _GROUP.match(one.description().get()) if one.description().isDefined() else None
        if group is not None:
            beyond = one.numActiveTasks() + one.numCompleteTasks() + one.numKilledTasks() - one.numTasks()
            found[int(group[1])] = found.get(int(group[1]), 0) + max(0, beyond)
    return found
