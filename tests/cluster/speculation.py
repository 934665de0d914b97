"""Speculation made certain: Spark starts every task of a group again that takes its time, where there is room for it.

It does so on another host only, so a test needs two, and free slots on both.
"""

from __future__ import annotations

from typing import Any

from pyspark import SparkContext

SPECULATION = {
    "spark.speculation": "true",
    "spark.speculation.interval": "50ms",
    # Tasks of a group end together, so none is slow beside others. With a threshold all are, that take longer; Spark
    # heeds it for stages that would fit into one executor.
    "spark.speculation.task.duration.threshold": "1s",
    # What is told of stages is up to date at every event, not ten seconds later with the next heartbeat.
    "spark.ui.liveUpdate.period": "0",
}


def superfluous_attempts(context: SparkContext) -> int:
    """How many attempts of tasks, of all stages until now, there were beyond the first that nothing made necessary."""
    jvm: Any = context._jvm
    quantiles = context._gateway.new_array(jvm.double, 0)  # type: ignore[union-attr]
    store = context._jsc.sc().statusStore()
    stages = store.stageList(None, False, False, quantiles, jvm.java.util.ArrayList())  # noqa: FBT003 - py4j
    told = (stages.apply(at) for at in range(stages.size()))
    return sum(
        max(0, one.numActiveTasks() + one.numCompleteTasks() + one.numKilledTasks() - one.numTasks()) for one in told
    )
