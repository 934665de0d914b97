from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mizzle.errors import ConfigError
from mizzle.training.order import EpochOrder

ORDERS = st.builds(
    EpochOrder,
    num_rows_total=st.integers(1, 200),
    num_shards=st.integers(1, 12),
    global_batch_size=st.integers(1, 250),
    seed=st.integers(0, 2**40),
)


@settings(deadline=None)
@given(ORDERS, st.integers(0, 3))
def test_every_row_comes_once_per_epoch(order: EpochOrder, epoch: int) -> None:
    for shard in range(order.num_shards):
        seen = [order.rows(epoch, t, shard) for t in range(order.iterations_per_epoch)]
        assert sorted(np.concatenate(seen)) == list(range(order.shard_rows(shard)))
    assert sum(order.shard_rows(shard) for shard in range(order.num_shards)) == order.num_rows_total


@settings(deadline=None)
@given(ORDERS)
def test_every_iteration_but_the_last_has_exactly_the_batch_size(order: EpochOrder) -> None:
    totals = [
        sum(order.count(t, shard) for shard in range(order.num_shards)) for t in range(order.iterations_per_epoch)
    ]
    assert totals == [order.total(t) for t in range(order.iterations_per_epoch)]
    assert set(totals[:-1]) <= {order.global_batch_size}
    assert 1 <= totals[-1] <= order.global_batch_size


@settings(deadline=None)
@given(ORDERS)
def test_shards_share_an_iteration_evenly(order: EpochOrder) -> None:
    for t in range(order.iterations_per_epoch):
        counts = [order.count(t, shard) for shard in range(order.num_shards)]
        assert max(counts) - min(counts) <= 1


def test_order_is_a_function_of_seed_epoch_and_shard_only() -> None:
    def whole(order: EpochOrder, epoch: int, shard: int) -> list[int]:
        return [int(row) for t in range(order.iterations_per_epoch) for row in order.rows(epoch, t, shard)]

    base = whole(EpochOrder(400, 4, 10, 7), 1, 2)
    assert whole(EpochOrder(400, 4, 64, 7), 1, 2) == base, "the batch size changed the order"
    order = EpochOrder(400, 4, 10, 7)
    order.rows(5, 0, 2)
    assert whole(order, 1, 2) == base, "what was asked before changed the order"
    others = [whole(EpochOrder(400, 4, 10, 8), 1, 2), whole(order, 2, 2), whole(order, 1, 3)]
    assert base not in others


def test_order_is_the_same_on_every_machine_and_version() -> None:
    assert EpochOrder(8, 1, 8, 7).rows(0, 0, 0).tolist() == GOLDEN


GOLDEN = [1, 0, 4, 2, 3, 5, 7, 6]


def test_rows_handed_out_may_be_written_to() -> None:
    order = EpochOrder(8, 1, 8, 7)
    order.rows(0, 0, 0)[:] = -1
    assert order.rows(0, 0, 0).tolist() == GOLDEN


@pytest.mark.parametrize("field", ["num_rows_total", "num_shards", "global_batch_size"])
def test_what_has_no_meaning_is_refused(field: str) -> None:
    values = {"num_rows_total": 1, "num_shards": 1, "global_batch_size": 1, "seed": 0, field: 0}
    with pytest.raises(ConfigError, match=field):
        EpochOrder(**values)


def test_an_iteration_beyond_the_epoch_is_refused() -> None:
    with pytest.raises(ConfigError, match="iteration 2"):
        EpochOrder(8, 2, 4, 0).count(2, 0)
