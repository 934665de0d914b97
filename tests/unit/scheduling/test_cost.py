"""The cost model: fitted launches, the parts of an iteration, the group size they ask for, memory."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mizzle.errors import ConfigError
from mizzle.scheduling.cost import CostModel, LaunchCost, fit_launch

TASKS = (2, 4, 8, 16, 32, 64, 128, 256)
LAUNCHES = st.builds(
    lambda a_s, b_s: LaunchCost(a_s=a_s, b_s=b_s), st.floats(1e-3, 1.0), st.floats(1e-5, 0.1)
)  # fmt: skip
# of jobs whose tasks matter: 2048 tasks cannot be foretold from points in which b_s drowns in the noise of a_s
VISIBLE = st.builds(
    lambda a_s, tasks: LaunchCost(a_s=a_s, b_s=a_s / tasks), st.floats(1e-3, 1.0), st.floats(1.0, 30.0)
)  # fmt: skip
MODELS = st.builds(
    CostModel,
    num_parameters=st.integers(1, 10**9),
    compute_s=st.floats(0.001, 10.0),
    bytes_per_s=st.floats(1e6, 1e11),
    launch=LAUNCHES,
    latency_s=st.floats(0, 0.01),
    sigma_s=st.floats(0, 1.0),
)


def jobs(launch: LaunchCost, noise: float = 0.0, seed: int = 0) -> list[tuple[int, float]]:
    draw = random.Random(seed)  # noqa: S311 - noise, no secret
    return [(tasks, launch.seconds(tasks) * (1 + noise * draw.uniform(-1, 1))) for tasks in TASKS]


@settings(deadline=None)
@given(launch=LAUNCHES)
def test_exact_points_give_back_the_costs_they_were_made_from(launch: LaunchCost) -> None:
    fitted = fit_launch(jobs(launch))
    assert math.isclose(fitted.a_s, launch.a_s, rel_tol=1e-6, abs_tol=1e-9)
    assert math.isclose(fitted.b_s, launch.b_s, rel_tol=1e-6, abs_tol=1e-9)
    assert fitted.residual < 1e-6


@settings(deadline=None)
@given(launch=VISIBLE, seed=st.integers(0, 10**6))
def test_points_with_noise_of_5_percent_foretell_jobs_eight_times_as_large_to_20(launch: LaunchCost, seed: int) -> None:
    fitted = fit_launch(jobs(launch, 0.05, seed))
    assert abs(fitted.relative_errors([(2048, launch.seconds(2048))])[0]) < 0.20


@settings(deadline=None)
@given(launch=VISIBLE, seed=st.integers(0, 10**6), which=st.integers(0, 7), factor=st.sampled_from([0.2, 5.0, 100.0]))
def test_one_disturbed_point_pulls_little(launch: LaunchCost, seed: int, which: int, factor: float) -> None:
    points = jobs(launch, 0.02, seed)
    points[which] = (points[which][0], points[which][1] * factor)
    fitted = fit_launch(points)
    kept = [point for number, point in enumerate(points) if number != which]
    assert max(map(abs, fitted.relative_errors(kept))) < 0.15


def test_no_cost_is_fitted_below_zero() -> None:
    assert fit_launch([(2, 1.0), (4, 2.2)]).a_s == 0.0
    falling = fit_launch([(2, 2.0), (4, 1.0)])
    assert falling.b_s == 0.0
    assert 1.0 <= falling.a_s <= 2.0


def test_the_published_bars_of_drizzle_follow_the_model() -> None:
    # Single-stage micro-benchmark, ms per micro-batch without groups and with K = 100, by tasks, as read from the
    # plot: docs/img/drizzle-single-stage.png in https://github.com/amplab/drizzle-spark, commit 28bbbc1
    alone = [(16, 15.3), (32, 21.5), (64, 32.4), (128, 55), (256, 99), (512, 193)]
    grouped = {16: 2.2, 32: 2.3, 64: 2.5, 128: 3.0, 256: 3.6, 512: 4.2}
    launch = fit_launch([(tasks, ms / 1e3) for tasks, ms in alone])
    assert launch.residual < 0.02
    for tasks, ms in grouped.items():
        worker_ms = ms - 1e3 * launch.seconds(tasks) / 100
        assert 1.3 < worker_ms < 2.7, "what stays is work of the executors, nearly the same for any number of tasks"


@pytest.mark.parametrize("points", [[], [(4, 1.0)], [(4, 1.0), (4, 1.1)]])
def test_a_fit_needs_two_numbers_of_tasks(points: list[tuple[int, float]]) -> None:
    with pytest.raises(ConfigError, match="two or more numbers of tasks"):
        fit_launch(points)


@pytest.mark.parametrize("point", [(0, 1.0), (8, 0.0), (8, math.nan), (8, math.inf)])
def test_a_point_that_nobody_measured_is_refused(point: tuple[int, float]) -> None:
    with pytest.raises(ConfigError, match=f"a job of {point[0]} tasks that took {point[1]}"):
        fit_launch([(2, 1.0), point])


def test_errors_are_relative_to_what_was_measured() -> None:
    launch = LaunchCost(a_s=1.0, b_s=1.0)
    assert launch.relative_errors([(1, 2.0), (3, 2.0), (1, 4.0)]) == [0.0, 1.0, -0.5]


def test_the_parts_of_an_iteration_by_hand() -> None:
    model = CostModel(
        num_parameters=25_000_000, compute_s=0.5, bytes_per_s=1e9, launch=LaunchCost(a_s=0.02, b_s=0.01),
        latency_s=0.001, sigma_s=0.01,
    )  # fmt: skip
    cost = model.iteration(4, 10)
    assert cost.compute_s == 0.5
    assert cost.scheduling_s == pytest.approx(0.006)
    assert cost.exchange_s == pytest.approx(2 * 3 * 0.001 + 2 * 0.75 * 0.1)
    assert cost.stragglers_s == pytest.approx(0.01 * math.sqrt(2 * math.log(4)))
    assert cost.total_s == pytest.approx(0.5 + 0.006 + 0.156 + 0.016651, abs=1e-6)
    assert cost.scheduling_share == pytest.approx(0.006 / cost.total_s)
    assert model.iteration(4, 1, jobs=2).scheduling_s == pytest.approx(0.12)


@settings(deadline=None)
@given(model=MODELS)
def test_one_rank_exchanges_nothing_and_waits_for_nobody(model: CostModel) -> None:
    cost = model.iteration(1, 1)
    assert (cost.exchange_s, cost.stragglers_s) == (0.0, 0.0)
    assert cost.total_s == pytest.approx(model.compute_s + model.launch.seconds(1))


@settings(deadline=None)
@given(model=MODELS, ranks=st.integers(1, 5000), size=st.integers(1, 1000))
def test_groups_change_scheduling_only_and_more_ranks_never_cost_less(model: CostModel, ranks: int, size: int) -> None:
    one, grouped, more = model.iteration(ranks, 1), model.iteration(ranks, size), model.iteration(ranks + 1, size)
    assert grouped.scheduling_s == pytest.approx(one.scheduling_s / size)
    assert grouped.total_s - grouped.scheduling_s == pytest.approx(one.total_s - one.scheduling_s)
    assert more.total_s >= grouped.total_s


@settings(deadline=None)
@given(model=MODELS, ranks=st.integers(1, 5000), share=st.floats(0.001, 0.5))
def test_the_group_size_for_a_share_is_the_smallest_that_keeps_it(model: CostModel, ranks: int, share: float) -> None:
    size = model.group_size_for(ranks, share)
    assert model.iteration(ranks, size).scheduling_share <= share * (1 + 1e-9)
    assert size == 1 or model.iteration(ranks, size - 1).scheduling_share > share


def test_where_nothing_else_takes_time_no_group_size_is_enough() -> None:
    model = CostModel(num_parameters=1, compute_s=0.0, bytes_per_s=1e9)
    with pytest.raises(ConfigError, match="no group size"):
        model.group_size_for(1)
    free = CostModel(num_parameters=1, compute_s=0.0, bytes_per_s=1e9, launch=LaunchCost(a_s=0, b_s=0))
    assert free.group_size_for(1) == 1


def test_memory_by_hand() -> None:
    model = CostModel(num_parameters=1_000_000, compute_s=0.1, bytes_per_s=1e9)
    memory = model.memory(4, hosts=2, optimizer_state=2)
    assert (memory.weights, memory.gradients, memory.reduced) == (2_000_000, 4_000_000, 1_000_000)
    assert (memory.window, memory.master, memory.optimizer) == (8 * 83_333, 0, 2_000_000), "ranges of a twelfth"
    assert memory.sum == 9_666_664
    assert memory.recovery == 4 * 4_194_304, "3 MB each, in regions of a power of two, own ones and copies"
    assert model.memory(1, optimizer_state=2).recovery == 2 * 16_777_216, "nobody keeps copies of one alone"
    narrow = model.memory(4, hosts=2, optimizer_state=2, narrow_weights=True)
    assert (narrow.window, narrow.master) == (1_166_664, 1_000_000)
    assert model.memory(4, hosts=1).window == 0, "nothing arrives from anywhere"
    assert model.memory(1).sum == 20_000_000


def test_a_window_has_room_for_two_ranges_of_every_other_host_and_at_most_eight() -> None:
    def window(num_parameters: int, hosts: int) -> int:
        return CostModel(num_parameters=num_parameters, compute_s=0.1, bytes_per_s=1e9).memory(hosts).window

    assert window(1_000_000, 16) == 2 * 15 * 65536, "16 K elements are the shortest range"
    assert window(1_000_000, 8) == 2 * 500_000, "2/N of the vector, between two and eight"
    assert window(10**9, 16) == 8 * 15 * 2**20, "a megabyte is the longest range"
    assert window(2**31, 2) == 8 * 2**23, "unless there are more than 512 of them"


@settings(deadline=None)
@given(model=MODELS, hosts=st.integers(1, 5), ranks=st.integers(1, 100), state=st.integers(0, 4))
def test_few_hosts_keep_weights_gradients_and_three_parts(model: CostModel, hosts: int, ranks: int, state: int) -> None:
    memory = model.memory(hosts * ranks, hosts=hosts, optimizer_state=state)
    vector, part = 4 * model.num_parameters, 4 * -(-model.num_parameters // (hosts * ranks))
    least_window = 2 * (hosts - 1) * min(part, 65536)
    assert memory.sum <= vector + vector + max(3 * part, part + least_window) + state * part
    assert memory.recovery >= 2 * (1 + state) * part


@pytest.mark.parametrize(
    ("change", "complaint"),
    [({"num_parameters": 0}, "num_parameters is 0"), ({"compute_s": -1.0}, "compute_s is -1"),
     ({"bytes_per_s": 0.0}, "bytes_per_s is 0"), ({"sigma_s": math.nan}, "sigma_s is nan"),
     ({"latency_s": -0.1}, "latency_s is -0.1")],
)  # fmt: skip
def test_a_model_without_a_meaning_is_refused(change: dict[str, float], complaint: str) -> None:
    settings = {"num_parameters": 1, "compute_s": 0.1, "bytes_per_s": 1e9} | change
    with pytest.raises(ConfigError, match=complaint):
        CostModel(**settings)  # type: ignore[arg-type]


def test_arguments_without_a_meaning_are_refused() -> None:
    model = CostModel(num_parameters=1, compute_s=0.1, bytes_per_s=1e9)
    with pytest.raises(ConfigError, match="ranks is 0"):
        model.iteration(0, 1)
    with pytest.raises(ConfigError, match="group_size is 0"):
        model.iteration(1, 0)
    with pytest.raises(ConfigError, match="share is 0"):
        model.group_size_for(1, 0.0)
    with pytest.raises(ConfigError, match="0 ranks"):
        model.memory(0)
    with pytest.raises(ConfigError, match="4 ranks do not spread evenly over 3 hosts"):
        model.memory(4, hosts=3)
    with pytest.raises(ConfigError, match="b_s of a launch is -1"):
        LaunchCost(a_s=0, b_s=-1)
