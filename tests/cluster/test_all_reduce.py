"""`mizzle.all_reduce` of an RDD: what ``treeReduce`` gives, in a fixed order, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pyspark import RDD
from pyspark.sql import SparkSession

from mizzle.errors import CollectiveMismatch, ConfigError
from mizzle.spark.all_reduce import all_reduce
from mizzle.spark.placement import neighbours, placed


def arrays(spark: SparkSession, count: int, partitions: int, dtype: Any = np.float32) -> RDD[Any]:
    """Array k is [k, k + 1, ..., k + 4]."""
    return spark.sparkContext.parallelize(range(count), partitions).map(lambda k: (np.arange(5) + k).astype(dtype))


@pytest.mark.parametrize("op", ["sum", "mean", "max", "min"])
def test_it_gives_what_numpy_gives(spark_local: SparkSession, op: str) -> None:
    expected = getattr(np.stack([np.arange(5) + k for k in range(10)]), op)(0)
    result = all_reduce(arrays(spark_local, 10, 5), op)  # type: ignore[arg-type]
    assert result.dtype == np.float32
    assert result.tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32, np.int64])
def test_dtypes_come_back_as_they_went_in(spark_local: SparkSession, dtype: Any) -> None:
    result = all_reduce(arrays(spark_local, 6, 3, dtype))
    assert result.dtype == dtype
    assert result.tolist() == [15 + 6 * k for k in range(5)]


def test_torch_tensors_stay_torch_tensors(spark_local: SparkSession) -> None:
    rdd = arrays(spark_local, 6, 2).map(lambda a: torch.from_numpy(a).bfloat16())
    result = all_reduce(rdd)
    assert result.dtype == torch.bfloat16
    assert result.tolist() == [15.0, 21.0, 27.0, 33.0, 39.0]


def test_bits_do_not_depend_on_how_many_ranks_or_how_they_talk(spark_local: SparkSession) -> None:
    def part(index: int, _rows: Any) -> Any:
        yield np.random.default_rng(index).standard_normal(1000).astype(np.float32)

    rdd = spark_local.sparkContext.parallelize(range(7), 7).mapPartitionsWithIndex(part)
    results = [all_reduce(rdd, transport=transport) for transport in ("auto", "shm", "blocks")]
    parts = [next(part(index, ())) for index in range(7)]
    # the tree over 7 partitions: ((0+1)+(2+3)) + ((4+5)+6)
    tree = ((parts[0] + parts[1]) + (parts[2] + parts[3])) + ((parts[4] + parts[5]) + parts[6])
    for result in results:
        assert result.tobytes() == tree.tobytes()


def test_partitions_that_locality_would_scatter_are_kept_together(spark_local: SparkSession) -> None:
    wishes = [("host-a" if number % 2 else "host-b", "0") for number in range(40)]
    rdd = placed(spark_local.sparkContext, wishes).map(lambda number: np.full(3, number, dtype=np.float32))
    assert neighbours(rdd, 4).glom().map(lambda part: (part[0][0], part[-1][0], len(part))).collect() == [
        (0, 9, 10),
        (10, 19, 10),
        (20, 29, 10),
        (30, 39, 10),
    ]
    assert all_reduce(rdd).tolist() == [sum(range(40))] * 3


def test_partitions_without_arrays_are_left_out(spark_local: SparkSession) -> None:
    rdd = arrays(spark_local, 2, 6)
    assert all_reduce(rdd, "min").tolist() == [0, 1, 2, 3, 4]
    assert all_reduce(rdd, "mean").tolist() == [0.5, 1.5, 2.5, 3.5, 4.5]


def test_what_cannot_be_reduced_is_named(spark_local: SparkSession) -> None:
    context = spark_local.sparkContext
    with pytest.raises(CollectiveMismatch, match=r"rank 0: .*shape=2; rank 1: .*shape=3"):
        all_reduce(context.parallelize([np.ones(2), np.ones(3)], 2))
    with pytest.raises(CollectiveMismatch, match=r"partition 0 .*\(2,\) float64 and one of ndarray \(3,\)"):
        all_reduce(context.parallelize([np.ones(2), np.ones(3)], 1))
    with pytest.raises(ConfigError, match="partition 0 has a str"):
        all_reduce(context.parallelize(["x"], 1))
    with pytest.raises(ConfigError, match="the RDD has no arrays"):
        all_reduce(context.parallelize([], 2))
    with pytest.raises(ConfigError, match="the RDD has no partitions"):
        all_reduce(context.emptyRDD())
    with pytest.raises(ConfigError, match="op is 'median'"):
        all_reduce(arrays(spark_local, 2, 2), "median")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="mean of int64"):
        all_reduce(arrays(spark_local, 2, 2, np.int64), "mean")
