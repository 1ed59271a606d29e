"""All that a study tells about itself."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from SALib.analyze import sobol as salib_analyze
from SALib.sample import sobol as salib_sample
from strategies import halton, make_study, make_trial, params_of, spaces

from llamatune_torch import Categorical, Real, SearchSpace, Study, TrialState
from llamatune_torch.engine.data import in_the_metric, training_data
from llamatune_torch.engine.suggest import fit_surrogate
from llamatune_torch.insight.explain import FEWEST, FEWEST_NEAR, explain, fence
from llamatune_torch.insight.importance import as_share
from llamatune_torch.insight.trust import judge, rank_correlation
from llamatune_torch.study import Goal

BOX = SearchSpace({"x": (0.0, 1.0), "y": (0.0, 1.0), "z": (0.0, 1.0)})


def study_of(function: Any, n: int, space: SearchSpace = BOX, direction: Any = "maximize") -> Study:
    rows = [space.decode(x) for x in space.snap(halton(n, space.dim).numpy())]
    return make_study(space, [(params, function(params)) for params in rows], direction=direction)


# --- Importance ---------------------------------------------------------------------------------------------------


def product(params: dict[str, float]) -> float:
    return 3 * params["x"] + 4 * (params["x"] - 0.5) * (params["y"] - 0.5) + params["y"]


def test_indices_are_those_of_salib() -> None:
    problem = {"num_vars": 3, "names": ["x", "y", "z"], "bounds": [[0, 1]] * 3}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        X = salib_sample.sample(problem, 1024, calc_second_order=True, seed=0)
        values = np.array([product(dict(zip("xyz", x, strict=True))) for x in X])
        truth = salib_analyze.analyze(problem, values, seed=0)
    insight = explain(study_of(product, 50))
    for each in insight.importance:
        i = "xyz".index(each.name)
        assert each.first.value == pytest.approx(truth["S1"][i], abs=0.03)
        assert each.total.value == pytest.approx(truth["ST"][i], abs=0.03)
        assert each.first.low - 0.02 <= truth["S1"][i] <= each.first.high + 0.02
    assert [each.name for each in insight.importance] == ["x", "y", "z"]
    assert insight.interactions[0].names == ("x", "y")
    assert insight.interactions[0].share.value == pytest.approx(truth["S2"][0, 1], abs=0.03)


def test_direction_changes_signs_and_no_shares() -> None:
    up = explain(study_of(product, 30))
    down = explain(study_of(lambda params: -product(params), 30, direction="minimize"))
    assert [each.name for each in up.importance] == [each.name for each in down.importance]
    for a, b in zip(up.importance, down.importance, strict=True):
        assert a.total == pytest.approx(b.total)
    for one, other in zip(up.effects, down.effects, strict=True):
        assert one.mean == pytest.approx([-value for value in other.mean])
        assert one.low == pytest.approx([-value for value in other.high])


def test_a_conditional_parameter_is_judged_where_it_is_active() -> None:
    space = SearchSpace({"method": ["full", "lora"], "rate": (0.0, 1.0), "rank": Real(0, 1, when={"method": "lora"})})

    def value(params: dict[str, Any]) -> float:
        return float(params["rate"] + 3 * params.get("rank", 0.0))

    insight = explain(study_of(value, 48, space))
    found = {each.name: each for each in insight.importance}
    assert found["rank"].given == "method = lora"
    assert found["rank"].total.value == pytest.approx(0.9, abs=0.05)  # 9 of 9 + 1, where there is a rank
    assert found["method"].given == found["rate"].given == ""
    # Over the whole space: method 1.5^2 / 4 = .5625, rate 1 / 12; a rank there is in half of it, 9 / 12 / 2.
    assert found["method"].total.value == pytest.approx(0.5625 / (0.5625 + 1 / 12 + 9 / 24), abs=0.1)
    assert {(each.name, each.given) for each in insight.effects} == {
        ("method", ""), ("rate", ""), ("rank", "method = lora")
    }  # fmt: skip


def test_a_special_value_is_a_point_of_its_own() -> None:
    space = SearchSpace({"dropout": Real(0, 0.4, special=[0.0]), "x": (0.0, 1.0)})

    def value(params: dict[str, float]) -> float:
        return params["x"] + (1.0 if params["dropout"] == 0 else params["dropout"])

    effect = next(each for each in explain(study_of(value, 40, space)).effects if each.name == "dropout")
    assert effect.num_special == 1
    assert effect.values[0] == 0.0
    assert effect.mean[0] == pytest.approx(1.5, abs=0.1)
    assert effect.mean[1] == pytest.approx(0.5, abs=0.15)
    assert effect.mean[-1] == pytest.approx(0.9, abs=0.15)


def test_near_the_best_another_parameter_matters() -> None:
    def value(params: dict[str, float]) -> float:
        return -1.0 if params["x"] > 0.5 else -0.1 * abs(params["y"] - 0.3)

    insight = explain(study_of(value, 60))
    assert insight.importance[0].name == "x"
    assert insight.near[0].name == "y"


def test_bounds_are_rounded_outwards_and_stay_shares() -> None:
    share = as_share(torch.linspace(0.0, 1.0, 101, dtype=torch.float64) * 0.111 + 0.0012)
    assert (share.low, share.high) == (0.0, 0.11)
    assert as_share(torch.ones(5, dtype=torch.float64)) == (1.0, 1.0, 1.0)


def test_one_exploded_loss_is_not_all_that_there_is() -> None:
    def loss(params: dict[str, float]) -> float:
        return 1e12 if params["z"] > 0.98 else params["x"]

    study = study_of(loss, 49, direction="minimize")
    assert sum(trial.value == 1e12 for trial in study.trials) <= 2
    assert explain(study).importance[0].name == "x"
    Y = torch.arange(20, dtype=torch.float64)
    assert torch.equal(fence(Y), Y)
    assert float(fence(torch.cat([Y, torch.tensor([-1e9])])).min()) == pytest.approx(9 - 100 * 10)


# --- Trust --------------------------------------------------------------------------------------------------------


def test_leaving_out_is_what_it_says() -> None:
    study = study_of(product, 12)
    data = training_data(study, torch.device("cpu"), [])
    gp = fit_surrogate(data)
    K, c = gp.outcome_covariance(), gp.constant
    trust = judge(study, data, gp, lambda values: in_the_metric(study, data, values))
    for i in range(12):
        others = [j for j in range(12) if j != i]
        weights = torch.linalg.solve(K[others][:, others], K[others, i])
        mean = c + weights @ (data.Y[others] - c)
        shown = in_the_metric(study, data, mean.reshape(1))
        assert trust.predictions[i].mean == pytest.approx(float(shown), rel=1e-6)
        assert trust.predictions[i].value == study.trials[i].value
        assert trust.predictions[i].low <= trust.predictions[i].mean <= trust.predictions[i].high


@pytest.mark.parametrize(
    ("function", "word"), [(product, "good"), (lambda params: math.sin(1e4 * params["x"]), "not to be relied on")]
)
def test_a_verdict_in_words(function: Any, word: str) -> None:
    trust = explain(study_of(function, 30)).trust
    assert trust is not None
    assert word in trust.verdict


def test_rank_correlation_is_spearmans() -> None:
    from scipy.stats import spearmanr

    a, b = torch.tensor([1.0, 2.0, 2.0, 5.0, 0.0]), torch.tensor([3.0, 1.0, 4.0, 4.0, 4.0])
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert rank_correlation(a, torch.ones(5)) == 0.0


# --- Progress -----------------------------------------------------------------------------------------------------


def test_random_search_is_what_order_statistics_say() -> None:
    """Of a metric that is one parameter, the best of k random runs is the maximum of k uniform numbers."""
    steps = explain(study_of(lambda params: params["x"], 40)).progress.steps
    for k in (1, 5, 20, 40):
        band = steps[k - 1].random
        assert band is not None
        assert band.value == pytest.approx(0.5 ** (1 / k), abs=0.06)
        assert band.low == pytest.approx(0.05 ** (1 / k), abs=0.08)
        assert band.high == pytest.approx(0.95 ** (1 / k), abs=0.06)


def test_steps_follow_the_best_feasible_value() -> None:
    trials = [
        make_trial(0, {"x": 0.1, "y": 0.1, "z": 0.1}, 1.0, outcomes={"m": 2.0}, cost=3.0, finished=30.0),
        make_trial(1, {"x": 0.2, "y": 0.1, "z": 0.1}, 3.0, outcomes={"m": 9.0}, cost=4.0, finished=20.0),
        make_trial(2, {"x": 0.3, "y": 0.1, "z": 0.1}, None, reason="out of memory", cost=5.0, finished=25.0),
        make_trial(3, {"x": 0.4, "y": 0.1, "z": 0.1}, 2.0, outcomes={"m": 2.0}, cost=6.0, finished=40.0),
    ]
    from llamatune_torch.constraints import read_constraints

    study = Study(BOX, Goal("maximize", constraints=read_constraints({"m": "<= 5"})), trials=tuple(trials))
    progress = explain(study).progress
    assert [step.trial for step in progress.steps] == [1, 0, 3]
    assert [step.best for step in progress.steps] == pytest.approx([math.nan, 1.0, 2.0], nan_ok=True)
    assert progress.seconds == {"complete": 13.0, "failed": 5.0}
    assert progress.failures == {"out of memory": (1, 5.0)}
    assert progress.winner == 3
    assert progress.gain_cost == pytest.approx(10 * 13 / 3)


def test_going_on_pays_early_and_no_longer_late() -> None:
    def value(params: dict[str, float]) -> float:
        return -((params["x"] - 0.31) ** 2) - (params["y"] - 0.77) ** 2

    early, late = (explain(study_of(value, n, direction="maximize")).progress for n in (10, 80))
    assert early.gain is not None
    assert late.gain is not None
    assert early.gain.value > late.gain.value >= 0
    assert late.is_best is not None
    assert 0 <= late.is_best <= 1


# --- Any study ----------------------------------------------------------------------------------------------------


@st.composite
def studies(draw: DrawFn) -> Study:
    """Of any space, with trials in all states and values of all kinds."""
    space = draw(spaces(max_dim=3))
    trials = []
    for i in range(draw(st.sampled_from([0, 1, FEWEST - 1, FEWEST, FEWEST_NEAR, 24]))):
        state = draw(st.sampled_from([TrialState.COMPLETE] * 6 + list(TrialState)))
        value = draw(st.sampled_from([0.5, 0.5, 1.0, 2.0, -1e300, -math.inf, 3.0 + i]))
        complete = state is TrialState.COMPLETE
        params = draw(params_of(space))
        trials.append(
            make_trial(i, params, value if complete else None, state, cost=draw(st.sampled_from([None, 1.5])))
        )
    return Study(space, Goal("maximize"), trials=tuple(trials))


@given(studies())
@settings(max_examples=15, deadline=None)
def test_any_study_can_be_explained(study: Study) -> None:
    insight = explain(study)
    plain = asdict(insight)
    plain.pop("study")
    numbers = [float(text) for text in _numbers(plain)]
    assert all(math.isfinite(number) for number in numbers if not math.isnan(number)) or study.completed
    for each in (*insight.importance, *insight.near):
        assert 0 <= each.first.low <= each.first.value <= each.first.high <= 1
        assert 0 <= each.total.low <= each.total.value <= each.total.high <= 1
    if len(study.completed) < FEWEST:
        assert "importance" in insight.missing
        assert not insight.importance
    json.dumps({name: str(value) for name, value in plain.items()})


def _numbers(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [found for each in value.values() for found in _numbers(each)]
    if isinstance(value, (list, tuple)):
        return [found for each in value for found in _numbers(each)]
    return [repr(value)] if isinstance(value, float) else []


def test_the_same_study_tells_the_same() -> None:
    study = study_of(product, 20)
    assert explain(study) == explain(study)


@pytest.mark.parametrize(
    ("study", "part", "word"),
    [
        (make_study(BOX), "importance", "no trial has completed"),
        (study_of(product, 3), "trust", "3 trials have completed"),
        (study_of(lambda params: 1.0, 20), "importance", "all values are the same"),
        (study_of(product, 10), "near", "10 trials have completed"),
        (study_of(lambda p: p["x"], 20, SearchSpace({"x": (0.0, 1.0)})), "interactions", "there is one parameter"),
        (
            study_of(lambda p: 1.0, 20, SearchSpace({"x": Categorical(["only"])})),
            "importance",
            "constants",
        ),
    ],
)
def test_what_is_left_out_is_said(study: Study, part: str, word: str) -> None:
    assert word in explain(study).missing[part]
