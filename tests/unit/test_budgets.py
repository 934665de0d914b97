"""House rules that no linter knows: sizes of files and functions, no sleeping, a TODO names its issue.

Each check is a pure function from text to complaints, tried here on a text that breaks the rule, then on the sources.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = sorted((ROOT / "src").rglob("*.py"))
JAVA = sorted((ROOT / "java").rglob("*.java"))
FILE_LINES = {".py": 400, ".java": 200}
FUNCTION_LINES = 50
# 'TODO(#12): ...'; the marker is put together so that this file does not trip over itself
TODO_WITHOUT_ISSUE = re.compile("TO" + r"DO(?!\(#\d+\))|FIX" + r"ME|XX" + "X")
# The head of a Java method, its body's brace included, indented by one or two levels (Spark's style: 2 spaces).
# A line of a body ends otherwise, or begins with a word that no method does.
JAVA_METHOD = re.compile(
    r"^(?P<indent> {2}| {4})(?! )(?!(?:return|throw|new|if|for|while|else|try|switch|synchronized|case|do)\b)"
    r"(?:[\w<>\[\],.?@&]+ +)*(?P<name>\w+)\([^;{}=]*\)(?:\s*throws [\w., \n]+)?\s*\{",
    re.MULTILINE,
)


def long_files(text: str, limit: int) -> Iterator[tuple[int, str]]:
    lines = text.count("\n")
    if lines > limit:
        yield limit + 1, f"file has {lines} lines, at most {limit}"


def long_python_functions(text: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES:
                yield node.lineno, f"{node.name}() has {lines} lines, at most {FUNCTION_LINES}"


def long_java_methods(text: str) -> Iterator[tuple[int, str]]:
    for head in JAVA_METHOD.finditer(text):
        end = re.compile(f"^{head['indent']}}}", re.MULTILINE).search(text, head.end())
        if end is None:  # the body stands on one line
            continue
        lines = text.count("\n", head.start(), end.start()) + 1
        if lines > FUNCTION_LINES:
            yield text.count("\n", 0, head.start()) + 1, f"{head['name']}() has {lines} lines, at most {FUNCTION_LINES}"


def sleeps_in_python(text: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            sleeps = any(name.name == "sleep" for name in node.names)
        elif isinstance(node, ast.Attribute):
            sleeps = node.attr == "sleep"
        else:
            continue
        if sleeps:
            yield node.lineno, "sleeps; wait on a condition with a deadline"


def sleeps_in_java(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if re.search(r"\bThread\.sleep\b|\bTimeUnit\.\w+\.sleep\b", line):
            yield number, "sleeps; wait on a condition with a deadline"


def todos_without_issue(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if TODO_WITHOUT_ISSUE.search(line):
            yield number, "a thing to do carries its issue number: (#12) follows the word"


def complaints(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8")
    checks = [long_files(text, FILE_LINES[path.suffix]), todos_without_issue(text)]
    if path.suffix == ".py":
        checks += [long_python_functions(text), sleeps_in_python(text)]
    else:
        checks += [long_java_methods(text), sleeps_in_java(text)]
    for check in checks:
        for line, what in check:
            yield f"{path.relative_to(ROOT)}:{line}: {what}"


def test_the_sources_are_where_this_file_looks_for_them() -> None:
    assert ROOT / "src" / "mizzle" / "errors.py" in PYTHON
    assert any(path.parent.name == "bridge" for path in JAVA)


def test_python_and_java_keep_the_budgets() -> None:
    found = [complaint for path in [*PYTHON, *JAVA] for complaint in complaints(path)]
    assert not found, "\n" + "\n".join(found)


def test_a_file_one_line_over_its_limit_is_named() -> None:
    assert not list(long_files("x\n" * 400, 400))
    assert list(long_files("x\n" * 401, 400)) == [(401, "file has 401 lines, at most 400")]


@pytest.mark.parametrize("head", ["def work():", "async def work():"])
def test_a_function_of_fifty_lines_passes_and_one_more_does_not(head: str) -> None:
    assert not list(long_python_functions(f"{head}\n" + "    pass\n" * 49))
    assert list(long_python_functions(f"\n{head}\n" + "    pass\n" * 50)) == [(2, "work() has 51 lines, at most 50")]


@pytest.mark.parametrize(
    "head",
    [
        "  void work() {",
        "  Bridge(int port) {",
        "  private static <T> Map<String, T> work(int a, T[] b) throws IOException {",
        "  @Override public void work(\n      int a,\n      int b)\n      throws IOException {",
        "    public int work() {",
    ],
)
def test_a_java_method_over_fifty_lines_is_named(head: str) -> None:
    indent = " " * (len(head) - len(head.lstrip()))
    body = FUNCTION_LINES - 2 - head.count("\n")
    fits = f"class A {{\n{head}\n" + f"{indent}  x();\n" * body + f"{indent}}}\n}}\n"
    assert not list(long_java_methods(fits))
    too_long = fits.replace("x();\n", "x();\n" + f"{indent}  y();\n", 1)
    ((line, what),) = long_java_methods(too_long)
    assert line == 2
    assert "has 51 lines" in what


def test_blocks_inside_a_java_method_are_not_taken_for_methods() -> None:
    block = "  void work() {\n" + "    if (a()) {\n" + "      x();\n" * 60 + "    }\n"
    assert not [what for _, what in long_java_methods(block) if what.startswith(("if", "a"))]


@pytest.mark.parametrize("text", ["import time\ntime.sleep(1)", "x = 1\nfrom time import sleep", "1\nclock.sleep(2)"])
def test_sleeping_in_python_is_named_with_its_line(text: str) -> None:
    assert [line for line, _ in sleeps_in_python(text)] == [2]


def test_sleeping_in_java_is_named_with_its_line() -> None:
    assert [line for line, _ in sleeps_in_java("\nThread.sleep(5);\nTimeUnit.SECONDS.sleep(1);\nsleepless();")] == [
        2,
        3,
    ]


def test_a_todo_needs_an_issue_number() -> None:
    word = "TO" + "DO"
    assert not list(todos_without_issue(f"# {word}(#12): later"))
    assert [line for line, _ in todos_without_issue(f"\n# {word}: later\n// {word}(me) later\n")] == [2, 3]
