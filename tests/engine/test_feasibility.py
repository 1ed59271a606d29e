"""Limits in the engine: their probability, runs that did not come to their end, and searches under limits."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from botorch.acquisition.analytic import LogConstrainedExpectedImprovement
from botorch.models import ModelListGP
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm, truncnorm

from llamatune_torch import Cause, Constraint, LlamaTune, Outcome, Real, SearchSpace, Study, Trial, TrialState
from llamatune_torch.engine.acquisition import Acquisition, Factor
from llamatune_torch.engine.data import training_data
from llamatune_torch.engine.feasibility import LEAST, LimitModel, limit_factors
from llamatune_torch.engine.features import Features
from llamatune_torch.engine.improvement import LogEI
from llamatune_torch.engine.kernel import ProductKernel
from llamatune_torch.engine.measured import Measured, expect_at_least, measurements
from llamatune_torch.engine.outcome import standardize
from llamatune_torch.engine.recommend import recommend
from llamatune_torch.engine.suggest import fit_surrogate, suggest
from llamatune_torch.engine.surrogate import fit_gp
from llamatune_torch.settings import Settings
from llamatune_torch.study import Goal

CPU = torch.device("cpu")
SPACE = SearchSpace({"x": Real(0, 1), "y": Real(0, 1)})


def points(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def model(limit: Constraint, n: int = 20, scale: float = 1.0) -> LimitModel:
    X = points(n)
    values = scale * (X[:, 0] + X[:, 1])
    return LimitModel(ProductKernel(Features(SPACE)), Measured(X, values, torch.zeros(n, dtype=torch.bool)), limit)


def study_of(values: list[float], outcomes: list[dict[str, float]], seed: int = 0, **goal: Any) -> Study:
    trials = tuple(
        Trial(i, {"x": x, "y": y}, 0, "sobol", TrialState.COMPLETE, value=value, outcomes=found)
        for i, ((x, y), value, found) in enumerate(
            zip(points(len(values), seed).tolist(), values, outcomes, strict=True)
        )
    )
    return Study(SPACE, Goal(**goal), trials=trials)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e9])
def test_a_limit_is_likely_to_be_kept_on_its_side(scale: float) -> None:
    at = torch.tensor([[[0.2, 0.2]], [[0.8, 0.8]]], dtype=torch.float64)
    upper = model(Constraint("a", upper=1.0 * scale), scale=scale).log_probability(at).exp()
    lower = model(Constraint("a", lower=1.0 * scale), scale=scale).log_probability(at).exp()
    assert upper[0] > 0.99 > 0.01 > upper[1]
    assert lower[1] > 0.99 > 0.01 > lower[0]


def test_two_bounds_are_the_probability_between_them() -> None:
    two = model(Constraint("a", 0.8, 1.2))
    X = points(200, seed=1).unsqueeze(-2)
    posterior = two.gp.posterior(X)
    mean, spread = posterior.mean.flatten(), posterior.variance.flatten().sqrt()
    assert two._lower is not None
    assert two._upper is not None
    low, high = ((bound - mean) / spread for bound in (two._lower, two._upper))
    expected = norm.cdf(high.detach().numpy()) - norm.cdf(low.detach().numpy())
    assert two.log_probability(X).exp().detach().numpy() == pytest.approx(expected, abs=1e-9)
    assert torch.isfinite(two.log_probability(X)).all()  # also where both bounds are far out


def test_one_run_that_took_a_hundred_times_too_long_does_not_hide_the_limit() -> None:
    X = points(20)
    values = X.sum(dim=-1)
    values[values.argmax()] = 1e4
    measured = Measured(X, values, torch.zeros(20, dtype=torch.bool))
    limits = LimitModel(ProductKernel(Features(SPACE)), measured, Constraint("a", upper=1.0))
    at = torch.tensor([[[0.3, 0.3]], [[0.7, 0.7]]], dtype=torch.float64)
    inside, outside = limits.log_probability(at).exp().tolist()
    assert inside > 0.8
    assert outside < 0.3


def test_the_product_with_improvement_is_botorchs_constrained_one() -> None:
    X = points(25)
    Y, C = standardize(torch.sin(5 * X[:, 0]) + X[:, 1]), X.sum(dim=-1)
    objective = fit_gp(ProductKernel(Features(SPACE)), X, Y)
    limit = LimitModel(
        ProductKernel(Features(SPACE)), Measured(X, C, torch.zeros(25, dtype=torch.bool)), Constraint("c", upper=1.0)
    )
    best_f = Y.max()
    assert limit._upper is not None
    ours = Acquisition([
        Factor("improvement", LogEI(objective.prediction(), best_f)), Factor("limit", limit.log_probability)
    ])  # fmt: skip
    theirs = LogConstrainedExpectedImprovement(
        ModelListGP(objective, limit.gp), best_f, objective_index=0, constraints={1: (None, float(limit._upper))}
    )
    at = points(50, seed=2).unsqueeze(-2)
    assert torch.allclose(ours(at), theirs(at), rtol=1e-3)  # theirs has BoTorch's jitter and its log EI


@given(st.floats(-3, 3))
def test_at_least_so_much_is_taken_for_the_truncated_mean(value: float) -> None:
    X = points(10)
    gp = fit_gp(ProductKernel(Features(SPACE)), X, standardize(X.sum(dim=-1)))
    at = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    posterior = gp.posterior(at.unsqueeze(-2), observation_noise=True)
    mean, spread = posterior.mean.item(), posterior.variance.sqrt().item()
    found = float(expect_at_least(torch.tensor(value, dtype=torch.float64), *torch.tensor([mean, spread]).double()))
    assert found >= value
    z = (value - mean) / spread
    if abs(z) < 8:
        assert found == pytest.approx(max(value, truncnorm.mean(z, math.inf, mean, spread)), rel=1e-6, abs=1e-6)


def test_a_run_that_was_cut_off_has_measured_at_least_so_much() -> None:
    study = study_of([0.1] * 8, [{"seconds": 10.0 * i} for i in range(8)], constraints={"seconds": "<= 40"})
    cut = [
        Trial(8, {"x": 0.5, "y": 0.5}, 0, "sobol", TrialState.FAILED, cause=Cause.TIMEOUT, outcomes={"seconds": 39.0}),
        Trial(9, {"x": 0.6, "y": 0.5}, 0, "sobol", TrialState.FAILED, cause=Cause.KILLED, outcomes={"seconds": 3.0}),
        Trial(10, {"x": 0.7, "y": 0.5}, 0, "sobol", TrialState.STOPPED, outcomes={"seconds": 5.0}),
        Trial(11, {"x": 0.8, "y": 0.5}, 0, "sobol", TrialState.FAILED, cause=Cause.OUT_OF_MEMORY),
    ]
    for trial in cut:
        study = study.with_trial(Trial(trial.number, trial.params, 0, "sobol")).with_trial(trial)
    found = measurements(study, training_data(study, CPU, []).X, study.constraints[0])
    assert found.values.tolist() == [10.0 * i for i in range(8)] + [39.0, 5.0]
    assert found.at_least.tolist() == [False] * 8 + [True] * 2
    rates = study_of([0.1] * 8, [{"rate": 1.0}] * 8, constraints={"rate": ">= 2"})
    failed = Trial(8, {"x": 0.5, "y": 0.5}, 0, "sobol", TrialState.FAILED, cause=Cause.ERROR, outcomes={"rate": 0.5})
    rates = rates.with_trial(Trial(8, failed.params, 0, "sobol")).with_trial(failed)
    assert not measurements(rates, training_data(rates, CPU, []).X, rates.constraints[0]).at_least.any()


def test_a_search_learns_the_limit_of_time_from_runs_that_were_killed_for_it() -> None:
    """``seconds`` are 100 x, and a run is killed at 60: nothing else says how long it would have taken."""
    space = SearchSpace({"x": Real(0, 1), "y": Real(0, 1)})
    tuner = LlamaTune(space, max_evals=25, constraints={"seconds": "<= 50"}, progress=False)
    for _ in range(25):
        trial = tuner.ask()
        seconds = 100 * trial.params["x"]
        if seconds > 60:
            tuner.tell(trial, Outcome.failure("timeout", outcomes={"seconds": 60.0}))
        else:
            tuner.tell(trial, Outcome(trial.params["x"] - trial.params["y"], outcomes={"seconds": seconds}))
    steered = [trial for trial in tuner.study.trials if trial.origin == "surrogate"]
    assert sum(trial.value is None for trial in steered) <= len(steered) // 5  # at random: two of five
    assert tuner.study.best_value > 0.48

    def probability(study: Study) -> list[float]:
        (limit,) = limit_factors(study, training_data(study, CPU, []))
        at = torch.tensor([[[0.4, 0.5]], [[0.9, 0.5]]], dtype=torch.float64)
        inside, outside = limit.log_value(at).exp().tolist()
        return [inside, outside]

    inside, outside = probability(tuner.study)
    assert inside > 0.8
    assert outside < 0.1
    # The same record without the seconds of what was killed.
    silent = tuple(replace(t, outcomes={} if t.value is None else t.outcomes) for t in tuner.study.trials)
    assert probability(replace(tuner.study, trials=silent))[1] > 0.3


def test_too_few_measurements_say_nothing() -> None:
    assert LEAST == 2
    study = study_of([0.1, 0.2], [{"a": 1.0}, {}], constraints={"a": "<= 2"})
    assert limit_factors(study, training_data(study, CPU, [])) == []
    without = study_of([0.1, 0.2], [{"a": 1.0}, {"a": 2.0}])
    assert limit_factors(without, training_data(without, CPU, [])) == []


@pytest.mark.parametrize("acquisition", ["logeqi", "logei", "ucb", "qlogei", "qlognei"])
def test_a_suggestion_is_where_the_limit_is_likely_to_be_kept(acquisition: Any) -> None:
    X = points(16)
    value, a = (X[:, 0] + X[:, 1]).tolist(), [{"a": float(x)} for x in X[:, 0]]
    study = study_of(value, a, constraints={"a": "<= 0.5"})
    for suggestion in suggest(study, Settings(acquisition=acquisition, mc_samples=32), 2):
        assert suggestion.origin == "surrogate"
        assert suggestion.params["x"] < 0.6
    (free,) = suggest(study_of(value, a), Settings(acquisition=acquisition, mc_samples=32), 1)
    assert free.params["x"] > 0.9


@pytest.mark.parametrize("n", [1, 3])
def test_while_nothing_keeps_the_limit_the_search_goes_where_it_is_most_likely_kept(n: int) -> None:
    X = points(12)
    study = study_of(X[:, 1].tolist(), [{"a": float(x)} for x in X[:, 0]], constraints={"a": "<= 0.0"})
    assert not study.feasible
    for suggestion in suggest(study, Settings(), n):
        assert suggestion.params["x"] < float(X[:, 0].min())


def test_what_is_recommended_keeps_the_limits() -> None:
    X = points(12)
    study = study_of(X[:, 0].tolist(), [{"a": float(x)} for x in X[:, 0]], constraints={"a": "<= 0.5"})
    assert study.is_feasible(recommend(study))
    assert recommend(study).params["x"] == pytest.approx(float(X[:, 0][X[:, 0] <= 0.5].max()))


def gramacy(params: dict[str, Any]) -> Outcome:
    x, y = params["x"], params["y"]
    return Outcome(
        x + y, outcomes={"c1": 1.5 - x - 2 * y - 0.5 * math.sin(2 * math.pi * (x * x - 2 * y)), "c2": x**2 + y**2 - 1.5}
    )


def gardner(params: dict[str, Any]) -> Outcome:
    x, y = 6 * params["x"], 6 * params["y"]
    return Outcome(math.cos(2 * x) * math.cos(y) + math.sin(x), outcomes={"c": math.cos(x + y)})


@pytest.mark.parametrize(
    ("function", "limits", "near"),
    [(gardner, {"c": "<= 0.5"}, -1.95), (gramacy, {"c1": "<= 0", "c2": "<= 0"}, 0.64)],
    ids=["Gardner (optimum -2)", "Gramacy (optimum 0.5998)"],
)
def test_the_best_feasible_value_is_found(function: Any, limits: Any, near: float) -> None:
    tuner = LlamaTune(SPACE, function, 26, direction="minimize", constraints=limits, progress=False)
    _, value = tuner.optimize()
    assert value < near
    assert tuner.study.is_feasible(tuner.study.best_trial)


def test_the_order_of_limits_changes_no_suggestion() -> None:
    X = points(10)
    outcomes = [{"a": float(x), "b": float(y)} for x, y in X]
    one, other = (
        study_of(X.sum(dim=-1).tolist(), outcomes, constraints=dict.fromkeys(names, "<= 0.6")) for names in ("ab", "ba")
    )
    assert suggest(one) == suggest(other)
    assert fit_surrogate(training_data(one, CPU, [])).theta.equal(fit_surrogate(training_data(other, CPU, [])).theta)
