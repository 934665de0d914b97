"""The Java unit tests."""

from __future__ import annotations

import pytest

from javas import TESTS, compile_all, run_java


@pytest.fixture(scope="module")
def class_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where the bridge, its tests and Spark's classes are."""
    return compile_all(tmp_path_factory.mktemp("classes"))


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
