"""A search that goes round in circles looks elsewhere; one that gets on, or looks around anyway, is left alone."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from strategies import make_study, make_trial
from test_suggest import play, quick

from llamatune_torch import Categorical, Integer, Real, SearchSpace, Settings, Study, Trial, TrialState
from llamatune_torch.engine.crash import CrashModel
from llamatune_torch.engine.cube import Cube
from llamatune_torch.engine.data import TrainingData, training_data
from llamatune_torch.engine.features import Features
from llamatune_torch.engine.kernel import ProductKernel
from llamatune_torch.engine.stagnation import NEAR, exploration, is_stuck, prior_correlation
from llamatune_torch.engine.suggest import suggest
from llamatune_torch.engine.surrogate import Surrogate
from llamatune_torch.study import Goal

SQUARE = SearchSpace({"x": Real(0, 1), "y": Real(0, 1)})
Row = tuple[float, float, float | None]

SPREAD: list[Row] = [(0.2, 0.2, 0.50), (0.8, 0.3, 0.51), (0.3, 0.8, 0.52), (0.8, 0.9, 0.49)]
# The third of SPREAD stays the best.
AROUND: list[Row] = [
    (0.28, 0.83, 0.49),
    (0.33, 0.75, 0.505),
    (0.3, 0.7, 0.48),
    (0.25, 0.8, 0.515),
    (0.35, 0.85, 0.50),
]


def study_of(chosen: list[Row], running: list[dict[str, Any]] | None = None) -> Study:
    """A Sobol trial at each place of ``SPREAD``, then those that a surrogate has chosen."""
    study = make_study(SQUARE)
    for i, (x, y, value) in enumerate(SPREAD + chosen):
        origin: Any = "sobol" if i < len(SPREAD) else "surrogate"
        study = study.with_trial(make_trial(i, {"x": x, "y": y}, value, origin=origin))
    for params in running or []:
        trial = make_trial(len(study.trials), params, state=TrialState.RUNNING, origin="surrogate")
        study = study.with_trial(trial)
    return study


def believing(data: TrainingData, length_scale: float, noise: float) -> Surrogate:
    """A surrogate with that length scale in ``x`` and standard deviation of the noise."""
    gp = Surrogate(ProductKernel(data.features), data.X, data.Y)
    gp.set_theta(torch.tensor([math.log(length_scale), 0.0, 2 * math.log(noise), 0.0], dtype=torch.float64))
    return gp


def stuck(study: Study, length_scale: float = 0.03, noise: float = 0.1) -> bool:
    data = training_data(study, torch.device("cpu"), [])
    return is_stuck(study, data, believing(data, length_scale, noise))


# The beginning of a real search, for a small network on two spirals: all on a plateau, then around the best of it.
SPIRALS = SearchSpace(
    {
        "learning_rate": Real(1e-4, 1.0, prior="log-uniform"),
        "hidden": Integer(4, 64, prior="log-uniform"),
        "optimizer": Categorical(["SGD", "Adam"]),
        "weight_decay": Real(1e-5, 1e-1, prior="log-uniform", special=[0.0]),
    }
)
RECORD: list[tuple[float, int, str, float, float]] = [
    (0.007951, 20, "SGD", 2.19e-05, 0.715),
    (0.1748, 12, "Adam", 0.02113, 0.7475),
    (0.01937, 60, "SGD", 0.0, 0.7525),
    (0.0003716, 4, "Adam", 0.0002296, 0.755),
    (0.0001123, 36, "Adam", 0.002001, 0.745),
    (0.0001, 4, "Adam", 0.003014, 0.5025),
    (0.00163, 9, "Adam", 0.0002736, 0.745),
    (0.0002154, 4, "Adam", 0.0001414, 0.675),
    (0.0004014, 4, "SGD", 0.0002419, 0.5),
    (0.0003796, 4, "Adam", 0.001306, 0.76),
    (0.0004422, 4, "Adam", 0.003301, 0.77),
    (0.0004984, 4, "Adam", 0.01344, 0.7675),
    (0.0004690, 6, "Adam", 0.002985, 0.765),
    (0.0004682, 4, "Adam", 0.0, 0.76),
    (0.0004374, 4, "Adam", 0.0251, 0.7675),
    (0.0004996, 4, "Adam", 0.0006798, 0.7675),
]


def recorded() -> Study:
    study = make_study(SPIRALS)
    for i, (*values, value) in enumerate(RECORD):
        origin: Any = "sobol" if i < 5 else "surrogate"
        study = study.with_trial(
            make_trial(i, dict(zip(SPIRALS.parameters, values, strict=True)), value, origin=origin)
        )
    return study


def near_best(study: Study, params: dict[str, Any]) -> bool:
    A, B = (Cube(study.space).encode(point).unsqueeze(0) for point in (study.best_params, params))
    return prior_correlation(ProductKernel(Features(study.space)), A, B).item() >= NEAR


def test_trials_around_the_best_without_progress_are_a_dead_end() -> None:
    assert stuck(study_of(AROUND))
    assert not stuck(study_of(AROUND[1:]))  # too few to tell


def test_a_search_on_a_real_plateau_goes_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    (advice,) = suggest(recorded())
    assert advice.origin == "surrogate"
    assert not near_best(recorded(), advice.params)
    monkeypatch.setattr("llamatune_torch.engine.suggest.is_stuck", lambda *_: False)
    (otherwise,) = suggest(recorded())
    assert near_best(recorded(), otherwise.params)


def test_it_finds_the_peak_far_from_the_plateau(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the space with one of two choices is far better; the search has seen all but that."""

    def value(params: dict[str, Any]) -> float:
        ripple = 0.01 * math.sin(40 * math.log10(params["learning_rate"])) + 0.005 * math.cos(params["hidden"])
        good = params["optimizer"] == "Adam" and params["learning_rate"] > 0.01 and params["hidden"] != 12
        return 0.98 if good else 0.755 + ripple

    assert play(recorded(), value, 8, Settings()).best_value == 0.98
    monkeypatch.setattr("llamatune_torch.engine.suggest.is_stuck", lambda *_: False)
    assert play(recorded(), value, 8, Settings()).best_value < 0.8


def test_a_study_with_progress_is_left_alone() -> None:
    assert not stuck(study_of([*AROUND[:4], (0.32, 0.78, 0.6)]))


def test_a_surrogate_that_sees_far_is_left_alone() -> None:
    assert stuck(study_of(AROUND), length_scale=0.045)
    assert not stuck(study_of(AROUND), length_scale=0.055)


def test_progress_within_the_noise_is_none() -> None:
    lucky = [*AROUND[:4], (0.32, 0.78, 0.521)]
    assert not stuck(study_of(lucky), noise=0.01)
    assert stuck(study_of(lucky), noise=1.0)


@pytest.mark.parametrize("i", range(len(AROUND)))
def test_one_look_elsewhere_is_enough(i: int) -> None:
    chosen = list(AROUND)
    chosen[i] = (0.9, 0.1, 0.5)
    assert not stuck(study_of(chosen))


def test_what_others_have_chosen_says_nothing() -> None:
    study = study_of(AROUND)
    last = len(study.trials) - 1
    added = tuple(replace(trial, origin="added") if trial.number == last else trial for trial in study.trials)
    assert not stuck(replace(study, trials=added))


def test_failures_next_to_the_best_are_no_progress_either() -> None:
    assert stuck(study_of([*AROUND[:3], (0.25, 0.8, None), AROUND[4]]))
    assert stuck(study_of([(x, y, None) for x, y, _ in AROUND]))
    assert not stuck(study_of([*AROUND[:3], (0.9, 0.1, None), AROUND[4]]))


def test_a_running_trial_elsewhere_is_exploration_enough() -> None:
    assert stuck(study_of(AROUND, running=[{"x": 0.31, "y": 0.75}]))
    assert not stuck(study_of(AROUND, running=[{"x": 0.31, "y": 0.75}, {"x": 0.9, "y": 0.1}]))


def test_of_a_batch_one_point_explores() -> None:
    study = recorded()
    first, second = suggest(study, n=2)
    assert suggest(study) == [first]
    asked = study.with_trial(make_trial(len(study.trials), first.params, state=TrialState.RUNNING, origin="surrogate"))
    assert [near_best(study, s.params) for s in (first, second, *suggest(asked))] == [False, True, True]


def test_the_direction_makes_no_difference() -> None:
    study = recorded()

    def negated(trial: Trial) -> Trial:
        return replace(trial, value=-(trial.value or 0.0))

    other = replace(study, goal=Goal("minimize"), trials=tuple(negated(trial) for trial in study.trials))
    assert [s.params for s in suggest(other, quick())] == [s.params for s in suggest(study, quick())]


def test_near_is_a_share_of_the_cube_however_many_columns() -> None:
    for d in (1, 2, 10, 50):
        space = SearchSpace({f"x{i}": Real(0, 1) for i in range(d)})
        centre = torch.full((1, d), 0.5, dtype=torch.float64)
        correlations = prior_correlation(
            ProductKernel(Features(space)), centre, torch.cat([centre, centre + 0.15, centre + 0.35])
        )
        assert correlations.tolist()[0][0] == pytest.approx(1.0)
        assert correlations[0, 1] > NEAR > correlations[0, 2]


def test_another_choice_is_near_if_all_else_is() -> None:
    space = SearchSpace({"x": Real(0, 1), "c": Categorical(["a", "b"])})
    A = Cube(space).encode_all([{"x": 0.5, "c": "a"}])
    B = Cube(space).encode_all([{"x": 0.5, "c": "b"}, {"x": 0.9, "c": "b"}])
    near, far = prior_correlation(ProductKernel(Features(space)), A, B)[0].tolist()
    assert near > NEAR > far


def test_it_does_not_explore_where_runs_fail() -> None:
    X_failed = torch.tensor([[0.8, 0.2], [0.9, 0.6], [0.7, 0.9]], dtype=torch.float64)
    data = training_data(study_of([]), torch.device("cpu"), [])
    X = torch.tensor([[0.2, 0.2], [0.3, 0.8], [0.1, 0.5]], dtype=torch.float64)
    data = data._replace(X=X, Y=data.Y[:3], X_failed=X_failed)
    works = torch.tensor([True] * 3 + [False] * 3)
    fails, unknown = torch.tensor([[[1.0, 0.4]], [[0.4, 0.0]]], dtype=torch.float64)
    candidates = torch.stack([fails, unknown])
    crash = CrashModel(ProductKernel(data.features), torch.cat([X, X_failed]), works)
    a, b = exploration(data, [crash.factor()])(candidates)
    assert a < b
