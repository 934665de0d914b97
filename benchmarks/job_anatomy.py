"""Where the time of a Spark job goes, from Spark's event log; and the driver's CPU by thread, from the kernel."""

from __future__ import annotations

import json
import os
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyspark import SparkContext

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_MS = 1e3
_KERNEL_NAME = 15
"""Characters that Linux keeps of a thread's name."""


@dataclass(slots=True)
class Job:
    """One job as the event log has it; moments are milliseconds since 1970.

    Attributes:
        submitted: when the DAG scheduler took it.
        description: as in Spark's UI, "" without one.
        ended: when it was declared done.
        tasks: of each task its info and its metrics.
    """

    submitted: int
    description: str
    ended: int = 0
    tasks: list[tuple[Mapping[str, Any], Mapping[str, Any]]] = field(default_factory=list)


def read_jobs(lines: Iterable[str]) -> list[Job]:
    """The jobs that have ended, in order of submission, with their tasks."""
    jobs: dict[int, Job] = {}
    job_of_stage: dict[int, int] = {}
    for line in lines:
        event = json.loads(line)
        match event["Event"]:
            case "SparkListenerJobStart":
                description = event.get("Properties", {}).get("spark.job.description", "")
                jobs[event["Job ID"]] = Job(event["Submission Time"], description)
                job_of_stage |= dict.fromkeys(event["Stage IDs"], event["Job ID"])
            case "SparkListenerTaskEnd":
                job = jobs[job_of_stage[event["Stage ID"]]]
                job.tasks.append((event["Task Info"], event.get("Task Metrics") or {}))
            case "SparkListenerJobEnd":
                jobs[event["Job ID"]].ended = event["Completion Time"]
    return sorted((job for job in jobs.values() if job.ended), key=lambda job: job.submitted)


def phases(jobs: Sequence[Job], walls_s: Sequence[float]) -> dict[str, float]:
    """Milliseconds of a job from the call to its return, phase after phase; means, so that they add up to "wall".

    The log has whole milliseconds; over many jobs the rounding cancels out.

    Args:
        jobs: those that were timed.
        walls_s: seconds of each, call to return.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for job, wall_s in zip(jobs, walls_s, strict=True):
        launched = [info["Launch Time"] for info, _ in job.tasks]
        finished = max(info["Finish Time"] for info, _ in job.tasks)
        found["wall"].append(wall_s * _MS)
        found["around the job: Python, py4j"].append(wall_s * _MS - (job.ended - job.submitted))
        found["submit to first launch"].append(min(launched) - job.submitted)
        found["first to last launch"].append(max(launched) - min(launched))
        found["last launch to last task's end"].append(finished - max(launched))
        found["last task's end to job's end"].append(job.ended - finished)
    return {name: statistics.fmean(values) for name, values in found.items()}


def of_a_task(jobs: Sequence[Job]) -> dict[str, float]:
    """Milliseconds of a task from launch to end; means over all tasks, which add up to "launch to end"."""
    found: dict[str, list[float]] = defaultdict(list)
    for info, metrics in (task for job in jobs for task in job.tasks):
        whole = info["Finish Time"] - info["Launch Time"]
        fetching = info["Finish Time"] - info["Getting Result Time"] if info["Getting Result Time"] else 0
        parts = {
            "deserialize": metrics["Executor Deserialize Time"],
            "run": metrics["Executor Run Time"],
            "serialize result": metrics["Result Serialization Time"],
            "fetch result": fetching,
        }
        found["launch to end"].append(whole)
        for name, value in parts.items():
            found[name].append(value)
        found["on the way, queued at driver and executor"].append(whole - sum(parts.values()))
        found["(executor CPU of it)"].append(
            (metrics["Executor CPU Time"] + metrics["Executor Deserialize CPU Time"]) / 1e6
        )
        found["(bytes of the result)"].append(metrics["Result Size"])
    return {name: statistics.fmean(values) for name, values in found.items()}


class ThreadTap:
    """CPU seconds of the driver's threads between two looks; stands where a series would count messages.

    From the kernel's account of each thread, so that the JVM's own (compilers, garbage collectors) are seen too.
    """

    def __init__(self, context: SparkContext) -> None:
        """For a running driver; the calling process is its Python side."""
        jvm: Any = context._jvm  # noqa: SLF001 - py4j's view of the driver
        self._jvm = jvm
        self._pid = int(jvm.java.lang.ProcessHandle.current().pid())
        self._looks: list[tuple[dict[tuple[int, str], int], float, float]] = []

    def since_last(self) -> None:
        """Look."""
        self._looks.append((self._threads(), _cpu_s(self._pid), _cpu_s(os.getpid())))

    def _threads(self) -> dict[tuple[int, str], int]:
        """Nanoseconds on a CPU of every thread, by its id and the 15 characters that the kernel has of its name."""
        found = {}
        for task in Path(f"/proc/{self._pid}/task").iterdir():
            try:
                name = (task / "comm").read_text().strip()
                found[int(task.name), name] = int((task / "schedstat").read_text().split()[0])
            except (FileNotFoundError, ProcessLookupError):
                continue
        return found

    def busiest(self, jobs: int, show: int = 12) -> dict[str, float]:
        """CPU milliseconds a job, by thread name, over the last two looks; the busiest first."""
        (before, jvm_before, python_before), (after, jvm_after, python_after) = self._looks[-2:]
        full_names = self._full_names()
        grown: dict[str, float] = defaultdict(float)
        for (thread, name), spent in after.items():
            grown[full_names(name)] += (spent - before.get((thread, name), 0)) / 1e6 / jobs
        ranked = dict(sorted(grown.items(), key=lambda item: -item[1])[:show])
        jvm = (jvm_after - jvm_before) * _MS / jobs
        return {
            "(whole JVM)": jvm,
            "(Python)": (python_after - python_before) * _MS / jobs,
            "(threads that ended)": jvm - sum(grown.values()),
            **ranked,
        }

    def _full_names(self) -> Callable[[str], str]:
        """Java's names of the threads, by what the kernel has of them; numbers become ``#``."""
        known: dict[str, set[str]] = defaultdict(set)
        for thread in self._jvm.java.lang.Thread.getAllStackTraces().keySet():
            name = str(thread.getName())
            known[name[:_KERNEL_NAME]].add(_without_numbers(name))

        def full(short: str) -> str:
            names = known.get(short, set())
            return next(iter(names)) if len(names) == 1 else _without_numbers(short) + ("..." if names else "")

        return full


def _without_numbers(name: str) -> str:
    """Threads of one pool under one name."""
    return re.sub(r"\d+", "#", name)


def _cpu_s(pid: int) -> float:
    """Seconds on a CPU of a process, threads that have ended included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S
