from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mizzle.collectives.tree import Node
from mizzle.errors import ModelError
from mizzle.training.contributions import Contributions, mark
from mizzle.training.local import check_loss, random_stream, stream_seed, survey
from mizzle.training.report import FINITE, MAX_REPORT_BYTES, IterationReport, RankReport, ShardReport

W = nn.Parameter(torch.ones(3))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (0.5, "returned float: return a scalar tensor"),
        ((W.sum(), W.sum()), "returned tuple"),
        (W * 2, r"shape \(3,\): reduce it"),
        (W.sum().detach(), "does not depend on any trainable parameter"),
        (torch.tensor(3), "returned torch.int64"),
    ],
)
def test_a_loss_that_is_no_scalar_is_refused(loss: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        check_loss(loss)
    check_loss(W.sum())


def test_streams_differ_by_seed_shard_and_iteration_and_leave_the_caller_alone() -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    draws = set()
    for key in [(7, 0, 0), (7, 1, 0), (7, 0, 1), (8, 0, 0), (7, 0, 0)]:
        with random_stream(*key):
            draws.add(float(torch.rand(())))
    assert len(draws) == 4
    assert torch.equal(torch.random.get_rng_state(), before)
    assert 0 <= stream_seed(2**40, 10_000, 10**9) < 2**63


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 7e4, -7e4])
def test_the_first_value_beyond_a_limit_is_found(bad: float) -> None:
    vector = torch.full((5000,), 65504.0)
    assert survey(vector, 65520.0)[0] == FINITE
    vector[[4321, 4900]] = bad
    assert survey(vector, 65520.0)[0] == 4321
    assert survey(vector, float("inf"))[0] == (FINITE if abs(bad) == 7e4 else 4321)
    assert survey(torch.empty(0), 1.0)[0] == FINITE


def tree_sum(node: Node, values: dict[int, torch.Tensor]) -> torch.Tensor | None:
    """The definition: absent shards are skipped, the rest is added in tree order."""
    if node.is_leaf:
        return values.get(node.lo)
    left, right = (tree_sum(child, values) for child in node.children())
    return left + right if left is not None and right is not None else right if left is None else left


@settings(deadline=None)
@given(st.integers(0, 5), st.lists(st.booleans(), min_size=1, max_size=17), st.integers(0, 999))
def test_shards_of_a_node_are_added_in_tree_order(lo: int, present: list[bool], seed: int) -> None:
    stream = torch.Generator().manual_seed(seed)
    counts = {lo + i: int(here) for i, here in enumerate(present)}
    values = {shard: torch.randn(64, generator=stream) for shard, count in counts.items() if count}
    computed: list[int] = []

    def compute(shard: int, into: torch.Tensor) -> ShardReport:
        computed.append(shard)
        into.copy_(values[shard])
        return ShardReport(shard, 1, 0.0)

    node = Node(lo, lo + len(present))
    into = torch.full((64,), 9.0)
    contributions = Contributions(compute, 64)
    for _ in range(2):  # the second time over used spare vectors
        reports = contributions.fill(node, counts, into)
        expected = tree_sum(node, values)
        assert torch.equal(into, expected if expected is not None else torch.full((64,), 9.0))
        assert [report.shard for report in reports] == sorted(values)
    assert computed == 2 * sorted(values)


def test_a_node_of_one_shard_is_computed_in_place() -> None:
    vector, seen = torch.zeros(8), []

    def compute(shard: int, into: torch.Tensor) -> ShardReport:
        seen.append(into.data_ptr())
        return ShardReport(shard, 1, 0.0)

    Contributions(compute, 8).fill(Node(3, 4), {3: 1}, vector)
    assert seen == [vector.data_ptr()]


SHARDS = st.builds(
    ShardReport, st.integers(0, 2**31), st.integers(1, 2**31), st.floats(allow_nan=False), st.integers(-1, 2**40)
)
REPORTS = st.builds(
    RankReport,
    st.lists(SHARDS, max_size=5).map(tuple),
    st.sets(st.integers(0, 300), max_size=20),
    st.dictionaries(st.integers(0, 100), st.binary(max_size=40), max_size=4),
)


@settings(deadline=None)
@given(REPORTS)
def test_reports_come_back_as_they_were(report: RankReport) -> None:
    assert RankReport.unpack(report.pack()) == report


def test_a_report_over_the_limit_names_the_cause() -> None:
    with pytest.raises(ModelError, match="keep such state in float32 buffers"):
        RankReport((), set(), {0: bytes(MAX_REPORT_BYTES)}).pack()


def test_all_reports_together_do_not_depend_on_who_sent_them() -> None:
    a, b, c = (ShardReport(i, i + 1, 0.1 * (i + 1)) for i in range(3))
    alone = IterationReport.of([RankReport((a, b, c), {1, 2}, {0: b"a"})])
    spread = IterationReport.of(
        [RankReport((b,), {2}, {0: b"b"}), RankReport((), set(), {}), RankReport((a, c), {1}, {0: b"a"})]
    )
    assert spread == alone
    assert alone.rows == 6
    assert alone.loss == (0.1 + 0.2 + 0.1 * 3) / 6
    assert alone.first_not_finite is None


def test_the_lowest_faulty_shard_is_found() -> None:
    shards = (ShardReport(0, 1, 1.0), ShardReport(1, 1, 1.0, 55), ShardReport(2, 1, float("nan")))
    report = IterationReport.of([RankReport(shards[1:], set(), {}), RankReport(shards[:1], set(), {})])
    assert report.first_not_finite == shards[1]
    assert mark([shards[0]], 9)[0].not_finite_at == 9
    assert mark([shards[0]], FINITE) == [shards[0]]
    assert mark([shards[1]], 9) == [shards[1]], "the first cause is kept"
