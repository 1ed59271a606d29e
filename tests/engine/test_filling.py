"""While outcomes say nothing about the parameters, the search covers the space as well as the Sobol sequence does."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import halton, make_study, make_trial, plain_space
from test_suggest import LINE, num_failed, params_of, play, quick

from llamatune_torch import Integer, Real, SearchSpace, SpaceExhaustedError, Study
from llamatune_torch.engine.features import Features
from llamatune_torch.engine.filling import knows_nothing, log_likelihood_ratio
from llamatune_torch.engine.kernel import ProductKernel
from llamatune_torch.engine.outcome import robust, standardize
from llamatune_torch.engine.suggest import suggest
from llamatune_torch.engine.surrogate import Surrogate, fit_gp

Params = dict[str, Any]


def widest_gap(study: Study, high: float = 1.0) -> float:
    """The widest part of the line up to ``high`` in which nothing was tried."""
    xs = sorted(trial.params["x"] for trial in study.trials if trial.params["x"] <= high)
    return float(np.diff([0.0, *xs, high]).max())


def surrogate_of(Y: list[float]) -> Surrogate:
    X = halton(len(Y), 1)
    return fit_gp(ProductKernel(Features(plain_space(1))), X, robust(torch.tensor(Y, dtype=torch.float64)))


@settings(max_examples=4, deadline=None)
@given(d=st.integers(1, 6), q=st.integers(1, 4), seed=st.integers(0, 100), value=st.sampled_from([0.0, 0.5, -1e9]))
def test_a_flat_function_is_searched_as_by_the_sobol_sequence(d: int, q: int, seed: int, value: float) -> None:
    study = Study(plain_space(d))
    while len(study.trials) < 16:
        for params, origin, _ in suggest(study, quick(seed=seed), q):
            study = study.with_trial(make_trial(len(study.trials), params, value, origin=origin))
    sequence = suggest(Study(plain_space(d)), quick(seed=seed, n_initial=20), 20)
    assert [trial.params for trial in study.trials] == params_of(sequence)[: len(study.trials)]


@pytest.mark.parametrize("seed", range(2))
def test_a_narrow_window_of_learning_rates_is_found(seed: int) -> None:
    """A classifier at the accuracy of the majority class but for a tenth of the range."""
    space = SearchSpace({"lr": Real(1e-7, 1e5, prior="log-uniform")})
    study = play(Study(space), lambda p: 1.0 if 1e1 < p["lr"] < 1.6e2 else 0.5, 20, quick(seed=seed))
    assert study.best_value == 1.0


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: float(rng.choice([0.49, 0.5, 0.51])),  # the accuracy on a few examples
        lambda rng: 0.5 + 1e-3 * float(rng.standard_normal()),
    ],
    ids=["three values", "noise"],
)
def test_luck_alone_is_no_reason_to_leave_parts_of_the_space_out(draw: Callable[[np.random.Generator], float]) -> None:
    rng = np.random.default_rng(0)
    assert widest_gap(play(Study(LINE), lambda _: draw(rng), 32, quick())) < 0.1


def test_where_runs_fail_little_is_filled() -> None:
    study = play(Study(LINE), lambda p: None if p["x"] > 0.5 else 0.3, 20, quick())
    assert num_failed(study.trials) <= 6
    assert widest_gap(study, high=0.5) < 0.1


def test_a_hill_is_climbed_and_no_longer_filled() -> None:
    study = play(Study(LINE), lambda p: -((p["x"] - 0.6) ** 2), 10, quick())
    assert [trial.origin for trial in study.trials] == ["sobol"] * 4 + ["surrogate"] * 6


def test_noise_and_equal_outcomes_teach_nothing_and_a_slope_does() -> None:
    slope = halton(32, 1)[:, 0]
    noise = np.random.default_rng(0).standard_normal(32)
    assert knows_nothing(surrogate_of([0.5] * 32))
    assert knows_nothing(surrogate_of(noise.tolist()))
    assert not knows_nothing(surrogate_of(slope.tolist()))
    assert not knows_nothing(surrogate_of([0.5]))  # nothing to compare it with


def test_the_ratio_of_likelihoods_is_that_of_two_normal_distributions() -> None:
    X = halton(9, 2)
    Y = standardize((4 * X[:, 0]).sin() - X[:, 1])
    gp = fit_gp(ProductKernel(Features(plain_space(2))), X, Y)
    normal = torch.distributions.MultivariateNormal
    ours = normal(gp.constant.expand(9), gp.outcome_covariance()).log_prob(Y)
    constant = normal(torch.zeros_like(Y), torch.eye(9, dtype=Y.dtype)).log_prob(Y)
    assert log_likelihood_ratio(gp) == pytest.approx((ours - constant).item(), rel=1e-9)
    assert math.isfinite(log_likelihood_ratio(surrogate_of([0.5] * 9)))


def test_a_finite_space_is_filled_to_the_last_point() -> None:
    space = SearchSpace({"i": Integer(1, 300)})
    study = make_study(space, [({"i": i}, 0.5) for i in range(1, 299)], running=[{"i": 300}])
    assert params_of(suggest(study, quick())) == [{"i": 299}]
    with pytest.raises(SpaceExhaustedError):
        suggest(study, quick(), 2)
