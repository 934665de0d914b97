"""Damaged checkpoints are passed over, whatever happened to which file. Many more of them: `tests/chaos`."""

from __future__ import annotations

from pathlib import Path

import pytest

from unit.training.damages import WAYS, check_damages


@pytest.mark.parametrize("way", WAYS)
def test_the_valid_one_before_a_damaged_one_is_chosen_and_the_damaged_file_named(
    way: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check_damages(tmp_path, 100, seed=1, caplog=caplog, way=WAYS[way])
