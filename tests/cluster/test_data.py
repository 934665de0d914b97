"""DataFrame to shards on a real Spark: exact, balanced, checked beforehand."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from pyspark.ml.linalg import Vectors, VectorUDT
from pyspark.sql import functions, types

from mizzle.errors import ConfigError, DataError
from mizzle.spark.data import CHUNK_BYTES, DealPartition, ShardInfo, shard_dataframe
from mizzle.spark.driver import DriverSide
from mizzle.spark.rows import Rule
from mizzle.spark.schema import plan_columns
from mizzle.spark.validate import check_dataframe
from mizzle.training.columns import Columns
from mizzle.training.shards import ShardFile

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pyspark.sql import DataFrame, SparkSession

RUN = "00112233445566778899aabbccddeeff"
COLUMNS = Columns.of("x", "y")
SCHEMA = "x array<double>, y int"


@pytest.fixture(scope="module", autouse=True)
def _run(spark_local: SparkSession) -> Iterator[None]:
    """The run whose shards these are: the bridge removes the files of runs that the driver does not know."""
    side = DriverSide(spark_local.sparkContext)._side
    side.begin(RUN)
    yield
    side.end(RUN)


def frame(spark: SparkSession, partitions: Sequence[int]) -> DataFrame:
    """Rows numbered through partitions of these sizes: x = [n, n + 0.5], y = n."""
    starts = np.cumsum([0, *partitions])
    parts = [(int(starts[k]), size) for k, size in enumerate(partitions)]
    spread = spark.sparkContext.parallelize(parts, len(parts))
    rows = spread.flatMap(lambda part: [([float(n), n + 0.5], n) for n in range(part[0], part[0] + part[1])])
    return spark.createDataFrame(rows, SCHEMA)


def literal(spark: SparkSession, rows: list[Any], schema: str | types.StructType) -> DataFrame:
    return spark.createDataFrame(rows, schema).coalesce(1)


def ranks(num_shards: int, num_ranks: int) -> list[list[int]]:
    return [list(range(rank, num_shards, num_ranks)) for rank in range(num_ranks)]


def shard(
    df: DataFrame, num_shards: int, num_ranks: int = 2, columns: Columns = COLUMNS, **how: Any
) -> list[ShardInfo]:
    checked = check_dataframe(df, columns, **how)
    return shard_dataframe(checked, run=RUN, num_shards=num_shards, shards_of_rank=ranks(num_shards, num_ranks))


def labels(infos: list[ShardInfo], columns: Columns = COLUMNS) -> list[list[Any]]:
    """The label column of each shard."""
    out = []
    for info in infos:
        with ShardFile(info.path, columns) as file:
            assert file.num_rows == info.rows
            out.append(file.rows(np.arange(file.num_rows)).column("y").to_pylist())
    return out


@pytest.mark.parametrize(
    ("partitions", "num_shards"),
    [([7, 0, 1, 30, 0, 5], 4), ([0, 0, 1], 3), ([2, 1], 5), ([500, 1, 1], 7), ([6], 1)],
    ids=["uneven and empty partitions", "one row", "fewer rows than shards", "skew", "one shard"],
)
def test_row_g_goes_to_shard_g_mod_v_whatever_the_ranks(
    spark_local: SparkSession, partitions: list[int], num_shards: int
) -> None:
    df = frame(spark_local, partitions)
    expected = [list(range(s, sum(partitions), num_shards)) for s in range(num_shards)]
    for num_ranks in (1, min(3, num_shards)):
        infos = shard(df, num_shards, num_ranks)
        assert [info.shard for info in infos] == list(range(num_shards))
        assert labels(infos) == expected
    with ShardFile(infos[0].path, COLUMNS) as file:
        inputs, targets = file.batch([0])
        assert inputs.tolist() == [[0.0, 0.5]]  # type: ignore[union-attr]
        assert targets is not None
        assert targets.tolist() == [0]


def test_shards_lie_in_a_private_directory_of_the_executor_and_go_with_the_run(spark_local: SparkSession) -> None:
    checked = check_dataframe(frame(spark_local, [5, 5]), COLUMNS)
    with DriverSide(spark_local.sparkContext).run() as run:
        infos = shard_dataframe(checked, run=run, num_shards=2, shards_of_rank=[[0], [1]])
        look_at(Path(infos[0].path).parent, run, infos)
    from harness import eventually  # not at the top: executors import this module for its functions

    assert eventually(lambda: not Path(infos[0].path).parent.exists(), within_s=10)


def look_at(directory: Path, run: str, infos: list[ShardInfo]) -> None:
    assert directory.name == f"mizzle-{run}"
    assert directory.stat().st_mode & 0o777 == 0o700
    assert directory.parent.name.startswith("blockmgr-")
    assert all(info.bytes == Path(info.path).stat().st_size for info in infos)
    assert {info.executor_id for info in infos} == {directory.parent.name}
    assert all(info.host for info in infos)
    assert not [entry for entry in directory.iterdir() if entry.name.startswith(".")]


def fixed_name() -> str:
    return "executor 17"


def test_lost_shards_are_written_again_alone_where_locate_says(spark_local: SparkSession) -> None:
    df = frame(spark_local, [9, 4])
    first = shard(df, 4)
    before = {info.shard: Path(info.path).read_bytes() for info in first}
    checked = check_dataframe(df, COLUMNS)
    with DriverSide(spark_local.sparkContext).run() as run:
        again = shard_dataframe(checked, run=run, num_shards=4, shards_of_rank=[[], [3, 1]], locate=fixed_name)
        assert [(info.shard, info.executor_id) for info in again] == [(1, "executor 17"), (3, "executor 17")]
        assert {info.shard: Path(info.path).read_bytes() for info in again} == {k: before[k] for k in (1, 3)}
        assert [info.digest for info in again] == [first[1].digest, first[3].digest]


def test_rows_in_another_order_have_another_digest_and_the_same_rows_the_same(spark_local: SparkSession) -> None:
    df = spark_local.range(0, 60, 1, 3).selectExpr("array(cast(id as float)) as x", "cast(id % 3 as int) as y")
    assert len({info.digest for info in shard(df, 4)}) == 4
    assert [info.digest for info in shard(df, 4, 2)] == [info.digest for info in shard(df, 4)]
    swapped = spark_local.range(0, 60, 1, 3).selectExpr(
        "array(cast(CASE id WHEN 0 THEN 4 WHEN 4 THEN 0 ELSE id END as float)) as x", "cast(id % 3 as int) as y"
    )
    differ = [one.digest != other.digest for one, other in zip(shard(df, 4), shard(swapped, 4), strict=True)]
    assert differ == [True, False, False, False]


def test_files_of_several_chunks_keep_the_order_of_rows(spark_local: SparkSession) -> None:
    wide = 3000
    numbers = spark_local.range(0, 3000, 1, 3)
    df = numbers.select(
        functions.array_repeat(functions.col("id").cast("float"), wide).alias("x"), functions.col("id").alias("y")
    )
    infos = shard(df, 2)
    assert labels(infos) == [list(range(0, 3000, 2)), list(range(1, 3000, 2))]
    with pa.memory_map(infos[0].path) as mapped:
        reader = pa.ipc.open_file(mapped)
        sizes = [reader.get_batch(k).nbytes for k in range(reader.num_record_batches)]
    assert len(sizes) > 3
    assert max(sizes) <= CHUNK_BYTES


def test_a_dealing_task_holds_back_no_more_than_its_buffer(spark_local: SparkSession) -> None:
    dealer = DealPartition(
        (Rule("x", array=True, numeric=True, uniform=True),), (100,), 3, {0: 0, 1: 0, 2: 1}, {0: 0},
        chunk_bytes=2_000, buffer_bytes=20_000,
    )  # fmt: skip
    probe = functions.lit(json.dumps({"rows": 40, "batches": 50}))
    one = spark_local.range(0, 1, 1, 1).select(probe.alias("plan"))
    counted = one.mapInArrow(DealProbe(dealer), "ahead int, chunk int")
    seen = counted.collect()
    assert len(seen) >= 50 * 40 * 400 // 2_000
    # One input batch (16 kB) and the buffer, then chunks come out before more rows are taken in.
    assert max(row["ahead"] for row in seen) <= 20_000 + 2 * 16_000
    assert max(row["chunk"] for row in seen) <= 2_000


class DealProbe:
    """Feeds a dealer and notes, at every chunk that comes out, how many bytes of rows it holds."""

    def __init__(self, dealer: DealPartition) -> None:
        self.dealer = dealer

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        plan = json.loads(next(batches).column("plan")[0].as_py())
        fed = 0

        def feed() -> Iterator[pa.RecordBatch]:
            nonlocal fed
            for _ in range(plan["batches"]):
                fed += plan["rows"] * 400
                yield pa.RecordBatch.from_pydict({"x": pa.array([[1.0] * 100] * plan["rows"], pa.list_(pa.float32()))})

        given, out = 0, []
        for dealt in self.dealer(feed()):
            for rows in dealt.column("rows").to_pylist() if dealt.column("shard")[0].as_py() >= 0 else []:
                given += rows * 400
                out.append((fed - given, rows * 400))
        yield pa.RecordBatch.from_arrays(
            [pa.array([a for a, _ in out], pa.int32()), pa.array([c for _, c in out], pa.int32())], ["ahead", "chunk"]
        )


def test_a_dataframe_behind_joins_and_aggregates_has_the_same_partitions_both_times(spark_local: SparkSession) -> None:
    left = spark_local.range(0, 2000, 1, 3).withColumn("k", functions.col("id") % 97)
    right = spark_local.range(0, 97, 1, 2).withColumnRenamed("id", "k").withColumn("w", functions.col("k") * 2)
    df = left.join(right, "k").groupBy("id").agg(functions.first("w").alias("a"), functions.max("k").alias("y"))
    for shaped in (df, df.orderBy("id"), df.repartition(7), df.distinct()):
        infos = shard(shaped, 3, columns=Columns.of("a", "y"))
        assert [info.rows for info in infos] == [667, 667, 666]
        assert sorted(chain.from_iterable(labels(infos))) == sorted(n % 97 for n in range(2000))


def test_vectors_of_spark_ml_sparse_or_dense_become_float32(spark_local: SparkSession) -> None:
    schema = types.StructType().add("x", VectorUDT()).add("y", "double")
    rows = [(Vectors.dense(1.0, 0.0, 2.5), 0.0), (Vectors.sparse(3, {1: 7.0}), 2.0)]
    infos = shard(literal(spark_local, rows, schema), 1, 1, num_classes=3)
    with ShardFile(infos[0].path, COLUMNS) as file:
        inputs, targets = file.batch([0, 1])
        assert file.schema.field("x").type.value_type == pa.float32()
        assert file.schema.field("x").type.list_size == 3
        assert inputs.tolist() == [[1, 0, 2.5], [0, 7, 0]]  # type: ignore[union-attr]
        assert targets is not None
        assert targets.tolist() == [0, 2]
        assert not targets.is_floating_point()


KINDS = {
    "tinyint": "tinyint", "smallint": "smallint", "int": "int", "bigint": "bigint", "boolean": "tinyint",
    "float": "float", "double": "float", "decimal(10,2)": "float",
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_stored_no_wider_than_training_needs(spark_local: SparkSession, kind: str) -> None:
    df = spark_local.createDataFrame([], f"a {kind}, x array<{kind}>")
    for columns in (Columns.of("a", "x"), Columns.of("x", "a")):
        planned, rules = plan_columns(df, columns, None)
        assert sorted(of for _, of in planned.dtypes) == sorted([KINDS[kind], f"array<{KINDS[kind]}>"])
        assert [rule.name for rule in rules] == list(columns.names)
        assert all(rule.numeric for rule in rules)


def test_every_numeric_type_can_be_a_feature(spark_local: SparkSession) -> None:
    base = literal(spark_local, [(1,), (0,)], "n int")
    df = base.select(*[functions.col("n").cast(kind).alias(kind) for kind in KINDS], functions.col("n").alias("y"))
    columns = Columns.of(list(KINDS), "y")
    infos = shard(df, 1, 1, columns=columns)
    with ShardFile(infos[0].path, columns) as file:
        assert file.batch([0, 1])[0].tolist() == [[1.0] * len(KINDS), [0.0] * len(KINDS)]  # type: ignore[union-attr]


def lengths_of(rows: pa.RecordBatch) -> Any:
    import torch

    return torch.tensor([len(raw) for raw in rows.column("jpeg").to_pylist()]), None


def test_bytes_and_arrays_of_any_length_reach_a_collate_unchanged(spark_local: SparkSession) -> None:
    columns = Columns.of(["jpeg", "tokens"], "y", collate=lengths_of)
    rows = [(b"abc", [1, 2], "cat"), (b"", [3], "dog")]
    infos = shard(literal(spark_local, rows, "jpeg binary, tokens array<int>, y string"), 1, 1, columns=columns)
    with ShardFile(infos[0].path, columns) as file:
        assert file.batch([1, 0])[0].tolist() == [0, 3]  # type: ignore[union-attr]
        assert file.rows([0, 1]).to_pylist() == [
            {"jpeg": b"abc", "tokens": [1, 2], "y": "cat"}, {"jpeg": b"", "tokens": [3], "y": "dog"},
        ]  # fmt: skip


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ((None, 1), r"row 2 of partition 0: column 'x' is null; .*bad_rows='skip'"),
        (([1.0, 2.0], None), "row 2 of partition 0: column 'y' is null"),
        (([1.0, None], 1), "row 2 of partition 0: column 'x' has a null inside its array"),
        (([1.0, NAN], 1), "row 2 of partition 0: column 'x' has an element that is NaN or infinite"),
        (([-INF, 1.0], 1), "row 2 of partition 0: column 'x' has an element that is NaN or infinite"),
        (([1e300, 1.0], 1), "row 2 of partition 0: column 'x' has an element that is NaN or infinite as float32"),
        (([1.0, 2.0, 3.0], 1), "row 2 of partition 0: column 'x' has 3 elements, where 4 rows have 2"),
        (([], 1), "row 2 of partition 0: column 'x' has 0 elements, where 4 rows have 2"),
        (([1.0, 2.0], 10), r"row 2 of partition 0: column 'y' is 10, which is no class number in 0\.\.9"),
        (([1.0, 2.0], -1), "column 'y' is -1, which is no class number"),
    ],
)
def test_a_bad_row_is_named_or_skipped(spark_local: SparkSession, bad: tuple[Any, Any], message: str) -> None:
    good = [([float(n), n + 0.5], n) for n in range(4)]
    df = literal(spark_local, [*good[:2], bad, *good[2:]], SCHEMA)
    with pytest.raises(DataError, match=message):
        check_dataframe(df, COLUMNS, num_classes=10)
    checked = check_dataframe(df, COLUMNS, num_classes=10, bad_rows="skip")
    assert (checked.num_rows, checked.num_skipped) == (4, 1)
    assert (checked.lengths, checked.label_min, checked.label_max) == ((2,), 0.0, 3.0)


@pytest.mark.parametrize("value", [0.5, NAN, 3.0])
def test_a_fractional_label_must_be_a_class_number_where_classes_are_given(
    spark_local: SparkSession, value: float
) -> None:
    df = literal(spark_local, [([1.0], 2.0), ([1.0], value)], "x array<float>, y double")
    with pytest.raises(DataError, match=f"row 1 of partition 0: column 'y' is {value}"):
        check_dataframe(df, COLUMNS, num_classes=3)


def test_the_first_bad_row_of_the_first_partition_is_named(spark_local: SparkSession) -> None:
    df = frame(spark_local, [3, 5, 5]).withColumn("y", functions.expr("if(y in (6, 7, 9), null, y)"))
    with pytest.raises(DataError, match="row 3 of partition 1: column 'y' is null"):
        check_dataframe(df, COLUMNS)


def test_bad_rows_are_dropped_before_rows_are_dealt(spark_local: SparkSession) -> None:
    df = frame(spark_local, [10, 10, 10]).withColumn("y", functions.expr("if(y < 10 and y % 2 = 0, null, y)"))
    infos = shard(df, 4, bad_rows="skip")
    kept = [n for n in range(30) if n >= 10 or n % 2]
    assert labels(infos) == [kept[s::4] for s in range(4)]


@pytest.mark.parametrize(
    ("schema", "columns", "how", "message"),
    [
        (SCHEMA, {"features": "X2", "label": "y"}, {}, r"no column 'X2'\. The DataFrame has 'x', 'y'"),
        ("feature array<int>, y int", {"features": "features"}, {}, r"no column 'features'\. Did you mean 'feature'\?"),
        ("Image array<int>", {"features": "image"}, {}, r"Did you mean 'Image'\?"),
        ("x string, y int", {"features": "x", "label": "y"}, {}, "'x' is string.*StringIndexer"),
        ("x binary, y int", {"features": "x", "label": "y"}, {}, "'x' is binary.*collate"),
        ("x timestamp", {"features": "x"}, {}, "'x' is timestamp.*unix_timestamp"),
        ("x array<array<int>>", {"features": "x"}, {}, "'x' is array<array<int>>.*flatten"),
        ("x interval day", {"features": "x"}, {}, "'x' is interval day.*cast it"),
        ("x array<int>, y string", {"features": "x", "label": "y"}, {}, "'y' is string"),
        ("x array<int>, z int", {"features": ["z", "x"]}, {}, "'x' is array<int>, which cannot be stacked"),
        ("x int, z int", {"features": ["x", "z"], "shape": (3,)}, {}, "needs 3 numbers, but there are 2"),
        (
            "x int, y array<int>",
            {"features": "x", "label": "y"},
            {"num_classes": 4},
            "'y' is array<int>.*num_classes=4",
        ),
        (SCHEMA, {"features": "x"}, {}, "no rows"),
    ],
)
def test_a_dataframe_that_cannot_be_trained_on_is_refused(
    spark_local: SparkSession, schema: str, columns: dict[str, Any], how: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        check_dataframe(spark_local.createDataFrame([], schema), Columns.of(**columns), **how)


def test_a_column_name_that_is_there_twice_is_refused(spark_local: SparkSession) -> None:
    with pytest.raises(DataError, match="'y' is there 2 times"):
        check_dataframe(frame(spark_local, [2]).select("x", "y", "y"), COLUMNS)


def test_names_with_dots_and_blanks_are_columns_like_others(spark_local: SparkSession) -> None:
    df = frame(spark_local, [3]).toDF("a.b", "y s")
    columns = Columns.of("a.b", "y s")
    infos = shard(df, 1, 1, columns=columns)
    with ShardFile(infos[0].path, columns) as file:
        assert file.rows([2]).to_pylist() == [{"a.b": [2.0, 2.5], "y s": 2}]


def test_null_vectors_are_named_and_not_a_failure_of_spark(spark_local: SparkSession) -> None:
    schema = types.StructType().add("x", VectorUDT()).add("y", "integer")
    with pytest.raises(DataError, match="row 1 of partition 0: column 'x' is null"):
        check_dataframe(literal(spark_local, [(Vectors.dense(1.0), 0), (None, 1)], schema), COLUMNS)


def test_arrays_must_have_the_length_that_shape_says(spark_local: SparkSession) -> None:
    df = frame(spark_local, [4])
    with pytest.raises(DataError, match="'x' has arrays of 2 elements, but must have 3, by the shape"):
        check_dataframe(df, Columns.of("x", "y", shape=(1, 3)))
    assert check_dataframe(df, Columns.of("x", "y", shape=(1, 2))).lengths == (2,)
    with pytest.raises(DataError, match="'x' has arrays of 0 elements, but must have at least one"):
        check_dataframe(literal(spark_local, [([], 1)], SCHEMA), COLUMNS)


def test_when_every_row_is_bad_the_first_is_named(spark_local: SparkSession) -> None:
    with pytest.raises(DataError, match=r"every row is bad.* row 0 of partition 0: column 'x' is null"):
        check_dataframe(literal(spark_local, [(None, 1)], SCHEMA), COLUMNS, bad_rows="skip")


def test_a_streaming_dataframe_is_refused(spark_local: SparkSession) -> None:
    with pytest.raises(DataError, match="streaming"):
        check_dataframe(spark_local.readStream.format("rate").load(), Columns.of("value"))


class GrowsEachTime:
    """A source that gives one row more each time it is read."""

    def __init__(self, memory: Path) -> None:
        self.memory = memory

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for _ in batches:
            pass
        with self.memory.open("a+") as file:
            file.write("x")
        for n in range(self.memory.stat().st_size):
            yield pa.RecordBatch.from_pydict({"x": pa.array([n], pa.int32()), "y": pa.array([n], pa.int32())})


def test_a_dataframe_that_changes_between_the_passes_is_refused(spark_local: SparkSession, tmp_path: Path) -> None:
    source = spark_local.range(0, 1, 1, 1).mapInArrow(GrowsEachTime(tmp_path / "memory"), "x int, y int")
    with pytest.raises(
        DataError, match=r"not deterministic: partition 0 had 1 usable rows when checked and 2 .*persist"
    ):
        shard(source, 2)
    assert [info.rows for info in shard(source.persist(), 2)] == [2, 1]


def test_a_plan_or_policy_that_makes_no_sense_is_refused(spark_local: SparkSession) -> None:
    df = frame(spark_local, [4])
    with pytest.raises(ConfigError, match="bad_rows='ignore'"):
        check_dataframe(df, COLUMNS, bad_rows="ignore")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="num_classes=0"):
        check_dataframe(df, COLUMNS, num_classes=0)
    checked = check_dataframe(df, COLUMNS)
    plans: list[list[list[int]]] = [[[0], [0]], [[2]], [[], []], []]
    for shards_of_rank in plans:
        with pytest.raises(ConfigError, match="shards_of_rank"):
            shard_dataframe(checked, run=RUN, num_shards=2, shards_of_rank=shards_of_rank)
    with pytest.raises(ConfigError, match="hexadecimal"):
        shard_dataframe(checked, run="../../etc", num_shards=1, shards_of_rank=[[0]])


def test_no_rows_in_one_of_four_partitions_and_a_skew_of_one_to_100000_lose_no_row(spark_local: SparkSession) -> None:
    sizes = [1, 100_000, 0, 7]
    df = frame(spark_local, sizes)
    found = labels(shard(df, 4))
    assert [len(one) for one in found] == [25_002] * 4
    assert sorted(chain.from_iterable(found)) == list(range(sum(sizes)))


def test_of_malformed_rows_every_one_is_counted_and_the_first_is_named(spark_local: SparkSession) -> None:
    bad = "case y % 3000 when 17 then null when 1017 then array(x[0]) when 2017 then array(x[0], null) else x end"
    df = frame(spark_local, [5000, 5000, 0, 5000]).withColumn("x", functions.expr(bad))
    with pytest.raises(DataError, match="row 17 of partition 0: column 'x' is null"):
        check_dataframe(df, COLUMNS)
    checked = check_dataframe(df, COLUMNS, bad_rows="skip")
    assert (checked.num_rows, checked.num_skipped) == (14_985, 15), "one of a thousand, in three ways"
    kept = list(chain.from_iterable(labels(shard(df, 4, bad_rows="skip"))))
    assert sorted(kept) == [n for n in range(15_000) if n % 1000 != 17]
