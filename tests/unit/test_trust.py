"""House rules about trust: who may be unpickled, and that no decision looks at the clock on the wall.

Each check is a pure function from text to complaints, tried here on a text that breaks the rule, then on the sources.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "mizzle"
PYTHON = sorted(PACKAGE.rglob("*.py"))
JAVA = sorted((ROOT / "java" / "src" / "main").rglob("*.java"))

UNPICKLES = {
    "spark/groups.py": "the caller's own function, which Spark brought here with its task",
    "spark/ranks/hiring.py": "the outcome of a resident of the same user, which holds the bridge's token",
    "spark/iterate.py": "results that ranks left in their arenas, fetched by Spark's tasks",
    "spark/ranks/outcome.py": "results and errors of the application's own tasks",
    "spark/ranks/resident.py": "orders of the driver, handed on by the bridge, and memory of the task that hires",
    "spark/runner.py": "outcomes of the application's own tasks",
    "spark/ranks/step.py": "the caller's functions, and states that ranks of the run keep for each other",
    "spark/ranks/train_task.py": "model and loss, as the driver has sent them by Spark's broadcast",
    "spark/trainer.py": "what was pickled a line before, to have a copy",
}
"""Who is trusted so far; docs/security.md says why. Never a socket, a file or a peer's block as such."""
WALL_CLOCK = {
    "collectives/timeline.py": "puts traces of several hosts on one axis, for people",
    "spark/recovery.py": "says in the history when a fault was noticed",
    "bench/recovery.py": "compares moments in two processes of one machine",
}
"""Who may look at it: nothing is decided by what it says."""

_LOADS = {"loads", "load", "Unpickler", "eval", "exec"}
_MODULES = {"pickle", "cloudpickle", "marshal", "shelve", "dill", "torch"}
_CLOCKS = {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "utcnow"), ("date", "today")}
_JAVA_CLOCK = re.compile(
    r"currentTimeMillis|\b(?:Instant|LocalDateTime|ZonedDateTime)\.now|new Date\(|lastModified|Clock\."
)
_JAVA_TRUST = re.compile(
    r"ObjectInputStream|\breadObject\b|Class\.forName|ScriptEngine|ProcessBuilder|\.exec\(|URLClassLoader"
)


def unpickling(text: str) -> Iterator[int]:
    """Lines where bytes become objects, or text becomes code."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and node.attr in _LOADS and isinstance(node.value, ast.Name):
            if node.value.id in _MODULES:
                yield node.lineno
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"eval", "exec"}:
            yield node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module in _MODULES - {"torch"}:
            yield from (node.lineno for name in node.names if name.name in _LOADS)
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            yield node.value.lineno


def wall_clock_in_python(text: str) -> Iterator[int]:
    """Lines that look at the wall clock, or at what it has written beside a file."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and (
            node.attr in {"st_mtime", "st_mtime_ns", "getmtime"}
            or (isinstance(node.value, ast.Name) and (node.value.id, node.attr) in _CLOCKS)
        ):
            yield node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            yield from (node.lineno for name in node.names if name.name in {"time", "time_ns"})


def lines_with(pattern: re.Pattern[str], text: str) -> Iterator[int]:
    """Lines of code, comments left out, in which it is found."""
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.lstrip().startswith(("*", "/")) and pattern.search(line):
            yield number


def of_package(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def test_bytes_become_objects_only_where_it_is_known_whose_they_are() -> None:
    found = {of_package(path) for path in PYTHON if any(unpickling(path.read_text(encoding="utf-8")))}
    assert found == UNPICKLES.keys()
    assert all(name.startswith("spark/") for name in found), (
        "no lower room unpickles: blocks, states and sums have fixed forms"
    )


def test_java_makes_no_objects_and_starts_no_programs_from_what_it_reads() -> None:
    assert JAVA
    assert [str(path) for path in JAVA if any(lines_with(_JAVA_TRUST, path.read_text(encoding="utf-8")))] == []


def test_no_decision_looks_at_the_clock_on_the_wall() -> None:
    found = {of_package(path) for path in PYTHON if any(wall_clock_in_python(path.read_text(encoding="utf-8")))}
    assert found == WALL_CLOCK.keys()
    assert [str(path) for path in JAVA if any(lines_with(_JAVA_CLOCK, path.read_text(encoding="utf-8")))] == []


@pytest.mark.parametrize(
    "text",
    ["cloudpickle.loads(x)", "import pickle\npickle.Unpickler(f)", "from pickle import loads", "torch.load(p)",
     "eval(t)", "np.load(p, allow_pickle=True)"],
)  # fmt: skip
def test_unpickling_is_seen(text: str) -> None:
    assert list(unpickling(text))


@pytest.mark.parametrize("text", ["model.eval()", "json.loads(t)", "safetensors.torch.load(raw)", "np.load(p)"])
def test_what_is_no_unpickling_is_let_pass(text: str) -> None:
    assert not list(unpickling(text))


@pytest.mark.parametrize("text", ["time.time()", "from time import time", "datetime.now()", "path.stat().st_mtime"])
def test_the_clock_on_the_wall_is_seen_in_python(text: str) -> None:
    assert list(wall_clock_in_python(text))


def test_monotonic_clocks_are_let_pass() -> None:
    assert not list(wall_clock_in_python("time.monotonic() + time.perf_counter()\nfrom time import perf_counter"))
    assert not list(lines_with(_JAVA_CLOCK, "long now = System.nanoTime();"))


@pytest.mark.parametrize("line", ["long t = System.currentTimeMillis();", "Instant.now()", "file.lastModified()"])
def test_the_clock_on_the_wall_is_seen_in_java(line: str) -> None:
    assert list(lines_with(_JAVA_CLOCK, line))


@pytest.mark.parametrize("line", ["new ObjectInputStream(in)", "Class.forName(name)", "runtime.exec(command)"])
def test_trust_in_what_was_read_is_seen_in_java(line: str) -> None:
    assert list(lines_with(_JAVA_TRUST, line))
    assert not list(lines_with(_JAVA_TRUST, "  // " + line))
