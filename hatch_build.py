"""Compile the Java bridge into the package: the build hook of the wheel, and `make jar`.

An editable install never compiles, so the package can be imported before the bridge builds; `make jar` does it there.
The jar is written here and not by the `jar` tool, so that equal sources give equal bytes.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parent
SOURCES = ROOT / "java" / "src" / "main"
JAR = ROOT / "src" / "mizzle" / "spark" / "jars" / "mizzle-bridge.jar"
JAVA_RELEASE = 17  # the oldest Java that Spark 4.3 runs on
PYSPARK = "pyspark>=4.3,<4.4"  # as in pyproject.toml
EPOCH = (1980, 1, 1, 0, 0, 0)  # the first date that a zip file can hold
MANIFEST = "Manifest-Version: 1.0\r\nImplementation-Title: mizzle-bridge\r\nImplementation-Version: {release}\r\n\r\n"
# classfile: Scala's class files name annotations that are not on the class path.
# path: jars of Spark name, in their manifests, companions that Spark does not ship.
# processing: there are no annotation processors.
LINT = "-Xlint:all,-classfile,-path,-processing"


class CompileError(RuntimeError):
    """The bridge could not be compiled; the message says what is missing or what javac said."""


def spark_jars() -> Path:
    """The directory of Spark's jars in the running interpreter.

    Raises:
        CompileError: pyspark cannot be imported; install it, or build with isolation.
    """
    spec = importlib.util.find_spec("pyspark")
    if spec is None or spec.origin is None:
        raise CompileError(f"pyspark is not installed in {sys.prefix}: pip install '{PYSPARK}'")
    jars = Path(spec.origin).parent / "jars"
    if not any(jars.glob("spark-core_*.jar")):
        raise CompileError(f"no Spark in {jars}: the bridge needs the full pyspark distribution, not pyspark-client")
    return jars


def find_javac() -> str:
    """The compiler: under JAVA_HOME where that is set, as Spark finds its Java, otherwise on PATH.

    Raises:
        CompileError: there is none; install a JDK.
    """
    home = os.environ.get("JAVA_HOME")
    javac = shutil.which("javac", path=str(Path(home, "bin")) if home else None)
    if javac is None:
        where = f"JAVA_HOME={home}" if home else "PATH"
        raise CompileError(
            f"javac was not found ({where}): building mizzle needs a JDK of {JAVA_RELEASE} or newer "
            f"(apt-get install openjdk-{JAVA_RELEASE}-jdk-headless). Running it needs only a JRE."
        )
    return javac


def compile_bridge(target: Path = JAR) -> Path:
    """Compile every Java source of the bridge against Spark's jars and write one reproducible jar.

    Args:
        target: where the jar goes; replaced in one step, so a reader sees the old or the new one.

    Returns:
        The path of the jar.

    Raises:
        CompileError: javac, pyspark or the sources are missing, or javac refused them; the message says which.
    """
    sources = sorted((SOURCES / "java").rglob("*.java"))
    if not sources:
        raise CompileError(f"no Java sources under {SOURCES / 'java'}: build from a full checkout or the sdist")
    with tempfile.TemporaryDirectory(prefix="mizzle-javac-") as scratch:
        classes = Path(scratch)
        command = [find_javac(), "--release", str(JAVA_RELEASE), "-proc:none", LINT, "-Werror", "-encoding", "UTF-8"]
        command += ["-cp", f"{spark_jars()}/*", "-d", str(classes), *map(str, sources)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise CompileError(f"javac refused the bridge:\n{done.stdout}{done.stderr}")
        write_jar(target, [classes, SOURCES / "resources"])
    return target


def write_jar(target: Path, roots: list[Path]) -> None:
    """Write the files under ``roots`` into a jar whose bytes depend on their names and contents only."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(".unfinished")
    with zipfile.ZipFile(unfinished, "w") as jar:
        for name, content in [("META-INF/MANIFEST.MF", manifest()), *sorted(entries(roots))]:
            entry = zipfile.ZipInfo(name, date_time=EPOCH)
            entry.external_attr = 0o644 << 16
            entry.create_system = 3  # Unix, wherever it is built
            entry.compress_type = zipfile.ZIP_STORED  # some 150 KB; zlib versions need not agree on bytes
            jar.writestr(entry, content)
    unfinished.replace(target)


def manifest() -> bytes:
    """The jar's manifest: workers of another release are refused by it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return MANIFEST.format(release=project["version"]).encode("ascii")


def entries(roots: list[Path]) -> Iterator[tuple[str, bytes]]:
    """Name and content of every file under ``roots``, named relative to its root."""
    for root in roots:
        for path in root.rglob("*"):
            if path.is_file():
                yield path.relative_to(root).as_posix(), path.read_bytes()


class BridgeHook(BuildHookInterface[Any]):
    """Hatchling's build hook: puts the jar into every wheel, and into no editable install."""

    def dependencies(self) -> list[str]:
        """What an isolated build must install: pyspark, unless the building interpreter has it."""
        return [] if importlib.util.find_spec("pyspark") else [PYSPARK]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile before the files of a wheel are collected.

        Args:
            version: ``standard`` for a wheel, ``editable`` for an editable install.
            build_data: hatchling's settings of this build; the jar is added to its artifacts.
        """
        if version == "editable":
            return
        jar = compile_bridge()
        build_data["artifacts"].append(jar.relative_to(ROOT).as_posix())


if __name__ == "__main__":
    try:
        written = compile_bridge()
    except CompileError as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(f"{written.relative_to(ROOT)}: {written.stat().st_size} bytes\n")
