"""Why a run ends: which failure explains the others, and what is said beside it: who, at what, and what Spark says.

Memory that ran out is called OOM wherever it can be told from other deaths.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from mizzle.errors import CollectiveTimeout, Fenced, MizzleError, PeerLost, PeerUnreachable, TaskFailed
from mizzle.spark.ranks.outcome import Outcome

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


def raise_cause(outcomes: Sequence[Outcome]) -> None:
    """Raise the failure that explains the others, if there is any.

    Raises:
        MizzleError: mizzle's own, as the rank that saw it raised it.
        TaskFailed: anything else; the message has rank, executor and traceback.
    """
    failed = [outcome for outcome in outcomes if outcome.failure is not None]
    if not failed:
        return
    cause = root_cause(failed)
    failure = cause.failure
    assert failure is not None, cause
    error = failure.error()
    if isinstance(error, MizzleError):
        error.add_note(f"raised by rank {cause.rank} ({cause.where})")
        raise error
    hint = ""
    if isinstance(error, ModuleNotFoundError):
        hint = (
            f"; the executors cannot import {error.name!r}: send it with SparkContext.addPyFile, or call "
            "pyspark.cloudpickle.register_pickle_by_value(module) first"
        )
    raise TaskFailed(f"rank {cause.rank} ({cause.where}) failed: {failure.text}{hint}\n{failure.trace}") from error


def root_cause(failed: Sequence[Outcome]) -> Outcome:
    """Of all failures of a group the one that explains the others.

    A rank that fails takes its peers with it: they report a lost peer, or their own timeout. Of several lost peers the
    one that is named but reported nothing itself was lost first. Who cannot reach a peer knows more than that peer,
    which only waits.
    """
    reported = {outcome.rank for outcome in failed}

    def telling(outcome: Outcome) -> int:
        error = outcome.failure.error() if outcome.failure is not None else None
        if isinstance(error, Fenced):
            return 0
        if isinstance(error, PeerUnreachable):
            return 4
        if isinstance(error, PeerLost) and error.rank != outcome.rank:
            return 1 if error.rank in reported else 2
        return 3 if isinstance(error, CollectiveTimeout) else 5

    return max(sorted(failed, key=lambda outcome: outcome.rank), key=telling)
