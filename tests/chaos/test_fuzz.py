"""A bridge among a million frames that no worker of ours would send; ten thousand are in the default run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pyspark.sql import SparkSession

from cluster.fuzz import fuzzed
from contract.stores import LocalBridge


@pytest.fixture
def bridge(local_bridge: LocalBridge) -> Iterator[LocalBridge]:
    """The bridge, within a run of its own."""
    local_bridge.begin()
    yield local_bridge
    local_bridge.end()


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_a_million_frames_that_make_no_sense_do_no_harm(spark_local: SparkSession, bridge: LocalBridge) -> None:
    fuzzed(spark_local, bridge, frames=1_000_000, seed=28)
