from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mizzle.errors import ConfigError
from mizzle.training.evaluate import Evaluation
from mizzle.training.stopping import EarlyStopping, StoppingState

FOUND = Evaluation(9, 0, 5, 0.5, {"accuracy": 0.75})


def stops_at(rule: EarlyStopping, values: list[float]) -> int | None:
    state = StoppingState(rule)
    return next((at for at, value in enumerate(values) if state.observe(value)), None)


@pytest.mark.parametrize(
    ("rule", "values", "expected"),
    [
        (EarlyStopping(patience=1), [3.0, 2.0, 2.0], 2),
        (EarlyStopping(patience=2), [3.0, 4.0, 2.0, 5.0, 1.9, 1.9, 1.9], 6),
        (EarlyStopping(), [1.0, 1.0, 1.0, 1.0], 3),
        (EarlyStopping(patience=2, min_delta=0.5), [3.0, 2.6, 2.4, 2.0, 1.9], 4),
        (EarlyStopping(patience=2, mode="max"), [0.1, 0.2, 0.3, 0.3, 0.2], 4),
        (EarlyStopping(patience=2, mode="max", min_delta=0.25), [0.25, 0.5, 1.0, 1.25], None),
        (EarlyStopping(patience=2), [math.nan, math.inf], 1),
        (EarlyStopping(patience=2), [math.nan, 5.0, -math.inf, 4.0, math.nan, math.nan], 5),
        (EarlyStopping(patience=2, mode="max"), [1.0, math.inf, -math.inf], 2),
    ],
)
def test_it_stops_after_patience_evaluations_that_were_not_better(
    rule: EarlyStopping, values: list[float], expected: int | None
) -> None:
    assert stops_at(rule, values) == expected


@settings(deadline=None)
@given(st.lists(st.floats()), st.integers(1, 4), st.floats(0, 10), st.sampled_from(["min", "max"]))
def test_a_state_goes_on_from_json_as_if_it_had_never_stopped(
    values: list[float], patience: int, min_delta: float, mode: Any
) -> None:
    rule = EarlyStopping(patience, min_delta, mode=mode)
    through, broken = StoppingState(rule), StoppingState(rule)
    for value in values:
        broken = StoppingState.of(rule, json.loads(json.dumps(broken.as_dict(), allow_nan=False)))
        assert broken.observe(value) is through.observe(value)
        assert (broken.best, broken.waited) == (through.best, through.waited)


@settings(deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_min_and_max_mirror_each_other(values: list[float]) -> None:
    assert stops_at(EarlyStopping(2), values) == stops_at(EarlyStopping(2, mode="max"), [-value for value in values])


def test_the_monitored_value_is_the_loss_or_a_metric() -> None:
    assert EarlyStopping().value(FOUND) == 0.5
    assert EarlyStopping(monitor="accuracy", mode="max").value(FOUND) == 0.75
    EarlyStopping(monitor="accuracy").check_monitor({"accuracy": None})
    with pytest.raises(ConfigError, match=r"monitors 'f1', but evaluation gives 'loss', 'accuracy'"):
        EarlyStopping(monitor="f1").value(FOUND)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"patience": 0}, "patience is 0"), ({"patience": 1.5}, "patience is 1.5"), ({"patience": True}, "patience"),
        ({"min_delta": -0.1}, "min_delta is -0.1"), ({"min_delta": math.nan}, "min_delta is nan"),
        ({"min_delta": "1"}, "min_delta is '1'"), ({"monitor": ""}, "monitor is ''"), ({"mode": "least"}, "'least'"),
    ],
)  # fmt: skip
def test_a_rule_without_meaning_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EarlyStopping(**given)
