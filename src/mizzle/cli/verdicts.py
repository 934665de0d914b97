"""The doctor's judgement: from what was seen to ok, warn or fail, and what to do. Pure functions, no Spark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mizzle.cli.java import OLDEST_JAVA, Java
from mizzle.cli.sizes import format_size
from mizzle.spark.probe import ARENA_BYTES, ExecutorFacts
from mizzle.spark.security import Conf, Protection

SPARK_RANGE = ((4, 3), (4, 4))
"""The bridge uses interfaces of the BlockManager that are not public: from the first, before the second."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One check.

    Attributes:
        name: what was checked.
        verdict: "fail" keeps mizzle from working, "warn" is worth a look.
        seen: what was found.
        remedy: what to do; empty when there is nothing to do.
    """

    name: str
    verdict: Literal["ok", "warn", "fail"]
    seen: str
    remedy: str = ""


def judge_java(java: Java) -> Finding:
    """Spark needs one, new enough."""
    if java.fault:
        return Finding("java", "fail", java.fault, java.remedy)
    return Finding("java", "ok", f"Java {java.version} ({java.command}), {OLDEST_JAVA} or newer is needed")


def judge_spark(version: str) -> Finding:
    """PySpark must be of the release that the bridge is compiled against."""
    first, end = SPARK_RANGE
    release = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    wanted = f">={first[0]}.{first[1]},<{end[0]}.{end[1]}"
    if first <= release < end:
        return Finding("spark", "ok", f"PySpark {version} ({wanted})")
    return Finding("spark", "fail", f"PySpark {version}, but {wanted} is needed", f"pip install 'pyspark{wanted}'")


def judge_jar(jar: str, error: str = "") -> Finding:
    """The bridge comes with the package."""
    if not error:
        return Finding("bridge jar", "ok", jar)
    return Finding("bridge jar", "fail", error, "install mizzle from its wheel, or run `make jar` in a checkout")


def judge_bridges(reported: Sequence[str], expected: int) -> Finding:
    """The plugin is loaded, and the bridge of each executor has said so to the driver."""
    seen = f"{len(reported)} of {expected} executors reported: {', '.join(sorted(reported)) or 'none'}"
    if expected > 0 and len(reported) >= expected:
        return Finding("bridges", "ok", seen)
    if not reported:
        return Finding(
            "bridges", "fail", seen, "look for 'mizzle' in the executors' logs; is the jar readable on every host?"
        )
    return Finding("bridges", "warn", seen, "executors may still be starting; else look for 'mizzle' in their logs")


def judge_slots(slots: int) -> Finding:
    """Ranks run at once, so each needs a task slot."""
    if slots >= 2:
        return Finding("slots", "ok", f"{slots} tasks can run at once: at most {slots} ranks")
    return Finding(
        "slots", "warn" if slots else "fail", f"{slots} tasks can run at once",
        "more than one rank needs more slots: raise spark.executor.instances or spark.executor.cores, or give local[2]",
    )  # fmt: skip


def judge_arena(executors: Sequence[ExecutorFacts]) -> Finding:
    """Shared memory can be had on every executor; it is no part of the JVM's heap, and /dev/shm is not used."""
    limits = {facts.memory_limit for facts in executors if facts.memory_limit is not None}
    limit = f"container limit {format_bytes(min(limits))}" if limits else "no container limit"
    faults = [f"executor {facts.executor_id}: {facts.arena_error}" for facts in executors if facts.arena_error]
    if faults:
        return Finding(
            "arena", "fail", f"{'; '.join(faults)}; {limit}",
            "give the executors' containers more memory beside the heap: raise spark.executor.memoryOverhead",
        )  # fmt: skip
    return Finding("arena", "ok", f"{format_size(ARENA_BYTES)} allocated on {len(executors)} executors; {limit}")


def judge_all_reduce(transport: str, *, exact: bool, error: str = "", one_host: bool = True) -> Finding:
    """Two ranks have really reduced over a transport."""
    name = f"all-reduce over {transport}"
    if not error:
        told = ("ok", "two ranks, exact sum", "") if exact else ("fail", "the sum is wrong", "please report this")
        return Finding(name, told[0], told[1], told[2])  # type: ignore[arg-type]
    if transport == "shm" and not one_host:
        return Finding(
            name, "ok", "ranks lie on several hosts, which share no memory: transport auto uses blocks between them"
        )
    if transport == "shm":
        return Finding(name, "warn", error, "transport auto uses blocks instead; run executors of a host in one "
                       "container or share the process namespace (shareProcessNamespace, hostPID)")  # fmt: skip
    return Finding(name, "fail", error, "executors must reach each other's block manager: see spark.blockManager.port")


def judge_versions(driver: Mapping[str, str], executors: Sequence[ExecutorFacts]) -> list[Finding]:
    """Python, torch and mizzle are the same on driver and executors."""
    return [_judge_version(what, told, executors) for what, told in driver.items()]


def _judge_version(what: str, told: str, executors: Sequence[ExecutorFacts]) -> Finding:
    others = {
        facts.executor_id: getattr(facts, what) for facts in executors if _release(what, getattr(facts, what)) !=
        _release(what, told)
    }  # fmt: skip
    if not others:
        return Finding(f"{what} version", "ok", f"{told} on driver and executors")
    listed = ", ".join(f"{there} on executor {executor}" for executor, there in sorted(others.items()))
    # Python pickles code between equal minor versions only; torch may add in another order in another version.
    verdict: Literal["warn", "fail"] = "warn" if what == "torch" else "fail"
    remedy = "let spark.pyspark.python name an equal environment everywhere, or ship one with spark.archives"
    return Finding(f"{what} version", verdict, f"{told} on the driver, {listed}", remedy)


def _release(what: str, version: str) -> str:
    return version.rpartition(".")[0] if what == "python" else version


def judge_protection(found: Protection) -> Finding:
    """Who can reach the blocks."""
    return Finding("security", "ok" if found.is_enough else "warn", found.seen, found.remedy)


def judge_speculation(conf: Conf) -> Finding:
    """A second copy of a rank only waits until Spark kills it."""
    if conf("spark.speculation") == "true":
        return Finding(
            "speculation", "warn", "spark.speculation is true: copies of ranks take slots for nothing",
            "spark.speculation false",
        )  # fmt: skip
    return Finding("speculation", "ok", "off")


def judge_locality(conf: Conf) -> Finding:
    """Waiting for a better executor delays each group."""
    wait = conf("spark.locality.wait") or "3s"
    if wait.rstrip("ms") == "0":
        return Finding("locality wait", "ok", wait)
    return Finding(
        "locality wait", "warn", f"spark.locality.wait is {wait}: a group may wait that long for its executor",
        "spark.locality.wait 0s",
    )  # fmt: skip


def judge_dynamic_allocation(conf: Conf) -> Finding:
    """Allowed; but what Spark takes away costs time, and both copies of a state may go at once."""
    if conf("spark.dynamicAllocation.enabled") != "true":
        return Finding("dynamic allocation", "ok", "off")
    return Finding(
        "dynamic allocation", "warn",
        "on: allowed; executors that are idle between two groups may be taken away: their ranks move, but where both "
        "copies of a state go at once the run ends, or goes back to its checkpoint",
        "spark.dynamicAllocation.executorIdleTimeout well above the time between groups (default 60s), and "
        "spark.dynamicAllocation.minExecutors at least the number of ranks",
    )  # fmt: skip


def format_bytes(count: int) -> str:
    """Bytes for people, 2.0 GiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
