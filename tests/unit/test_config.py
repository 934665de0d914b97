"""The layout of a run: what is refused, and how shards are spread over ranks."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mizzle.config import RunConfig
from mizzle.errors import ConfigError
from mizzle.scheduling.plan import spread


def test_the_defaults_leave_ranks_and_shards_to_the_cluster() -> None:
    layout = RunConfig()
    assert (layout.ranks, layout.shards, layout.group_size, layout.transport) == (None, None, "auto", "auto")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"ranks": 0}, "ranks is 0: give a whole number, at least 1"),
        ({"shards": -1}, "shards is -1: give a whole number, at least 1"),
        ({"group_size": 0}, 'group_size is 0: give a whole number, at least 1, or "auto"'),
        ({"group_size": "many"}, "group_size is 'many': give a whole number, at least 1, or \"auto\""),
        ({"max_group_s": 0}, "max_group_s is 0: give a positive number"),
        ({"ranks": 4, "shards": 3}, "3 shards cannot be spread over 4 ranks"),
        ({"ranks": (0, 4)}, "ranks is 0: give a whole number, at least 1"),
        ({"ranks": (3, 2)}, r"ranks is \(3, 2\): give \(least, most\)"),
        ({"ranks": (2,)}, r"ranks is \(2,\): give a number, \(least, most\), or None"),
        ({"ranks": (1, None)}, r"ranks is \(1, None\): give a number"),
        ({"ranks": (1, 4), "shards": 3}, "3 shards cannot be spread over 4 ranks"),
        ({"transport": "tcp"}, "transport is 'tcp': give one of auto, shm, blocks"),
        ({"security": "off"}, "security is 'off': give one of auto, required"),
        ({"overlap": "always"}, "overlap is 'always': give True, False or 'auto'"),
        ({"overlap": 1}, "overlap is 1: give True, False or 'auto'"),
        ({"trace": True}, "trace is True: give the name of a file, or None"),
        ({"timeout_s": 0.0}, "timeout_s is 0.0: give a positive number"),
    ],
)
def test_what_has_no_meaning_is_refused_by_name(how: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RunConfig(**how)


@given(data=st.data(), shards=st.integers(1, 200))
def test_every_shard_has_one_rank_and_ranks_differ_by_at_most_one(data: st.DataObject, shards: int) -> None:
    ranks = data.draw(st.integers(1, shards))
    held = spread(shards, ranks)
    assert [shard for mine in held for shard in mine] == list(range(shards))
    assert len(held) == ranks
    sizes = {len(mine) for mine in held}
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
