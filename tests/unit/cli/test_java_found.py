from __future__ import annotations

from pathlib import Path

import pytest

from mizzle.cli.java import find_java, parse_version, require_java
from mizzle.errors import ConfigError


@pytest.mark.parametrize(
    ("told", "version"),
    [
        ('openjdk version "17.0.15" 2025-04-15\nOpenJDK Runtime Environment', 17),
        ('openjdk version "21" 2023-09-19', 21),
        ('java version "1.8.0_392"', 8),
        ("Error: could not find libjava.so", None),
    ],
)
def test_the_version_is_read_from_what_java_prints(told: str, version: int | None) -> None:
    assert parse_version(told) == version


def a_java(home: Path, script: str) -> None:
    command = home / "bin" / "java"
    command.parent.mkdir(parents=True)
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)


def test_java_home_goes_before_the_path_as_in_sparks_start_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_java(tmp_path / "home", "echo 'openjdk version \"21.0.2\"' >&2")
    a_java(tmp_path / "path", "echo 'openjdk version \"17.0.1\"' >&2")
    monkeypatch.setenv("PATH", f"{tmp_path}/path/bin:/bin:/usr/bin")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
    assert find_java().version == 21
    monkeypatch.delenv("JAVA_HOME")
    assert find_java().version == 17


@pytest.mark.parametrize(
    ("script", "complaint"),
    [("echo 'java version \"1.8.0\"' >&2", "is Java 8, too old"), ("exit 1", "does not run"), (None, "no Java")],
)
def test_a_java_that_will_not_do_is_refused_with_the_package_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, complaint: str
) -> None:
    if script is not None:
        a_java(tmp_path, script)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=complaint) as caught:
        require_java()
    assert str(tmp_path) in str(caught.value)
    assert "openjdk-17-jre-headless" in str(caught.value)
