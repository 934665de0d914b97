"""The canonical tree, and sums in its order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mizzle.collectives.combine import PIECE_ELEMENTS, TreeCombiner
from mizzle.collectives.tree import Node, cover, plan
from mizzle.errors import ConfigError


def leaves(num_shards: int, num_elements: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    random = np.random.default_rng(num_shards)
    wide = random.standard_normal((num_shards, num_elements)) * 10.0 ** random.integers(-6, 7, (num_shards, 1))
    return list(torch.from_numpy(wide).to(dtype))


def reference(node: Node, values: list[torch.Tensor], present: set[int]) -> torch.Tensor | None:
    """The sum of a node, by its definition."""
    if node.hi - node.lo == 1:
        return values[node.lo] if node.lo in present else None
    half = 1
    while half * 2 < node.hi - node.lo:
        half *= 2
    left = reference(Node(node.lo, node.lo + half), values, present)
    right = reference(Node(node.lo + half, node.hi), values, present)
    if left is None or right is None:
        return right if left is None else left
    return left + right


def nodes_of_tree(node: Node) -> list[Node]:
    return [node] if node.is_leaf else [node, *(n for child in node.children() for n in nodes_of_tree(child))]


@pytest.mark.parametrize(
    ("node", "children"),
    [((0, 2), ((0, 1), (1, 2))), ((0, 5), ((0, 4), (4, 5))), ((0, 8), ((0, 4), (4, 8))), ((4, 7), ((4, 6), (6, 7)))],
)
def test_a_node_splits_at_the_largest_power_of_two_below_its_width(
    node: tuple[int, int], children: tuple[tuple[int, int], ...]
) -> None:
    assert Node(*node).children() == children


@given(st.integers(1, 70).flatmap(lambda v: st.tuples(st.just(v), st.sets(st.integers(0, v - 1)))))
def test_a_cover_is_exactly_the_shards_and_of_maximal_nodes(case: tuple[int, set[int]]) -> None:
    num_shards, shards = case
    found = cover(shards, num_shards)
    assert [shard for node in found for shard in range(*node)] == sorted(shards)
    for node in nodes_of_tree(Node(0, num_shards)):
        if set(range(*node)) <= shards:
            assert any(big.lo <= node.lo and node.hi <= big.hi for big in found)


@given(
    st.integers(1, 33).flatmap(
        lambda v: st.tuples(
            st.lists(st.integers(0, 4), min_size=v, max_size=v), st.sets(st.integers(0, v - 1), min_size=v // 2)
        )
    )
)
def test_bits_do_not_depend_on_which_rank_holds_which_shard(case: tuple[list[int], set[int]]) -> None:
    rank_of_shard, present = case
    num_shards = len(rank_of_shard)
    values = leaves(num_shards, 5)
    contributions: dict[Node, torch.Tensor] = {}
    for rank in range(5):
        for node in cover([s for s in range(num_shards) if rank_of_shard[s] == rank], num_shards):
            held = {Node(s, s + 1): values[s] for s in range(*node) if s in present}
            if held:
                contributions[node] = torch.empty(5)
                TreeCombiner(num_shards).combine(held, contributions[node])
    total = torch.empty(5)
    TreeCombiner(num_shards).combine(contributions, total)
    expected = reference(Node(0, num_shards), values, present)
    assert torch.equal(total, torch.zeros(5) if expected is None else expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_pieces_change_no_bits_and_narrow_sources_are_widened_first(dtype: torch.dtype) -> None:
    accumulator = dtype if dtype.itemsize >= 4 else torch.float32
    values = [value.clamp(-1e4, 1e4).to(dtype) for value in leaves(5, 2 * PIECE_ELEMENTS + 17)]
    total = torch.empty(len(values[0]), dtype=accumulator)
    TreeCombiner(5, accumulator).combine({Node(s, s + 1): values[s] for s in range(5)}, total)
    expected = reference(Node(0, 5), [value.to(accumulator) for value in values], set(range(5)))
    assert expected is not None
    assert torch.equal(total, expected)


@pytest.mark.parametrize(("op", "expected"), [("max", [3, 9]), ("min", [-5, 2]), ("sum", [-1, 16]), ("mean", [-1, 16])])
def test_each_operation(op: str, expected: list[int]) -> None:
    values = [torch.tensor(v) for v in ([1, 2], [-5, 5], [3, 9])]
    total = torch.empty(2, dtype=torch.int64)
    TreeCombiner(3, torch.int64, op).combine({Node(s, s + 1): values[s] for s in range(3)}, total)
    assert total.tolist() == expected


def test_one_combiner_serves_changing_sources_and_none() -> None:
    combiner = TreeCombiner(4)
    values = leaves(4, 10)
    total = torch.empty(10)
    for present in ({0, 1, 2, 3}, {2}, set(), {0, 3}, {0, 1, 2, 3}):
        combiner.combine({Node(s, s + 1): values[s] for s in sorted(present)}, total)
        expected = reference(Node(0, 4), values, present)
        assert torch.equal(total, torch.zeros(10) if expected is None else expected)


@given(st.integers(1, 300))
def test_a_plan_needs_scratch_for_the_depth_of_the_tree_only(num_shards: int) -> None:
    order = plan([Node(s, s + 1) for s in range(num_shards)], num_shards)
    assert len(order.steps) == num_shards - 1
    assert order.num_scratch <= (num_shards - 1).bit_length()


@pytest.mark.parametrize("nodes", [[(0, 2), (1, 2)], [(1, 3)], [(0, 1), (0, 1)], [(4, 5)]])
def test_a_plan_refuses_what_is_no_disjoint_set_of_nodes(nodes: list[tuple[int, int]]) -> None:
    with pytest.raises(ConfigError, match="not disjoint nodes"):
        plan([Node(*node) for node in nodes], 4)


@pytest.mark.parametrize("shards", [[0, 0], [-1], [4]])
def test_a_cover_refuses_shards_that_are_not(shards: list[int]) -> None:
    with pytest.raises(ConfigError, match="distinct numbers"):
        cover(shards, 4)


def test_an_unknown_operation_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"'product'.*'sum'"):
        TreeCombiner(1, op="product")
