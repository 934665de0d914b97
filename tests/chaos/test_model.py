"""Generations, boundaries and copies under schedules that nobody thought of; see `chaos.model`."""

from __future__ import annotations

import logging
import multiprocessing
from collections import Counter
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chaos.model import World

SCHEDULES, CHUNK = 100_000, 1_000


@pytest.fixture(autouse=True)
def _silence(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "mizzle")  # every fault is told, thousands of times


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32))
def test_no_schedule_forks_a_history_loses_a_boundary_or_reads_an_older_generation(seed: int) -> None:
    World(Random(seed)).play()  # noqa: S311 - to be repeatable, not secret


@pytest.mark.chaos
@pytest.mark.timeout(600)
@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False))
def test_nor_does_one_whose_every_turn_hypothesis_draws(random: Random) -> None:
    World(random).play()


def played(first: int) -> Counter[str]:
    """What was done in some schedules, and how they ended."""
    logging.getLogger("mizzle").setLevel(logging.CRITICAL)
    found: Counter[str] = Counter()
    for seed in range(first, first + CHUNK):
        world = World(Random(seed))  # noqa: S311 - to be repeatable, not secret
        try:
            world.play()
        except AssertionError as error:
            found[f"schedule {seed}: {error}"] += 1
        found.update(world.faults)
        found["lost" if world.is_lost else "done"] += 1
    return found


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_nor_does_any_of_a_hundred_thousand() -> None:
    with multiprocessing.get_context("forkserver").Pool(2) as pool:
        found = sum(pool.imap_unordered(played, range(0, SCHEDULES, CHUNK)), Counter[str]())
    violations = [one for one in found if one.startswith("schedule")]
    assert not violations, violations[:5]
    assert found["done"] > 0.8 * SCHEDULES, "most faults are survived"
    assert found["lost"] > 0, "and some take both copies"
    for fault in ("_kill_process", "_kill_executor", "_pause", "_give_up", "_flip"):
        assert found[fault] > SCHEDULES / 2
