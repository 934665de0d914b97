"""The Java unit tests: compiled with javac against Spark's jars and run by a few lines of their own (RunTests)."""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from mizzle.blocks.arena import allocate

ROOT = Path(__file__).resolve().parents[2]
MAIN = ROOT / "java" / "src" / "main" / "java"
TESTS = ROOT / "java" / "src" / "test" / "java"


def tool(name: str) -> str:
    """A program of the JDK."""
    home = os.environ.get("JAVA_HOME")
    found = shutil.which(name, path=str(Path(home, "bin")) if home else None)
    assert found is not None, f"{name} is not to be found: install a JDK of 17 or newer"
    return found


@pytest.fixture(scope="module")
def class_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where the bridge, its tests and Spark's classes are."""
    spec = find_spec("pyspark")
    assert spec is not None
    assert spec.origin is not None
    jars = f"{Path(spec.origin).parent / 'jars'}/*"
    classes = tmp_path_factory.mktemp("classes")
    sources = [str(path) for root in (MAIN, TESTS) for path in sorted(root.rglob("*.java"))]
    lint = "-Xlint:all,-classfile,-path,-processing"
    compile_all = [tool("javac"), "--release", "17", lint, "-Werror", "-cp", jars, "-d", str(classes), *sources]
    done = subprocess.run(compile_all, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return f"{classes}:{jars}"


def run_java(class_path: str, tests: list[str]) -> subprocess.CompletedProcess[str]:
    fd, memory = allocate("test", 4096)
    try:
        settings = [f"-Dgolden={ROOT / 'protocol' / 'golden'}", f"-Dmemfd={memory}", "-XX:TieredStopAtLevel=1"]
        command = [tool("java"), *settings, "-cp", class_path, "org.mizzle.bridge.RunTests", *tests]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    finally:
        os.close(fd)


def test_every_java_test_passes(class_path: str) -> None:
    tests = sorted(path.stem for path in TESTS.rglob("*Test.java") if path.stem != "FailingTest")
    assert tests
    done = run_java(class_path, tests)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in tests:
        assert f"ok {name}." in done.stdout


def test_a_java_test_that_fails_is_seen(class_path: str) -> None:
    done = run_java(class_path, ["FailingTest"])
    assert done.returncode == 1
    assert "FAILED FailingTest.aFailureIsSeen" in done.stdout
    assert "1 run, 1 failed" in done.stdout
