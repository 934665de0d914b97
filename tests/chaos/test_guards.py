"""The suite tests itself: with any guard of the product switched off, some test fails. See `chaos.guards`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from chaos.guards import JAVA, PYTHON, SOCKET, Guard
from javas import MAIN, ROOT, TESTS, compile_all, compile_java, run_java, tool

FAILED = 1
"""Exit code of pytest: tests were run, and one failed. An error in a copy that cannot be imported is another."""


def copied(home: Path, guards: Sequence[Guard]) -> list[Path]:
    """For each guard the whole package without it, and one with all."""
    copies = [home / str(number) for number in range(len(guards) + 1)]
    for copy, guard in zip(copies, [*guards, None], strict=True):
        shutil.copytree(ROOT / "src" / "mizzle", copy / "mizzle", ignore=shutil.ignore_patterns("__pycache__", "*.jar"))
        if guard is not None:
            guard.switch_off(copy / "mizzle" / guard.source)
    return copies


def pytest_codes(home: Path, todo: Iterable[tuple[Path, list[str]]]) -> list[int]:
    """How these tests end with these packages."""
    asked, told = home / "todo.json", home / "codes.json"
    asked.write_text(json.dumps([(str(package), nodes) for package, nodes in todo]))
    with (home / "log").open("w") as log:
        subprocess.run(
            [sys.executable, str(ROOT / "tests" / "chaos" / "guardless.py"), str(asked), str(told)], cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT / "tests"), "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=log, stderr=subprocess.STDOUT, timeout=600, check=True,
        )  # fmt: skip
    codes: list[int] = json.loads(told.read_text())
    return codes


def check_python(home: Path, guards: Sequence[Guard]) -> None:
    *without, whole = copied(home, guards)
    nodes = [[guard.test] for guard in guards]
    all_nodes = sorted({guard.test for guard in guards})
    *codes, passing = pytest_codes(home, [*zip(without, nodes, strict=True), (whole, all_nodes)])
    assert passing == 0, f"with all guards every one of the tests passes: {(home / 'log').read_text()[-4000:]}"
    seen = {guard.what: code for guard, code in zip(guards, codes, strict=True)}
    assert seen == dict.fromkeys(seen, FAILED), (home / "log").read_text()[-4000:]


def check_java(home: Path, guards: Sequence[Guard]) -> None:
    class_path = compile_all(home / "classes")
    turns: list[list[Guard]] = []
    for guard in guards:  # javac takes long to start, and in each of its turns it takes a class once
        free = [turn for turn in turns if all(guard.source != other.source for other in turn)]
        if not free:
            turns.append([])
        (free or turns[-1:])[0].append(guard)
    for number, turn in enumerate(turns):
        compile_without(turn, class_path, home / f"turn{number}")
        for guard in turn:
            alone = home / f"turn{number}" / f"without{guard.source}"
            said = run_java(f"{alone}:{class_path}", [guard.test.split(".")[0]]).stdout
            assert f"FAILED {guard.test}\n" in said, f"{guard.what} is switched off, and {guard.test} says:\n{said}"


def check_sockets(home: Path, guards: Sequence[Guard]) -> None:
    """Spark is started with a jar in which a class has another form."""
    class_path, todo = compile_all(home / "classes"), []
    for number, guard in enumerate([*guards, None]):
        package = home / f"package{number}"
        shutil.copytree(ROOT / "src" / "mizzle", package / "mizzle", ignore=shutil.ignore_patterns("__pycache__"))
        todo.append((package, [one.test for one in guards] if guard is None else [guard.test]))
        if guard is not None:
            compile_without([guard], class_path, home / f"turn{number}")
            (jar,) = (package / "mizzle").rglob("*.jar")
            alone = home / f"turn{number}" / f"without{guard.source}"
            subprocess.run([tool("jar"), "uf", str(jar), "-C", str(alone), "."], check=True, timeout=60)
    assert pytest_codes(home, todo) == [FAILED] * len(guards) + [0], (home / "log").read_text()[-4000:]


def compile_without(guards: Sequence[Guard], class_path: str, home: Path) -> None:
    """Compile sources each without a guard; the classes of each come into a directory of their own."""
    changed = []
    for guard in guards:
        (source,) = MAIN.rglob(f"{guard.source}.java")
        changed.append(home / "java" / source.name)
        changed[-1].parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, changed[-1])
        guard.switch_off(changed[-1])
    compile_java(changed, class_path, home / "classes")
    for guard in guards:
        for path in (home / "classes").rglob(f"{guard.source}*.class"):
            if path.stem.split("$")[0] == guard.source:
                to = home / f"without{guard.source}" / path.relative_to(home / "classes")
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, to)


@pytest.mark.timeout(300)
def test_without_one_of_these_guards_a_test_fails(tmp_path: Path) -> None:
    check_python(tmp_path, [guard for guard in PYTHON if guard.quick])


@pytest.mark.timeout(300)
def test_without_one_of_these_guards_of_the_bridge_a_test_fails(tmp_path: Path) -> None:
    check_java(tmp_path, [guard for guard in JAVA if guard.quick])


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_without_any_guard_a_test_fails(tmp_path: Path) -> None:
    check_python(tmp_path, PYTHON)


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_without_any_guard_of_the_bridge_a_test_fails(tmp_path: Path) -> None:
    check_java(tmp_path, JAVA)


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_without_a_guard_of_the_bridges_socket_a_test_fails(tmp_path: Path) -> None:
    check_sockets(tmp_path, SOCKET)


@pytest.mark.parametrize(
    "guard", [*PYTHON, *JAVA, *SOCKET], ids=lambda guard: f"{Path(guard.source).stem}: {guard.what}"
)
def test_a_guard_is_still_there_and_so_is_its_test(guard: Guard, tmp_path: Path) -> None:
    source = ROOT / "src" / "mizzle" / guard.source if guard in PYTHON else next(MAIN.rglob(f"{guard.source}.java"))
    guard.switch_off(Path(shutil.copy(source, tmp_path)))
    if "::" in guard.test:
        file, _, name = guard.test.partition("::")
        head, written = f"def {name.partition('[')[0]}(", (ROOT / file).read_text()
    else:
        file, _, name = guard.test.partition(".")
        head, written = f"void {name}()", next(TESTS.rglob(f"{file}.java")).read_text()
    assert head in written, f"{guard.test} is gone: say anew what sees that {guard.what!r} is switched off"


def test_a_guard_whose_line_has_changed_is_named(tmp_path: Path) -> None:
    source = tmp_path / "x.py"
    source.write_text("if True:")
    with pytest.raises(AssertionError, match="say anew how to switch off 'it'"):
        Guard("it", "x.py", "if guarded:", "if False:", "t").switch_off(source)
