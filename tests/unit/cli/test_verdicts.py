"""The doctor's judgement, from what was seen to what is said."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mizzle.cli import verdicts
from mizzle.cli.java import Java
from mizzle.cli.verdicts import Finding
from mizzle.spark.probe import ExecutorFacts
from mizzle.spark.security import Conf

EXECUTOR = ExecutorFacts(
    executor_id="0", host="a", host_id="boot/pid", python="3.11.2", torch="2.13.0", mizzle="0.1.0",
    arena_error="", memory_limit=None,
)  # fmt: skip
DRIVER = {"python": "3.11.7", "torch": "2.13.0", "mizzle": "0.1.0"}


def conf_of(**settings: str) -> Conf:
    """Settings with ``__`` for a dot."""
    named = {name.replace("__", "."): value for name, value in settings.items()}
    return named.get


def test_a_finding_that_is_not_ok_says_what_to_do() -> None:
    executor = replace(EXECUTOR, arena_error="no memory", torch="2.14.0")
    findings = [
        verdicts.judge_java(Java("PATH")),
        verdicts.judge_spark("4.4.0"),
        verdicts.judge_jar("", "the jar is missing"),
        verdicts.judge_bridges([], 2),
        verdicts.judge_bridges(["0"], 2),
        verdicts.judge_slots(0),
        verdicts.judge_slots(1),
        verdicts.judge_arena([executor]),
        *[finding for finding in verdicts.judge_versions(DRIVER, [executor]) if finding.verdict != "ok"],
        verdicts.judge_all_reduce("shm", exact=False, error="not visible"),
        verdicts.judge_all_reduce("blocks", exact=False, error="refused"),
        verdicts.judge_all_reduce("blocks", exact=False),
        verdicts.judge_speculation(conf_of(spark__speculation="true")),
        verdicts.judge_locality(conf_of()),
        verdicts.judge_dynamic_allocation(conf_of(spark__dynamicAllocation__enabled="true")),
    ]
    assert [finding for finding in findings if finding.verdict == "ok" or not finding.remedy] == []
    assert len(findings) == 15


@pytest.mark.parametrize(
    ("java", "verdict"),
    [
        (Java("PATH"), "fail"),
        (Java("PATH", "/usr/bin/java"), "fail"),
        (Java("PATH", "/usr/bin/java", 11), "fail"),
        (Java("PATH", "/usr/bin/java", 17), "ok"),
        (Java("PATH", "/usr/bin/java", 21), "ok"),
    ],
)
def test_java_must_be_17_or_newer(java: Java, verdict: str) -> None:
    found = verdicts.judge_java(java)
    assert found.verdict == verdict
    assert verdict == "ok" or "openjdk-17-jre-headless" in found.remedy


@pytest.mark.parametrize(
    ("version", "verdict"), [("4.2.9", "fail"), ("4.3.0", "ok"), ("4.3.12", "ok"), ("4.4.0", "fail"), ("3.5.1", "fail")]
)
def test_spark_must_be_the_release_that_the_bridge_is_compiled_against(version: str, verdict: str) -> None:
    assert verdicts.judge_spark(version).verdict == verdict


def test_bridges_fail_when_none_has_reported_and_warn_when_some_have_not() -> None:
    assert verdicts.judge_bridges([], 0).verdict == "fail"
    assert verdicts.judge_bridges(["1"], 2).verdict == "warn"
    assert verdicts.judge_bridges(["1", "0"], 2) == Finding("bridges", "ok", "2 of 2 executors reported: 0, 1")


def test_a_lack_of_arena_names_executor_reason_and_limit() -> None:
    poor = replace(EXECUTOR, executor_id="3", arena_error="64000000 bytes needed", memory_limit=2**30)
    found = verdicts.judge_arena([EXECUTOR, poor])
    assert found.verdict == "fail"
    assert "executor 3: 64000000 bytes needed; container limit 1.0 GiB" in found.seen
    assert "spark.executor.memoryOverhead" in found.remedy
    assert verdicts.judge_arena([EXECUTOR]).seen == "64MB allocated on 1 executors; no container limit"


def test_shared_memory_that_does_not_work_is_a_fault_only_on_one_host() -> None:
    assert verdicts.judge_all_reduce("shm", exact=False, error="x", one_host=True).verdict == "warn"
    assert verdicts.judge_all_reduce("shm", exact=False, error="x", one_host=False).verdict == "ok"
    assert verdicts.judge_all_reduce("blocks", exact=False, error="x", one_host=False).verdict == "fail"


@pytest.mark.parametrize("transport", ["shm", "blocks"])
def test_a_wrong_sum_is_a_failure_over_any_transport(transport: str) -> None:
    assert verdicts.judge_all_reduce(transport, exact=True).verdict == "ok"
    assert verdicts.judge_all_reduce(transport, exact=False).verdict == "fail"


def test_a_patch_release_of_python_may_differ_but_a_minor_release_may_not() -> None:
    python, torch, mizzle = verdicts.judge_versions(DRIVER, [EXECUTOR])
    assert (python.verdict, torch.verdict, mizzle.verdict) == ("ok", "ok", "ok")
    other = replace(EXECUTOR, executor_id="1", python="3.12.2", torch="2.13.1", mizzle="0.2.0")
    python, torch, mizzle = verdicts.judge_versions(DRIVER, [EXECUTOR, other])
    assert (python.verdict, torch.verdict, mizzle.verdict) == ("fail", "warn", "fail")
    assert python.seen == "3.11.7 on the driver, 3.12.2 on executor 1"


@pytest.mark.parametrize(
    ("wait", "verdict"), [("0s", "ok"), ("0", "ok"), ("0ms", "ok"), ("3s", "warn"), ("10s", "warn")]
)
def test_waiting_for_locality_is_warned_of(wait: str, verdict: str) -> None:
    assert verdicts.judge_locality(conf_of(spark__locality__wait=wait)).verdict == verdict


def test_speculation_and_dynamic_allocation_are_fine_when_off() -> None:
    assert verdicts.judge_speculation(conf_of()).verdict == "ok"
    assert verdicts.judge_dynamic_allocation(conf_of()).verdict == "ok"
