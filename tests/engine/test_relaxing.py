"""The price of a limit, where it is known: the gain of a straight slope is the way that the bound moves."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest

from llamatune_torch import (
    Constraint,
    LlamaTune,
    NoCompletedTrialError,
    NoFeasibleTrialError,
    Outcome,
    SearchSpace,
    Study,
    Trial,
    TrialState,
    relaxations,
)
from llamatune_torch.engine.relaxing import relax
from llamatune_torch.study import Goal

SPACE = SearchSpace({"x": (0.0, 1.0), "y": (0.0, 1.0)})


@cache
def slope(direction: str, scale: float) -> LlamaTune:
    """A value that grows with x, of which the limit allows the first half; y does not matter to it."""
    sign = scale if direction == "maximize" else -scale

    def evaluate(params: dict[str, Any]) -> Outcome:
        value = sign * (params["x"] - (params["y"] - 0.5) ** 2)
        return Outcome(value, outcomes={"a": 10 * params["x"], "b": params["y"]})

    limits = {"a": "<= 5", "b": "<= 0.9"}
    tuner = LlamaTune(SPACE, evaluate, 14, direction=direction, constraints=limits, progress=False)  # type: ignore[arg-type]
    tuner.optimize()
    return tuner


@pytest.mark.parametrize(("direction", "scale"), [("maximize", 1.0), ("minimize", 1000.0)])
def test_the_gain_of_a_slope_is_the_way_that_the_bound_moves(direction: str, scale: float) -> None:
    tuner = slope(direction, scale)
    (found,) = tuner.relaxations()
    assert (str(found.limit), str(found.relaxed)) == ("a <= 5", "a <= 5.5")  # b does not bind
    assert found.low <= found.gain <= found.high
    assert found.gain == pytest.approx(0.05 * scale, abs=0.025 * scale)
    assert str(found).startswith("a <= 5.5 instead of a <= 5: better by ")
    assert relaxations(tuner.study, tuner.settings) == [found]  # a pure function of the record


def test_it_is_said_at_the_end_of_a_search(caplog: pytest.LogCaptureFixture) -> None:
    tuner = slope("maximize", 1.0)
    with caplog.at_level("INFO"):
        tuner.optimize()  # nothing is left to do
    assert str(tuner.relaxations()[0]) in caplog.messages


def test_nothing_binds_nothing_to_gain() -> None:
    trials = tuple(
        Trial(i, {"x": i / 5, "y": 0.5}, 0, "sobol", TrialState.COMPLETE, value=float(i), outcomes={"a": 0.1 * i})
        for i in range(5)
    )
    assert relaxations(Study(SPACE, Goal(constraints=(Constraint("a", upper=8),)), trials=trials)) == []
    assert relaxations(Study(SPACE, trials=trials)) == []
    with pytest.raises(NoFeasibleTrialError, match="none of 5"):
        relaxations(Study(SPACE, Goal(constraints=(Constraint("a", upper=-8),)), trials=trials))
    with pytest.raises(NoCompletedTrialError):
        relaxations(Study(SPACE))


@pytest.mark.parametrize(
    ("limit", "relaxed"),
    [
        (Constraint("a", upper=8), Constraint("a", upper=8.8)),
        (Constraint("a", lower=-10), Constraint("a", lower=-11)),
        (Constraint("a", 1, 2), Constraint("a", 0.9, 2.2)),
        (Constraint("a", upper=0), Constraint("a", upper=0.5)),  # a tenth of the range of what was measured
    ],
)
def test_a_tenth_looser(limit: Constraint, relaxed: Constraint) -> None:
    found = relax(limit, [-3.0, math.nan, 2.0])
    assert (found.lower, found.upper) == (pytest.approx(relaxed.lower), pytest.approx(relaxed.upper))
