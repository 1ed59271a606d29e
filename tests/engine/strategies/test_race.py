"""The race over cases: paired comparisons, and what partial runs teach."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import pytest
from strategies import make_trial

from llamatune_torch import Curve, LlamaTune, Outcome, Real, SearchSpace, SettingsError, Study, Trial, TrialState
from llamatune_torch.decisions import Discard, Resume, Start
from llamatune_torch.engine.strategies.race import (
    LEAST,
    WEIGHT,
    Race,
    chance_to_win,
    mean_and_error,
    with_partial_runs,
)
from llamatune_torch.settings import Settings

SPACE = SearchSpace({"temperature": Real(0.1, 2.0)})
NUM = 40
HARDNESS = np.random.default_rng(0).normal(0, 1.0, NUM)


def curve_of(scores: Sequence[float]) -> Curve:
    places = list(range(1, len(scores) + 1))
    return Curve(places, list(map(float, scores)), [i / NUM for i in places])


def run_of(number: int, scores: Sequence[float], state: TrialState = TrialState.COMPLETE) -> Trial:
    """A trial that has seen as many cases as there are scores."""
    k = len(scores)
    curve = curve_of(scores)
    value = float(np.mean(scores)) if state is TrialState.COMPLETE else None
    params = {"temperature": 0.2 + 0.1 * number}
    return make_trial(number, params, value, state, curve=curve, reached=k / NUM, pauses=int(k < NUM), until=k / NUM)


def study_of(*trials: Trial) -> Study:
    return Study(SPACE, trials=trials)


def test_a_run_that_is_worse_in_each_case_stops_at_once() -> None:
    default = run_of(0, HARDNESS + 1)
    worse = run_of(1, HARDNESS[:8] - 1 + 0.1 * np.arange(8), TrialState.PAUSED)
    decision = Race(NUM).decide(study_of(default, worse), Settings(), 10.0)
    assert isinstance(decision, Discard)
    assert "after 8 cases" in decision.reason


def test_hard_cases_are_no_argument_against_a_run() -> None:
    default = run_of(0, HARDNESS)
    hard = np.sort(HARDNESS)  # the first cases are the hardest, for both
    default, better = run_of(0, hard), run_of(1, hard[:8] + 0.3, TrialState.PAUSED)
    assert np.mean(hard[:8]) + 0.3 < default.value
    decision = Race(NUM).decide(study_of(default, better), Settings(), 10.0)
    assert decision == Resume(1, pytest.approx(0.4), decision.reason)  # type: ignore[union-attr]
    assert chance_to_win(study_of(default, better), better, NUM) > 0.5


def test_the_chance_is_a_paired_test() -> None:
    default, other = run_of(0, HARDNESS), run_of(1, HARDNESS[:10] + np.linspace(-0.5, 0.7, 10), TrialState.PAUSED)
    d = np.linspace(-0.5, 0.7, 10)
    variance = (((d - d.mean()) ** 2).sum() + WEIGHT * d.var(ddof=1)) / (9 + WEIGHT)
    error = math.sqrt(variance / 10 * (1 - 10 / NUM))
    expected = NormalDist().cdf(d.mean() / error)
    assert chance_to_win(study_of(default, other), other, NUM) == pytest.approx(expected)


def test_a_full_run_has_no_error_and_none_has_an_infinite_one() -> None:
    assert mean_and_error([1.0, 3.0], 2, 1.0) == (2.0, 0.0)
    assert mean_and_error([], 2, 1.0) == (0.0, math.inf)


def test_partial_runs_teach_with_their_error() -> None:
    default = run_of(0, HARDNESS)
    stopped = run_of(1, HARDNESS[:10] - 0.5, TrialState.STOPPED)
    seen = with_partial_runs(study_of(default, stopped), NUM)
    trial = seen.trials[1]
    assert trial.state is TrialState.COMPLETE
    assert trial.value == pytest.approx(default.value - 0.5)
    assert trial.std is not None
    assert 0 <= trial.std < 0.5
    assert seen.trials[0] == default


def test_the_first_run_is_the_control_and_others_start_with_the_first_cases() -> None:
    decision = Race(NUM, first=4).decide(study_of(run_of(0, HARDNESS)), Settings(), 10.0)
    assert isinstance(decision, Start)
    assert decision.until == 0.1


@pytest.mark.parametrize("arguments", [{"num_cases": 0}, {"num_cases": 2.5}, {"num_cases": 4, "first": True}])
def test_numbers_that_are_none(arguments: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match="positive integer"):
        Race(**arguments)  # type: ignore[arg-type]


def test_a_search_races_and_finds_the_best_with_a_share_of_the_cases() -> None:
    """Scores are hardness, quality and luck; the best temperature is 0.7."""
    space = SearchSpace({"temperature": Real(0.1, 2.0)}, default={"temperature": 1.8})
    tuner = LlamaTune(space, max_evals=10**6, strategy=Race(NUM), seed=1, progress=False)
    luck, seen = np.random.default_rng(1), 0
    while seen < 20 * NUM:
        trial = tuner.ask()
        before, until = len(trial.curve), round(trial.until * NUM)
        quality = -((trial.params["temperature"] - 0.7) ** 2)
        scores = [*trial.curve.values, *(HARDNESS[before:until] + quality + luck.normal(0, 0.2, until - before))]
        seen += until - before
        curve = curve_of(scores)
        value = float(np.mean(scores)) if until == NUM else None
        tuner.tell(trial, Outcome(value, curve=curve, paused=until < NUM))
    study = tuner.study
    assert study.trials[0].origin == "default"
    assert len(study.trials) > 25
    assert len(study.in_state(TrialState.STOPPED)) > len(study.completed)
    assert abs(study.best_params["temperature"] - 0.7) < 0.2
    assert 0 < LEAST < 0.5
