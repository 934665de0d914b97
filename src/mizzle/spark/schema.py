"""From the types of a DataFrame's columns to what will be checked in every row: decided on the driver, without a job.

Widths that training does not use are narrowed here (double to float32), so that the shuffle and the disks carry half.
Never looks at a row; that is `rows`.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from pyspark.ml.functions import vector_to_array
from pyspark.ml.linalg import VectorUDT
from pyspark.mllib.linalg import VectorUDT as OldVectorUDT
from pyspark.sql import functions, types

from mizzle.errors import DataError
from mizzle.spark.rows import Rule

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

    from mizzle.training.columns import Columns

_INTEGERS = (types.ByteType, types.ShortType, types.IntegerType, types.LongType)
_NARROWED = (types.DoubleType, types.DecimalType)
_NUMBERS = (*_INTEGERS, types.FloatType, *_NARROWED, types.BooleanType)


def plan_columns(df: DataFrame, columns: Columns, num_classes: int | None) -> tuple[DataFrame, tuple[Rule, ...]]:
    """Select and narrow the columns, and say what to check in them. Starts no job.

    Args:
        df: any batch DataFrame.
        columns: features and label.
        num_classes: the label is a class number below this; None when it is not a class.

    Returns:
        The DataFrame with exactly ``columns.names`` (renamed c0, c1, ...), and one rule a column in that order.

    Raises:
        DataError: a column is missing, ambiguous or of a type that cannot be trained on; the message names it.
    """
    if df.isStreaming:
        raise DataError("this is a streaming DataFrame, which has no end; write it out and train on what was written")
    for name in columns.names:
        _check_exists(df, name)
    kinds = {field.name: field.dataType for field in df.schema.fields}
    _check_features_fit(columns, kinds)
    selected: list[Column] = []
    rules: list[Rule] = []
    for name in columns.names:
        role = "label" if name == columns.label else "feature"
        classes = num_classes if role == "label" else None
        column, rule = _plan(name, kinds[name], columns, classes)
        if classes is not None and (rule.array or not rule.numeric):
            raise DataError(
                f"label column {name!r} is {kinds[name].simpleString()}, but num_classes={classes} asks for one class "
                "number a row; index it first (StringIndexer), or leave num_classes out"
            )
        # mapInArrow looks columns up by name again and fails on a dot; the rules keep the true names.
        selected.append(column.alias(f"c{len(selected)}"))
        rules.append(rule)
    return df.select(*selected), tuple(rules)


def _check_exists(df: DataFrame, name: str) -> None:
    """Refuse a name that is not there, or is there twice."""
    count = df.columns.count(name)
    if count > 1:
        raise DataError(f"column {name!r} is there {count} times; rename or drop the others")
    if count == 0:
        near = difflib.get_close_matches(name, df.columns, n=1, cutoff=0.5)
        folded = [other for other in df.columns if other.lower() == name.lower()]
        hint = f" Did you mean {(folded or near)[0]!r}?" if folded or near else ""
        raise DataError(f"there is no column {name!r}.{hint} The DataFrame has {', '.join(map(repr, df.columns))}")


def _check_features_fit(columns: Columns, kinds: dict[str, types.DataType]) -> None:
    """Without a collate, inputs are one column of arrays or several of numbers; and shape wants the first."""
    if columns.collate is not None:
        return
    arrays = [name for name in columns.features if isinstance(kinds[name], types.ArrayType) or _is_vector(kinds[name])]
    if arrays and len(columns.features) > 1:
        raise DataError(
            f"column {arrays[0]!r} is {kinds[arrays[0]].simpleString()}, which cannot be stacked with other feature "
            "columns; assemble them into one (VectorAssembler), or pass collate=..."
        )
    wanted = columns.row_elements
    if wanted is not None and not arrays and wanted != len(columns.features):
        raise DataError(
            f"shape={columns.shape} needs {wanted} numbers, but there are {len(columns.features)} feature columns"
        )


def _is_vector(kind: types.DataType) -> bool:
    return isinstance(kind, VectorUDT | OldVectorUDT)


def _plan(name: str, kind: types.DataType, columns: Columns, classes: int | None) -> tuple[Column, Rule]:
    """The expression to select and the rule for one column."""
    column = functions.col("`" + name.replace("`", "``") + "`")
    plain = columns.collate is None
    elements = columns.row_elements if name in columns.features else None
    if _is_vector(kind):
        # vector_to_array fails on null and would not say where; the check finds nulls and names them.
        column = functions.when(column.isNotNull(), vector_to_array(column, dtype="float32"))
        return column, Rule(name, array=True, numeric=True, uniform=plain, elements=elements)
    if isinstance(kind, types.ArrayType) and isinstance(kind.elementType, _NUMBERS):
        if plain:
            column = column.cast(types.ArrayType(_narrow(kind.elementType)))
        return column, Rule(name, array=True, numeric=True, uniform=plain, elements=elements)
    if isinstance(kind, _NUMBERS):
        if classes is not None and isinstance(kind, _NARROWED):
            column = column.cast(types.DoubleType())  # StringIndexer gives doubles; made whole when dealt
        elif plain:
            column = column.cast(_narrow(kind))
        return column, Rule(name, numeric=True, classes=classes)
    if plain:
        raise DataError(f"column {name!r} is {kind.simpleString()}, which has no numbers; {_remedy(kind)}")
    return column, Rule(name)


def _narrow(kind: types.DataType) -> types.DataType:
    """The type in which a number is stored in a shard."""
    if isinstance(kind, _NARROWED):
        return types.FloatType()
    return types.ByteType() if isinstance(kind, types.BooleanType) else kind


def _remedy(kind: types.DataType) -> str:
    """What to do about a column that is not numeric."""
    if isinstance(kind, types.StringType):
        return "turn it into numbers (StringIndexer, OneHotEncoder), cast it, or pass collate=..."
    if isinstance(kind, types.BinaryType):
        return "pass collate=..., which decodes the bytes of a mini-batch into tensors"
    if isinstance(kind, types.DateType | types.TimestampType | types.TimestampNTZType):
        return "turn it into numbers, for example with unix_timestamp()"
    if isinstance(kind, types.ArrayType | types.StructType | types.MapType):
        return "flatten it into one array of numbers or into numeric columns, or pass collate=..."
    return "cast it to a number, or pass collate=..."
