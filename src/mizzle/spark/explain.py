"""What an error that ends a run says beside what happened: who (rank, executor, host), at what, and what Spark says.

Memory that ran out is called OOM wherever it can be told from other deaths.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from mizzle.errors import MizzleError

_HEAP = re.compile(r"(exit(ed with)?( code| status)?:? *|code *)52\b|OutOfMemoryError")
_CONTAINER = re.compile(r"OOM|exceeding (memory|physical|virtual)|beyond the .*memory|memory limits?", re.IGNORECASE)
_KILLED = re.compile(r"(exit(ed with)?( code| status)?:? *|code *)(137|143)\b|SIGKILL")


def explain(error: BaseException, title: str, places: Sequence[tuple[str, str]]) -> None:
    """Note where the rank is that an error names, and what the run was about.

    Args:
        error: of a run that ends; only mizzle's own are noted on.
        title: of what was ordered.
        places: executor and host, by rank.
    """
    if not isinstance(error, MizzleError):
        return
    rank = getattr(error, "rank", -1)
    told = getattr(error, "__notes__", [])
    if 0 <= rank < len(places) and not any(note.startswith(f"raised by rank {rank} ") for note in told):
        error.add_note("rank {} was in executor {} on {}".format(rank, *places[rank]))
    error.add_note(f"the run was at: {title}")


def end_of(executor: str, why_removed: Callable[[str], str]) -> str:
    """How an executor ended, in Spark's words, and whether memory was the cause; "" if Spark says nothing.

    Args:
        executor: Spark's name of it.
        why_removed: what Spark says of an executor's end; "" when it lives, or nothing is known.
    """
    reason = " ".join(why_removed(executor).split())
    if not reason:
        return ""
    meaning = ""
    if _HEAP.search(reason):
        meaning = ". Out of memory (OOM): its JVM's heap was full; raise spark.executor.memory"
    elif _CONTAINER.search(reason):
        meaning = (
            ". Out of memory (OOM): over the limit of its container, Python processes included; raise "
            "spark.executor.memoryOverhead, or give ranks less to hold (smaller global_batch_size, accumulate)"
        )
    elif _KILLED.search(reason):
        meaning = (
            ". It was killed: by a person or the cluster, or by the kernel or the container because it was out of "
            "memory (OOM); then raise spark.executor.memoryOverhead"
        )
    return f"Spark says of the end of executor {executor}: {reason}{meaning}"
