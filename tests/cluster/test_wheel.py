"""The wheel carries the compiled bridge, runs where there is only a JRE, and equal sources give equal jars."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
JAR_IN_WHEEL = "mizzle/spark/jars/mizzle-bridge.jar"
# What Spark's start scripts call, and java. No javac, and no python3: the session must name the interpreter itself.
TOOLS = ("bash", "sh", "env", "dirname", "basename", "uname", "ps", "nice", "cat", "mkdir", "rm", "chmod", "java")
ALL_REDUCE = """
import pathlib, shutil, sys
import numpy as np
import mizzle
assert shutil.which("javac") is None, "javac is on PATH: this run proves nothing"
assert pathlib.Path(mizzle.__file__).is_relative_to(sys.prefix), mizzle.__file__
spark = mizzle.session("local[2]")
try:
    total = mizzle.all_reduce(spark.sparkContext.parallelize([np.ones(5), np.ones(5) * 2], 2))
finally:
    spark.stop()
np.testing.assert_array_equal(total, np.full(5, 3.0))
print("all-reduced from", mizzle.__file__)
"""


@pytest.fixture(scope="module")
def hatch_build() -> ModuleType:
    """The build script, which lies outside every package."""
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the sources, in which nothing has been compiled before."""
    copy = tmp_path_factory.mktemp("checkout")
    built = shutil.ignore_patterns("__pycache__", "*.jar", "*.class")
    for name in ("src", "java"):
        shutil.copytree(ROOT / name, copy / name, ignore=built)
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, copy)
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist"], cwd=copy)
    (made,) = (copy / "dist").glob("*.whl")
    return made


def run(command: list[str], *, cwd: Path, env: dict[str, str] | None = None) -> str:
    """What the command printed; its failure shows both streams."""
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def new_environment(where: Path, wheel: Path) -> Path:
    """The Python of a new environment: mizzle from the wheel, everything else from this environment.

    A directory named in a .pth file is added as it is, its own .pth files are not read. So the editable install of
    this checkout, which is such a file, is not visible there.
    """
    run([sys.executable, "-m", "venv", "--without-pip", str(where)], cwd=where.parent)
    python = where / "bin" / "python"
    site = where / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    (site / "third_party.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index"]
    run([*pip, str(wheel)], cwd=where.parent)
    return python


def path_without_javac(where: Path) -> str:
    """A directory that links to what Spark needs, and to nothing else."""
    where.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None, f"{tool} is not on PATH, and Spark's start scripts call it"
        (where / tool).symlink_to(found)
    return str(where)


def test_the_wheel_contains_the_jar_and_every_class_of_the_bridge(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert JAR_IN_WHEEL in archive.namelist()
        archive.extract(JAR_IN_WHEEL, tmp_path)
    with zipfile.ZipFile(tmp_path / JAR_IN_WHEEL) as jar:
        classes = set(jar.namelist())
    sources = ROOT / "java" / "src" / "main" / "java"
    files = [path for path in sources.rglob("*.java") if path.name != "package-info.java"]  # which makes no class
    assert files
    assert {path.relative_to(sources).with_suffix(".class").as_posix() for path in files} <= classes


def test_the_wheel_all_reduces_where_only_a_jre_is(wheel: Path, tmp_path: Path) -> None:
    python = new_environment(tmp_path / "environment", wheel)
    env = {"PATH": path_without_javac(tmp_path / "bin"), "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    printed = run([str(python), "-c", ALL_REDUCE], cwd=tmp_path, env=env)
    assert f"all-reduced from {tmp_path}" in printed


def test_the_same_sources_give_the_same_jar(hatch_build: ModuleType, wheel: Path, tmp_path: Path) -> None:
    first = hatch_build.compile_bridge(tmp_path / "first" / "bridge.jar")
    second = hatch_build.compile_bridge(tmp_path / "second" / "bridge.jar")
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(JAR_IN_WHEEL) == first.read_bytes()


def test_a_build_without_javac_names_the_package_to_install(
    hatch_build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", path_without_javac(tmp_path / "bin"))
    with pytest.raises(hatch_build.CompileError, match="openjdk-17-jdk-headless"):
        hatch_build.compile_bridge(tmp_path / "bridge.jar")
    assert not (tmp_path / "bridge.jar").exists()


def test_what_javac_refuses_is_shown_and_leaves_the_old_jar(
    hatch_build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "main" / "java" / "Broken.java"
    broken.parent.mkdir(parents=True)
    broken.write_text("class Broken { int f() { return undefined; } }\n", encoding="utf-8")
    monkeypatch.setattr(hatch_build, "SOURCES", tmp_path / "main")
    jar = tmp_path / "bridge.jar"
    jar.write_bytes(b"the last good one")
    with pytest.raises(hatch_build.CompileError, match=rf"Broken\.java:1.*{os.linesep}.*undefined"):
        hatch_build.compile_bridge(jar)
    assert jar.read_bytes() == b"the last good one"
