"""The winner on fresh seeds: numbers by hand, and Student's quantiles by scipy."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats
from strategies import make_study, make_trial

from llamatune_torch import Cause, Constraint, Real, SearchSpace, Study, Trial, TrialState
from llamatune_torch.confirmed import searched_trials, student
from llamatune_torch.study import Goal

LINE = SearchSpace({"x": Real(0, 1)})


def confirmed_study(runs: dict[float, list[float | None]], direction: Any = "maximize") -> Study:
    """A study of these parameters, each of which was then trained again with the values given."""
    study = make_study(LINE, [({"x": x}, 10.0 - x) for x in runs], direction=direction)
    for seed in range(max(map(len, runs.values()))):
        for x, values in runs.items():
            if seed < len(values):
                again = make_trial(len(study.trials), {"x": x}, values[seed], origin="confirm")
                study = study.with_trial(replace(again, seed=seed))
    return study


def test_the_mean_the_spread_and_the_interval_by_hand() -> None:
    found = confirmed_study({0.1: [1.0, 2.0, 3.0], 0.2: [0.0, 4.0], 0.3: [9.0]}).confirmed()
    assert found is not None
    assert (found.trial.number, found.mean, found.num_seeds) == (0, 2.0, 3)
    # Squares around the candidates' own means: 1 + 0 + 1, and 4 + 4, on two and one degrees of freedom.
    assert found.std == pytest.approx(math.sqrt(10 / 3))
    half = stats.t.ppf(0.95, 3) * found.std * math.sqrt(1 + 1 / 3)
    assert (found.low, found.high) == (pytest.approx(2 - half, rel=1e-4), pytest.approx(2 + half, rel=1e-4))
    assert str(found) == "2 +- 1.8 over 3 fresh seeds"


@pytest.mark.parametrize(("direction", "winner"), [("maximize", 1), ("minimize", 0)])
def test_among_equals_the_best_mean_decides_and_the_search_does_not(direction: Any, winner: int) -> None:
    study = confirmed_study({0.1: [1.0, 2.0], 0.2: [3.0, 2.0]}, direction)
    found = study.confirmed()
    assert found is not None
    assert found.trial == study.best_trial == study.trials[winner]
    assert study.best_params == study.trials[winner].params
    assert study.best_value == found.mean
    assert f"best value ({direction}): {found} in trial {winner}\n" in study.summary()


def test_a_candidate_that_fails_or_breaks_a_limit_once_is_no_winner() -> None:
    found = confirmed_study({0.1: [5.0, None], 0.2: [3.0]}).confirmed()
    assert found is not None
    assert found.trial.number == 1
    assert math.isnan(found.std)
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert str(found) == "3 over 1 fresh seeds"
    limited = replace(
        confirmed_study({0.1: [5.0, 6.0], 0.2: [3.0]}), goal=Goal(constraints=(Constraint("gb", upper=8),))
    )
    trials = [replace(t, outcomes={"gb": 9.0 if t.value == 6.0 else 7.0}) for t in limited.trials]
    found = replace(limited, trials=tuple(trials)).confirmed()
    assert found is not None
    assert found.trial.number == 1


def test_running_and_lost_confirmations_count_for_nothing() -> None:
    study = confirmed_study({0.1: [1.0], 0.2: [2.0]})
    for state, cause in ((TrialState.RUNNING, None), (TrialState.LOST, Cause.ABANDONED)):
        more = Trial(4, {"x": 0.1}, 7, "confirm", state, cause=cause)
        assert study.with_trial(more).confirmed() == study.confirmed()
    assert make_study(LINE, [({"x": 0.1}, 1.0)]).confirmed() is None


def test_a_retry_of_a_confirmation_is_one() -> None:
    study = confirmed_study({0.1: [1.0], 0.2: [2.0]})
    lost = Trial(4, {"x": 0.1}, 7, "confirm", TrialState.LOST, cause=Cause.SILENT)
    again = make_trial(5, {"x": 0.1}, 3.0, origin="retry", retry_of=4)
    found = study.with_trial(lost).with_trial(again).confirmed()
    assert found is not None
    assert (found.trial.number, found.mean, found.num_seeds) == (0, 2.0, 2)


def test_the_search_is_what_came_before() -> None:
    study = confirmed_study({0.1: [1.0], 0.2: [2.0]})
    assert searched_trials(study.trials) == study.trials[:2]
    more = study.with_trial(make_trial(4, {"x": 0.3}, 0.0))
    assert searched_trials(more.trials) == more.trials
    assert searched_trials(()) == ()


@pytest.mark.parametrize("freedom", [1, 2, 5, 10, 11, 15, 40, 1000])
def test_students_quantiles(freedom: int) -> None:
    assert student(freedom) == pytest.approx(stats.t.ppf(0.95, freedom), rel=5e-4)


def test_the_interval_holds_nine_fresh_runs_of_ten() -> None:
    rng, inside = np.random.default_rng(0), 0
    for _ in range(1000):
        runs: dict[float, list[float | None]] = {x: rng.standard_normal(n).tolist() for x, n in ((0.1, 3), (0.2, 2))}
        found = confirmed_study(runs).confirmed()
        assert found is not None
        inside += found.low <= rng.standard_normal() <= found.high
    assert 870 <= inside <= 930
