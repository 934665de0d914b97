"""A fault costs seconds, never the result: each fit ends with the bits of the one that nothing happened to.

One Spark application plays all scenes of a kind, on executors of their own that really die; Spark starts new ones.
What one checker says of each history is the verdict.
"""

from __future__ import annotations

from functools import partial
from itertools import groupby, product
from typing import Any

import pytest
from pyspark.sql import SparkSession

from chaos.faults import ZOMBIE_S, bits
from chaos.on_faulty_cluster import GROUP, ITERATIONS, adam
from chaos.stage import Scene, assert_ended, assert_kept, fault, play, strikes
from chaos.zombies import BLOCKS_A_ROUND, IMPOSTORS, ROUNDS
from cluster.trainings import fit
from unit.training.runs import Mlp, Training, digits

MASTER = "local-cluster[4,1,1024]"
FOUR_OR_LESS = {"ranks": (1, 4), "transport": "auto"}
RANKS = {"ranks": 3, "transport": "auto"}
BLOCKS = {"ranks": 3, "transport": "blocks"}
FEWER = {"ranks": (1, 3), "transport": "auto"}
FEWER_BLOCKS = {"ranks": (1, 3), "transport": "blocks"}
FENCED, REFUSED = "4", "7"
"""Codes of the bridge's errors, as JSON has them."""

ONE_EACH = {"ranks": None, "transport": "auto"}
NOTHING: dict[str, Scene] = {"nothing": {"layout": ONE_EACH, "executors": 4, "look": True}}
FROM_FOUR_TO_TWO_TO_FOUR: Scene = {
    "layout": FOUR_OR_LESS, "executors": 4,
    "shifts": [(4, "shrink_to", 3), (9, "shrink_to", 2), (14, "grow_to", 4)],
}  # fmt: skip
ELASTIC: dict[str, Scene] = {"from four executors to two to four": FROM_FOUR_TO_TWO_TO_FOUR}
SHORT: dict[str, Scene] = {
    "rank killed in backward": {"layout": RANKS, "limit": 3, "faults": [fault("backward", 6, "kill_rank")]},
    "rank crashed in update": {"layout": BLOCKS, "faults": [fault("update", 10, "crash_rank")]},
    "rank left while it kept": {"layout": RANKS, "faults": [fault("keep", 3, "exit_rank")]},
    "executor killed at publish": {
        "layout": FEWER_BLOCKS, "faults": [fault("publish", 12, "kill_executor")],
    },
    "executor killed with copies given": {
        "layout": RANKS, "faults": [fault("copy", 2, "kill_executor", after=True)],
    },
    "executor stopped in reduce": {
        "layout": FEWER, "faults": [fault("reduce", 8, "stop_executor")],
    },
    "executor killed before the model was fetched": {"layout": FEWER, "at_fetch": True},
    "two executors killed, one behind the other": {
        # The second one when there are copies again, of a later boundary: before, it would take both of a state.
        "layout": FEWER, "faults": [fault("reduce", 14, "kill_executor"), fault("keep", 7, "kill_executor")],
    },
}  # fmt: skip
SETTLING: dict[str, Scene] = {
    "executor stopped while ranks take their places": {
        "layout": FEWER, "faults": [fault("settle", 1, "stop_executor")],
    },
}  # fmt: skip
GIL: dict[str, Scene] = {
    "rank holds the interpreter's lock": {"layout": RANKS, "faults": [fault("forward", 40, "hold_gil")]},
}
USER: dict[str, Scene] = {
    "user code calls sys.exit": {"layout": RANKS, "faults": [fault("forward", 40, "sys_exit")]},
    "user code raises": {"layout": RANKS, "faults": [fault("backward", 6, "raise_error")]},
}
ZOMBIE: dict[str, Scene] = {
    # The ranks behind it wait until it has tried all it can.
    "an attempt lives on": {
        "layout": BLOCKS, "faults": [fault("reduce", 9, "leave_zombie")], "held_up_s": ZOMBIE_S,
    },
}  # fmt: skip
ITERATED: dict[str, Scene] = {
    "nothing, iterated": {"layout": {}, "iterate": True},
    "executor killed in a step": {"layout": {}, "iterate": True, "faults": [fault("forward", 0, "kill_executor")]},
}

PHASES: dict[str, list[dict[str, Any]]] = {
    "settling": [fault("settle", 1, "kill_executor")],
    "forward": [fault("forward", 40, "kill_executor")],
    "backward": [fault("backward", 9, "kill_executor")],
    "publish": [fault("publish", 9, "kill_executor")],
    "mid-publish": [fault("put", 41, "kill_executor")],
    "reduce": [fault("reduce", 9, "kill_executor")],
    "aggregate": [fault("add", 11, "kill_executor")],
    "update": [fault("update", 9, "kill_executor")],
    "gather": [fault("gather", 9, "kill_executor")],
    "keep": [fault("keep", 3, "kill_executor")],
    "copy given": [fault("copy", 3, "kill_executor", after=True)],
    "label": [fault("label", 6, "kill_executor")],
    "commit": [fault("keep", 3, "kill_executor", after=True)],
    "collect": [fault("backward", 9, "kill_rank"), fault("collect", 1, "kill_executor")],
}
"""Every phase of a run in which an executor may die: `chaos.faults.POINTS`."""


def phase_scenes() -> dict[str, Scene]:
    """Each phase, on two ranks, in turn with as many ranks as before and with one less."""
    scenes: dict[str, Scene] = {}
    for number, ((phase, faults), rank) in enumerate(product(PHASES.items(), (0, 1))):
        blocks = phase == "mid-publish" or number % 4 >= 2
        layout = (FEWER_BLOCKS if blocks else FEWER) if number % 2 else (BLOCKS if blocks else RANKS)
        scenes[f"executor killed in {phase}, rank {rank}"] = {
            "layout": layout, "faults": [one | {"ranks": (rank,)} for one in faults],
        }  # fmt: skip
    return scenes


EVERY_PHASE = phase_scenes()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of every scene of the default run."""
    scenes = NOTHING | ELASTIC | SHORT | ZOMBIE | USER | ITERATED
    return play(tmp_path_factory.mktemp("chaos"), scenes, 900, master=MASTER)


@pytest.fixture(scope="module")
def phases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of a fault in each phase, and of other scenes that take long."""
    scenes = {"nothing": {"layout": RANKS}} | GIL | SETTLING | EVERY_PHASE
    return play(tmp_path_factory.mktemp("phases"), scenes, 1700)


@pytest.mark.timeout(960)
@pytest.mark.parametrize("scene", NOTHING | SHORT)
def test_the_result_is_that_of_a_run_without_a_fault(found: dict[str, Any], scene: str) -> None:
    assert_kept(found[scene], found["nothing"], strikes=strikes((NOTHING | SHORT)[scene]))
    assert found[scene]["sizes"][0] == (4 if scene == "nothing" else 3)


@pytest.mark.parametrize("scene", [scene for scene in SHORT if scene.startswith("rank ")])
def test_the_executor_of_a_rank_that_ends_lives_on(found: dict[str, Any], scene: str) -> None:
    before, after = found[scene]["executors"]
    assert len(before) == 3
    assert after == before, "process ids, by executor"


@pytest.mark.parametrize("kind", ["/memfd:mizzle-", "blocks in executor", "the folder "])
def test_what_a_run_holds_is_seen_while_it_runs(found: dict[str, Any], kind: str) -> None:
    assert any(kind in one for one in found["nothing"]["held"]), "else nobody knows that it is gone afterwards"


def test_separate_executors_give_the_bits_of_embedded_spark(found: dict[str, Any], spark_local: SparkSession) -> None:
    training = Training(partial(Mlp, dropout=0.2, norm=True), digits(), adam)
    embedded = fit(spark_local, training, max_iterations=ITERATIONS, run={"group_size": GROUP})
    assert found["nothing"]["history"]["losses"] == embedded.history.losses
    for name, value in bits(embedded.model.state_dict()).items():
        assert found["nothing"]["history"]["model"][name] == value.hex(), name


@pytest.mark.parametrize("scene", [scene for scene, how in SHORT.items() if how["layout"] in (FEWER, FEWER_BLOCKS)])
def test_the_run_goes_on_with_those_that_are_left(found: dict[str, Any], scene: str) -> None:
    assert min(found[scene]["sizes"]) < 3


def test_a_run_shrinks_and_grows_with_its_executors(found: dict[str, Any]) -> None:
    outcome = found["from four executors to two to four"]
    assert_kept(outcome, found["nothing"], strikes=strikes(FROM_FOUR_TO_TWO_TO_FOUR))
    assert [size for size, _ in groupby(outcome["sizes"])] == [4, 3, 2, 4]


def test_nothing_that_an_older_attempt_pushes_is_accepted_or_stays_in_memory(found: dict[str, Any]) -> None:
    outcome = found["an attempt lives on"]
    assert_kept(outcome, found["nothing"], strikes=1)
    zombie = outcome["zombie"]
    assert zombie["old"] == {FENCED: ROUNDS * BLOCKS_A_ROUND}
    assert zombie["current"] == {REFUSED: ROUNDS * BLOCKS_A_ROUND}, "it was admitted to another generation"
    assert len(zombie["impostors"]) == IMPOSTORS
    assert all("superseded" in said and "join a group first" in said for said in zombie["impostors"])
    assert zombie["heap_bytes"] + zombie["memory_bytes"] < 64 << 20


@pytest.mark.parametrize("scene", USER)
def test_a_fault_of_the_users_code_is_not_tried_again(found: dict[str, Any], scene: str) -> None:
    assert_ended(found[scene], "TaskFailed: rank ", strikes=1)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("scene", GIL)
def test_a_rank_that_is_only_slow_is_no_fault(phases: dict[str, Any], scene: str) -> None:
    assert_kept(phases[scene], phases["nothing"], strikes=1)
    assert phases[scene]["faults"] == []


def test_an_iterated_computation_goes_on_with_every_ranks_state(found: dict[str, Any]) -> None:
    outcome, nothing = found["executor killed in a step"], found["nothing, iterated"]
    assert "error" not in nothing, nothing["trace"]
    assert "error" not in outcome, outcome["trace"]
    assert len(outcome["struck"]) == 1
    assert outcome["losses"] == nothing["losses"]
    assert outcome["model"] == nothing["model"]
    assert outcome["left"] == nothing["left"] == []


@pytest.mark.chaos
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("scene", SETTLING | EVERY_PHASE)
def test_an_executor_may_die_or_hang_in_any_phase(phases: dict[str, Any], scene: str) -> None:
    assert_kept(phases[scene], phases["nothing"], strikes=strikes((SETTLING | EVERY_PHASE)[scene]))
