"""Say what this machine lacks for `make setup`, and which package brings it.

Runs before the environment exists, on whatever Python there is: the standard library only, and syntax of Python 3.7.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

OLDEST_PYTHON = (3, 11)
OLDEST_JAVA = 17


def check_python() -> list[str]:
    """Complaints about the running interpreter; empty when it will do."""
    version = "{}.{}".format(*sys.version_info)
    if sys.version_info < OLDEST_PYTHON:
        remedy = "apt-get install python3.11 python3.11-venv (then: make PYTHON=python3.11 setup)"
        return [f"Python {version} ({sys.executable}) is too old, 3.11 or newer is needed: {remedy}"]
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if missing:
        lacks = " and no ".join(missing)
        return [f"Python {version} ({sys.executable}) has no {lacks}: apt-get install python{version}-venv"]
    return []


def find_java(name: str) -> str | None:
    """The Java command that Spark and the build will use: under JAVA_HOME where that is set, otherwise on PATH."""
    home = os.environ.get("JAVA_HOME")
    return shutil.which(name, path=str(Path(home, "bin"))) if home else shutil.which(name)


def check_java(name: str, package: str) -> list[str]:
    """Complaints about `java` or `javac`; empty when it is there, runs and is new enough."""
    where = "JAVA_HOME={}".format(os.environ["JAVA_HOME"]) if os.environ.get("JAVA_HOME") else "PATH"
    command = find_java(name)
    if command is None:
        return [f"{name} was not found ({where}): apt-get install {package}"]
    done = subprocess.run([command, "-version"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    printed = done.stdout.decode(errors="replace")
    found = re.search(r'(?:javac |version ")(?:1\.)?(\d+)', printed)  # 'javac 17.0.1', 'version "1.8.0_392"'
    if done.returncode != 0 or found is None:
        return [f"{command} does not run ({printed.strip()[:200]}): apt-get install {package}"]
    if int(found.group(1)) < OLDEST_JAVA:
        return [f"{command} is version {found.group(1)}, {OLDEST_JAVA} or newer is needed: apt-get install {package}"]
    return []


def main() -> int:
    """Print every complaint; 1 if there was one, otherwise 0."""
    complaints = check_python()
    complaints += check_java("java", "openjdk-17-jre-headless")
    complaints += check_java("javac", "openjdk-17-jdk-headless")
    for complaint in complaints:
        sys.stderr.write(f"error: {complaint}\n")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
