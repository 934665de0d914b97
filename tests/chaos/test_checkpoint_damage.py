"""A thousand truncations, flips, swaps and deletions over the files of checkpoints: none is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from unit.training.damages import WAYS, check_damages


@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", WAYS)
def test_none_of_a_thousand_damaged_checkpoints_is_loaded(
    way: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check_damages(tmp_path, 1000, seed=2, caplog=caplog, way=WAYS[way])
