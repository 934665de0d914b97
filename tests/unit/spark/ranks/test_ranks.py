"""A rank is in an executor: what only the driver has is out of its reach, and no module of ranks may name it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

RANKS = Path(__file__).resolve().parents[4] / "src" / "mizzle" / "spark" / "ranks"
DRIVERS = {"SparkContext", "SparkSession", "_jvm", "_jsc", "_jrdd", "_gateway", "py4j"}


def named(text: str) -> Iterator[str]:
    """What a module names of the driver's."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and node.attr in DRIVERS:
            yield node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from {node.module or "", *(one.name for one in node.names)} & DRIVERS


def test_what_is_the_drivers_is_seen() -> None:
    text = "from pyspark import SparkContext, TaskContext\nfrom py4j import protocol\nrdd._jrdd.rdd()\ncontext._jvm.x()"
    assert sorted(named(text)) == ["SparkContext", "_jrdd", "_jvm", "py4j"]


@pytest.mark.parametrize("file", sorted(RANKS.glob("*.py")), ids=lambda file: file.stem)
def test_ranks_name_nothing_of_the_drivers(file: Path) -> None:
    assert not list(named(file.read_text()))
