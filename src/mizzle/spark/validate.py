"""Looks at every row once, where it lies, before anything else starts; one line a partition returns to the driver.

A row is bad when a selected column is null, has a null inside an array, is NaN or infinite (as float32), has another
array length than the rest, or a label that is no class. What happens then is the caller's policy: raise, or skip.
Never moves or changes a row; `data` does, with the same masks.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pyspark.sql import functions

from mizzle.errors import ConfigError, DataError
from mizzle.spark.rows import MAX_LENGTHS, REPORT, CheckPartition, Lengths, Rule
from mizzle.spark.schema import plan_columns

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, Row

    from mizzle.training.columns import Columns

_SKIP_HINT = "repair or filter such rows, or drop them with bad_rows='skip'"


@dataclass(frozen=True, slots=True)
class CheckedFrame:
    """A DataFrame whose every row has been looked at.

    Attributes:
        frame: the selected columns, renamed c0, c1, ... in the order of the rules.
        columns: how rows become tensors.
        rules: what was checked.
        lengths: the array length of each uniform column, in the order of the rules.
        rows_of_partition: usable rows; a partition without rows may be missing.
        num_rows: usable rows in all, >= 1.
        num_skipped: bad rows that will be dropped; 0 with policy ``raise``.
        label_min: smallest usable label; None when there is no label or it is no single number.
        label_max: largest one.
    """

    frame: DataFrame
    columns: Columns
    rules: tuple[Rule, ...]
    lengths: Lengths
    rows_of_partition: dict[int, int]
    num_rows: int
    num_skipped: int
    label_min: float | None
    label_max: float | None


def check_dataframe(
    df: DataFrame,
    columns: Columns,
    *,
    num_classes: int | None = None,
    bad_rows: Literal["raise", "skip"] = "raise",
) -> CheckedFrame:
    """Refuse a DataFrame that cannot be trained on. One Spark job over the selected columns, which collects no rows.

    Args:
        df: any batch DataFrame. It is computed twice (here and when it is dealt), so cache what is dear to compute.
        columns: features and label.
        num_classes: the label must be a whole number in [0, num_classes), integer or floating; None: any number.
        bad_rows: ``raise`` on the first bad row, or ``skip`` and count them.

    Returns:
        What `shard_dataframe` needs.

    Raises:
        DataError: the message names the column and, for a bad row, the partition, the row's number in it and the
            reason; repair the data as it says.
        ConfigError: ``bad_rows`` or ``num_classes`` is not one of the above.
    """
    if bad_rows not in ("raise", "skip"):
        raise ConfigError(f"bad_rows={bad_rows!r} is not known; write 'raise' or 'skip'")
    if num_classes is not None and num_classes < 1:
        raise ConfigError(f"num_classes={num_classes} must be at least 1")
    frame, rules = plan_columns(df, columns, num_classes)
    # A shuffle follows here as it does when the rows are dealt, so that Spark plans the part before it alike both
    # times: adaptive execution treats a last stage differently, and the partitions must be the same.
    job = frame.mapInArrow(CheckPartition(rules, columns.label), REPORT).repartitionById(1, functions.lit(0))
    reports = sorted((row for row in job.collect() if row["rows"]), key=lambda row: int(row["partition"]))
    if not reports:
        raise DataError("the DataFrame has no rows; check its filters and its source")
    return _verdict(CheckedFrame(frame, columns, rules, (), {}, 0, 0, None, None), reports, bad_rows)


def _verdict(unchecked: CheckedFrame, reports: list[Row], bad_rows: str) -> CheckedFrame:
    """Weigh the partitions' reports, in partition order."""
    rules = unchecked.rules
    seen = {int(row["partition"]): _Seen.parse(row["lengths"]) for row in reports}
    faulty = next((row for row in reports if row["fault"] is not None), None)
    if faulty is not None and bad_rows == "raise":
        where = f"row {faulty['fault_row']} of partition {faulty['partition']}"
        raise DataError(f"{where}: {faulty['fault']}; {_SKIP_HINT}")
    lengths = _choose_lengths(rules, seen, faulty)
    if bad_rows == "raise":
        _refuse_ragged(rules, seen, lengths)
    kept = {partition: of.counts[lengths] for partition, of in seen.items() if lengths in of.counts}
    num_rows = sum(kept.values())
    lows = [row["label_min"] for row in reports if row["label_min"] is not None]
    highs = [row["label_max"] for row in reports if row["label_max"] is not None]
    return CheckedFrame(
        unchecked.frame, unchecked.columns, rules, lengths, kept, num_rows,
        num_skipped=sum(int(row["rows"]) for row in reports) - num_rows,
        label_min=min(lows, default=None), label_max=max(highs, default=None),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Seen:
    """Array lengths among the otherwise good rows of one partition: how many rows, and the first of them."""

    counts: dict[Lengths, int]
    first: dict[Lengths, int]

    @classmethod
    def parse(cls, text: str) -> _Seen:
        """Read what `CheckPartition` wrote."""
        entries = [(tuple(lengths), count, first) for lengths, count, first in json.loads(text)]
        return cls({key: count for key, count, _ in entries}, {key: first for key, _, first in entries})


def _choose_lengths(rules: tuple[Rule, ...], seen: dict[int, _Seen], faulty: Row | None) -> Lengths:
    """The lengths that rows must have: what the user demanded, else what most rows have (ties: the earliest)."""
    total: Counter[Lengths] = Counter()
    for of in seen.values():
        if len(of.counts) >= MAX_LENGTHS:
            name = next(rule.name for rule in rules if rule.uniform)
            raise DataError(
                f"column {name!r} has more than {MAX_LENGTHS} different array lengths; pad or cut it to one"
            )
        for lengths in sorted(of.first, key=of.first.__getitem__):
            total[lengths] += of.counts[lengths]
    if not total:
        reason = f"row {faulty['fault_row']} of partition {faulty['partition']}: {faulty['fault']}" if faulty else ""
        raise DataError(f"every row is bad, none is left to train on; the first is {reason}")
    uniform = [rule for rule in rules if rule.uniform]
    fitting = [key for key in total if all(_fits(rule, length) for rule, length in zip(uniform, key, strict=True))]
    if not fitting:
        common = total.most_common(1)[0][0]
        rule, length = next(pair for pair in zip(uniform, common, strict=True) if not _fits(*pair))
        wanted = "at least one" if rule.elements is None else f"{rule.elements}, by the shape given for a row"
        raise DataError(f"column {rule.name!r} has arrays of {length} elements, but must have {wanted}")
    return max(fitting, key=total.__getitem__)


def _fits(rule: Rule, length: int) -> bool:
    return length > 0 and rule.elements in (None, length)


def _refuse_ragged(rules: tuple[Rule, ...], seen: dict[int, _Seen], lengths: Lengths) -> None:
    """Raise for the first row whose arrays have other lengths."""
    uniform = [rule for rule in rules if rule.uniform]
    for partition, of in sorted(seen.items()):
        others = sorted((first, key) for key, first in of.first.items() if key != lengths)
        if others:
            row, key = others[0]
            name, is_, expected = next(
                (rule.name, a, b) for rule, a, b in zip(uniform, key, lengths, strict=True) if a != b
            )
            same = sum(other.counts.get(lengths, 0) for other in seen.values())
            raise DataError(
                f"row {row} of partition {partition}: column {name!r} has {is_} elements, where {same} rows have "
                f"{expected}; {_SKIP_HINT}"
            )
