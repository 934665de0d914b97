"""Which Java Spark will start, found the way Spark's own start script does: JAVA_HOME, else the PATH."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from mizzle.errors import ConfigError

OLDEST_JAVA = 17
_ANSWER_S = 30.0
_REMEDY = "install one, e.g. apt-get install openjdk-17-jre-headless, or let JAVA_HOME point to one"


@dataclass(frozen=True, slots=True)
class Java:
    """A Java as it was found.

    Attributes:
        looked_at: where it was looked for, for messages.
        command: its full path, None when there is none.
        version: 17, 21, ...; None when it does not run.
    """

    looked_at: str
    command: str | None = None
    version: int | None = None

    @property
    def fault(self) -> str:
        """Why Spark cannot run on it; empty when it can."""
        if self.command is None:
            return f"no Java ({self.looked_at})"
        if self.version is None:
            return f"{self.command} does not run"
        return "" if self.version >= OLDEST_JAVA else f"{self.command} is Java {self.version}, too old"

    @property
    def remedy(self) -> str:
        """What to do about the fault."""
        return f"Spark needs Java {OLDEST_JAVA} or newer: {_REMEDY}"


def find_java() -> Java:
    """Look for it, and ask it for its version."""
    home = os.environ.get("JAVA_HOME")
    looked_at = f"JAVA_HOME is {home}" if home else "JAVA_HOME is not set, and none is on the PATH"
    command = shutil.which("java", path=str(Path(home, "bin"))) if home else shutil.which("java")
    if command is None:
        return Java(looked_at)
    try:
        told = subprocess.run(  # noqa: S603 - the very command that Spark will start
            [command, "-version"], capture_output=True, text=True, errors="replace", timeout=_ANSWER_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return Java(looked_at, command)
    return Java(looked_at, command, parse_version(told.stderr + told.stdout))


def parse_version(told: str) -> int | None:
    """The feature release in what ``java -version`` prints, None when there is none.

    Args:
        told: such as ``openjdk version "17.0.15" 2025-04-15``, or ``java version "1.8.0_392"``.
    """
    found = re.search(r'version "(?:1\.)?(\d+)', told)
    return int(found.group(1)) if found else None


def require_java() -> None:
    """Refuse to start Spark without a Java that it runs on.

    Raises:
        ConfigError: says what was found and what to install.
    """
    java = find_java()
    if java.fault:
        raise ConfigError(f"{java.fault}: {java.remedy}")
