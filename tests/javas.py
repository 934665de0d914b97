"""The bridge's Java classes and their tests: compiled with javac against Spark's jars, run by `RunTests`."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from mizzle.blocks.arena import allocate

ROOT = Path(__file__).resolve().parents[1]
MAIN = ROOT / "java" / "src" / "main" / "java"
TESTS = ROOT / "java" / "src" / "test" / "java"


def tool(name: str) -> str:
    """A program of the JDK."""
    home = os.environ.get("JAVA_HOME")
    found = shutil.which(name, path=str(Path(home, "bin")) if home else None)
    assert found is not None, f"{name} is not to be found: install a JDK of 17 or newer"
    return found


def spark_jars() -> str:
    """Spark's classes."""
    spec = find_spec("pyspark")
    assert spec is not None
    assert spec.origin is not None
    return f"{Path(spec.origin).parent / 'jars'}/*"


def compile_java(sources: Iterable[Path], class_path: str, to: Path) -> None:
    """Compile, with every warning an error."""
    lint = "-Xlint:all,-classfile,-path,-processing"
    command = [tool("javac"), "--release", "17", lint, "-Werror", "-cp", class_path, "-d", str(to), *map(str, sources)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def compile_all(to: Path) -> str:
    """The bridge and its tests; the class path to run them with."""
    compile_java((path for root in (MAIN, TESTS) for path in sorted(root.rglob("*.java"))), spark_jars(), to)
    return f"{to}:{spark_jars()}"


def run_java(class_path: str, tests: list[str]) -> subprocess.CompletedProcess[str]:
    """Run some of the test classes, by their simple names."""
    fd, memory = allocate("test", 4096)
    try:
        settings = [f"-Dgolden={ROOT / 'protocol' / 'golden'}", f"-Dmemfd={memory}", "-XX:TieredStopAtLevel=1"]
        command = [tool("java"), *settings, "-cp", class_path, "org.mizzle.bridge.RunTests", *tests]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    finally:
        os.close(fd)
