"""Slow executors, by name: what the ranks found of each other, with the places that only the driver knows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from mizzle.training.history import StragglerRecord, TrainingHistory
from mizzle.training.stragglers import Straggler

_log = logging.getLogger(__name__)


def note_stragglers(
    run: str, history: TrainingHistory, found: Iterable[Straggler], where: Callable[[int], tuple[str, str]]
) -> None:
    """Take slow ranks into the history, and warn of each executor once.

    Args:
        run: the run's id.
        history: of the run.
        found: in the last group.
        where: executor and host of a rank.
    """
    for one in found:
        executor, host = where(one.rank)
        record = StragglerRecord(one.rank, executor, host, one.factor, one.since, one.iterations)
        if history.note_straggler(record):
            _log.warning(
                "run=%s rank=%d executor=%s host=%s iteration=%d: computes %.1f times as long per shard as the median "
                "of the ranks: look at other load, cores and throttling there; all wait for it, or lose its rows where "
                "stragglers='drop' is given",
                run[:4], one.rank, executor, host, one.since, one.factor,
            )  # fmt: skip
