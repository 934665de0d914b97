"""Where a task runs, and tasks that Spark starts where their rank's state lies, if a slot is free there.

Does not load torch: tasks that only deal rows use it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from pyspark import RDD, SparkContext
from pyspark.serializers import CPickleSerializer
from pyspark.sql import DataFrame
from pyspark.sql.functions import struct, to_json

from mizzle.blocks.bridge import BridgeClient
from mizzle.blocks.deadline import Deadline

_CONNECT_S = 30.0


def here() -> str:
    """Spark's name of the executor that this task runs on.

    Raises:
        BridgeMissing: the executor has no bridge; start the session with mizzle's settings.
    """
    client = BridgeClient.connect(Deadline.after(_CONNECT_S))
    try:
        return client.executor_id
    finally:
        client.close()


def drain(rows: Iterable[Any]) -> None:
    """Read a task's input to its end: a task that leaves it unread costs Spark the Python worker."""
    for _ in rows:
        pass


def neighbours(rdd: RDD[Any], num_partitions: int) -> RDD[Any]:
    """The RDD in fewer partitions, each made of neighbouring ones, without a shuffle.

    ``coalesce`` follows the places where partitions lie and scatters them; see ``Neighbours.java``.
    """
    context = rdd.context
    jvm: Any = context._jvm  # noqa: SLF001 - PySpark's coalesce takes no coalescer
    coalescer = jvm.scala.Option.apply(jvm.org.mizzle.bridge.Neighbours())
    made = rdd._jrdd.rdd().coalesce(num_partitions, False, coalescer, None)  # noqa: SLF001
    return RDD(made.toJavaRDD(), context, rdd._jrdd_deserializer)  # noqa: SLF001


def collect_placed(frame: DataFrame, locations: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """The rows of a DataFrame, each partition made on a given executor if a slot is free there; see `placed`.

    Args:
        frame: of columns that JSON can hold.
        locations: for each partition the host and the executor id.
    """
    told = frame.select(to_json(struct("*"), {"ignoreNullFields": "false"}))
    jvm: Any = frame.sparkSession.sparkContext._jvm  # noqa: SLF001 - DataFrames cannot say where they are made
    rows = jvm.org.mizzle.bridge.PlacedRows.collect(told._jdf, list(map(_place, locations)))  # noqa: SLF001
    return [json.loads(row) for row in rows]


def _place(location: tuple[str, str]) -> str:
    """An executor as Spark names it among the places of a task."""
    host, executor_id = location
    return f"executor_{host}_{executor_id}"


def placed(context: SparkContext, locations: Sequence[tuple[str, str]]) -> RDD[int]:
    """An RDD of one number a partition, each partition preferring an executor.

    PySpark has no public way to say where a partition should run; Spark's own ``makeRDD`` does. It is a wish: a busy
    executor is waited for as long as ``spark.locality.wait.process`` says, then another one gets the task.

    Args:
        context: the driver's Spark context.
        locations: for each partition the host and the executor id.
    """
    jvm: Any = context._jvm  # noqa: SLF001 - see above
    scala: Any = context._jsc.sc()  # noqa: SLF001 - see above
    serializer = CPickleSerializer()
    wishes = jvm.java.util.ArrayList()
    for partition, location in enumerate(locations):
        wish = jvm.java.util.ArrayList()
        wish.add(_place(location))
        pickled = bytearray(serializer.dumps(partition))  # type: ignore[no-untyped-call]
        wishes.add(jvm.scala.Tuple2(pickled, jvm.PythonUtils.toSeq(wish)))
    any_class = jvm.scala.reflect.ClassTag.AnyRef()
    made = scala.makeRDD(jvm.PythonUtils.toSeq(wishes), any_class)
    return RDD(made.toJavaRDD(), context, serializer)
