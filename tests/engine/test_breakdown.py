"""Runs that have broken down end at once: by bounds that the study's own curves say."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import make_study, make_trial

from llamatune_torch import Cause, Curve, LlamaTune, Outcome, Real, Study, TrialState, report, should_pause
from llamatune_torch.decisions import Start
from llamatune_torch.engine.breakdown import find_bounds
from llamatune_torch.runtime.evaluation import OnParams, run_trial

SPACE = {"x": Real(0, 1)}


def falling(finals: list[float], first: float = 2.0, direction: Any = "minimize") -> Study:
    """Finished runs whose curves fall from one first value to their finals."""
    study = make_study(SPACE, direction=direction)
    for i, final in enumerate(finals):
        curve = Curve((1, 2, 3), (first, (first + final) / 2, final), (0.1, 0.5, 1.0))
        study = study.with_trial(make_trial(i, {"x": i / 10}, final, curve=curve))
    return study


def test_nothing_is_known_before_five_runs_are_finished() -> None:
    assert find_bounds(falling([0.5, 0.6, 0.7, 0.8])) is None
    assert find_bounds(falling([0.5, 0.6, 0.7, 0.8, 0.9])) is not None
    assert find_bounds(falling([2.0] * 9)) is None  # all alike: no scale


def test_the_bound_is_far_out_and_beyond_all_that_finished_runs_have_reported() -> None:
    low, high = find_bounds(falling([0.5, 0.6, 0.7, 0.8, 0.9])) or (0, 0)
    assert low == -math.inf
    assert 2.0 + 20 < high < 2.0 + 40  # the quartiles are near .7 and 2
    slow = falling([0.5, 0.6, 0.7, 0.8, 0.9])
    starter = make_trial(5, {"x": 0.9}, 0.6, curve=Curve((1, 2), (50_000.0, 0.6), (0.1, 1.0)))
    assert find_bounds(slow.with_trial(starter)) == (-math.inf, 50_000.0)  # a perplexity may start there


@given(st.lists(st.floats(-10, 10), min_size=5, max_size=12, unique=True))
def test_directions_mirror_each_other_and_no_finished_run_is_outside(finals: list[float]) -> None:
    down, up = find_bounds(falling(finals)), find_bounds(falling([-f for f in finals], -2.0, "maximize"))
    assert (down is None) == (up is None)
    if down is not None and up is not None:
        assert up == (-down[1], math.inf)
        assert all(value <= down[1] for trial in falling(finals).trials for value in trial.curve.values)


def explode(params: dict[str, Any]) -> Any:
    for step in range(1, 11):
        yield step, math.exp(10 * step * max(0.0, params["x"] - 0.8)) * (1 + params["x"]) / step, step / 10


def obeys(params: dict[str, Any]) -> float:
    for step, value, progress in explode(params):
        report(step, value, progress)
        if should_pause():
            break
    return value


@pytest.mark.parametrize("evaluate", [explode, obeys])
def test_a_loss_that_explodes_ends_its_run_as_diverged(evaluate: Any) -> None:
    points = [{"x": x / 10} for x in range(7)]
    tuner = LlamaTune(
        SPACE, evaluate, 7, direction="minimize", n_initial=50, strategy="full", initial_points=points, progress=False
    )
    tuner.optimize()
    for x in (0.9, 0.1):
        start = Start({"x": x}, "sobol", 1.0, find_bounds(tuner.study))
        (trial,) = tuner._store.start(1, partial(chosen, start), 0, 100)
        outcome = run_trial(OnParams(evaluate, tuner.study.space), trial)
        assert isinstance(outcome, Outcome)
        ended = tuner.tell(trial, outcome)
        if x < 0.8:
            assert ended.state is TrialState.COMPLETE
        else:
            assert (ended.state, ended.cause, ended.reason) == (TrialState.FAILED, Cause.DIVERGED, "diverged")
            assert "far beyond all runs of this study (bound: " in (ended.error or "")
            assert 1 < len(ended.curve) < 10


def chosen(start: Start, *_: Any) -> list[Start]:
    return [start]


def broken(params: dict[str, Any]) -> Any:
    for step in range(1, 11):
        yield step, math.nan if step == 3 and params["x"] > 0.5 else 1 / step, step / 10


def test_nan_in_a_curve_ends_the_run_at_once() -> None:
    tuner = LlamaTune(SPACE, broken, 6, direction="minimize", strategy="full", n_initial=50, progress=False)
    tuner.optimize()
    for trial in tuner.study.trials:
        assert (trial.cause is Cause.DIVERGED) == (trial.params["x"] > 0.5)
        assert len(trial.curve) == (3 if trial.params["x"] > 0.5 else 10)
    assert {trial.state for trial in tuner.study.trials} == {TrialState.COMPLETE, TrialState.FAILED}
