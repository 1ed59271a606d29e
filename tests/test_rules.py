"""Rules between parameters: every suggestion keeps them, whoever makes it; and they are known to the record."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamatune_torch import (
    Categorical,
    Integer,
    Linear,
    LlamaTune,
    ParamsError,
    Real,
    RuleError,
    SearchSpace,
    StudyMismatchError,
    load_study,
)
from llamatune_torch.engine.suggest import suggest
from llamatune_torch.rules import Unknown, is_kept, name_of_rule, read_rules
from llamatune_torch.settings import Settings


def fits(params: dict[str, Any]) -> bool:
    return bool(params["rank"] * params["batch"] <= 64)


def fits_more(params: dict[str, Any]) -> bool:
    return bool(params["rank"] * params["batch"] <= 128)


MIXED: dict[str, Any] = {
    "lr": Real(1e-5, 1e-2, prior="log-uniform"),
    "rank": Integer(1, 64),
    "batch": Integer(1, 64),
    "method": Categorical(["full", "lora"]),
}
CONTINUOUS: dict[str, Any] = {f"x{i}": Real(0, 1) for i in range(3)}


def diagonal(params: dict[str, Any]) -> bool:
    return sum(params.values()) <= 0.5


def ring(params: dict[str, Any]) -> bool:
    return 0.15 < math.hypot(params["x0"] - 0.5, params["x1"] - 0.5) < 0.2


def rare(params: dict[str, Any]) -> bool:
    return all(abs(value - 0.3) < 0.03 for value in params.values())  # two in ten thousand


def score(params: dict[str, Any]) -> float:
    return (
        -sum((value - 0.9) ** 2 for value in params.values() if isinstance(value, float)) + params.get("rank", 0) / 64
    )


@pytest.mark.parametrize(
    ("space", "rule"),
    [
        (MIXED, fits),
        (CONTINUOUS, diagonal),
        (CONTINUOUS, ring),
        (CONTINUOUS, rare),
        (MIXED, Linear({"rank": 1, "batch": 2}, upper=20)),
    ],
    ids=["mixed", "half-space", "ring", "nearly empty", "linear"],
)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_no_suggestion_breaks_a_rule(space: dict[str, Any], rule: Any, seed: int) -> None:
    tuner = LlamaTune(space, score, 14, rule=rule, seed=seed, n_initial=5, progress=False)
    tuner.optimize()
    assert all(rule(trial.params) for trial in tuner.study.trials)
    assert {trial.origin for trial in tuner.study.trials} == {"sobol", "surrogate"}
    assert len({repr(trial.params) for trial in tuner.study.trials}) == 14
    for suggestion in suggest(tuner.study, Settings(seed=seed), 3):
        assert rule(suggestion.params)


def test_the_best_is_found_on_the_rules_edge() -> None:
    tuner = LlamaTune(CONTINUOUS, score, 25, rule=Linear(dict.fromkeys(CONTINUOUS, 1.0), upper=1.5), progress=False)
    _, best = tuner.optimize()
    assert best > -3 * 0.4**2 - 0.01  # at .5 each
    assert best <= -3 * 0.4**2 + 1e-9


def test_a_finite_space_is_used_up_to_what_keeps_the_rule() -> None:
    space: dict[str, Any] = {"a": Integer(1, 4), "b": Integer(1, 4)}
    tuner = LlamaTune(space, lambda p: p["a"] + p["b"], 50, rule=lambda p: p["a"] % p["b"] == 0, progress=False)
    tuner.optimize()
    tried = {(trial.params["a"], trial.params["b"]) for trial in tuner.study.trials}
    assert tried == {(a, b) for a in range(1, 5) for b in range(1, 5) if a % b == 0}


def test_strategies_keep_rules_too() -> None:
    def train(params: dict[str, Any]) -> Any:
        for step in range(1, 11):
            yield step, score(params) * step / 10, step / 10

    tuner = LlamaTune(MIXED, train, 6, rule=fits, progress=False)
    tuner.optimize()
    assert len(tuner.study.trials) > 15
    assert all(fits(trial.params) for trial in tuner.study.trials)


def test_initial_points_and_added_trials_keep_the_rule() -> None:
    broken = {"lr": 1e-3, "rank": 64, "batch": 64, "method": "lora"}
    with pytest.raises(ParamsError, match=r"initial_points\[0\]: parameters break the rule fits@[0-9a-f]{12}"):
        LlamaTune(MIXED, rule=fits, initial_points=[broken])
    tuner = LlamaTune(MIXED, rule=fits, initial_points=[{"rank": 60}], progress=False)
    first = tuner.ask()
    assert (first.params["rank"], first.params["batch"]) == (60, 1)
    with pytest.raises(ParamsError, match="break the rule"):
        tuner.add_trial(broken, 0.5)


def test_a_rule_that_nothing_keeps_says_so_with_the_share() -> None:
    tuner = LlamaTune(CONTINUOUS, rule=lambda params: params["x0"] > 2, progress=False)
    with pytest.raises(RuleError, match=r"none of \d+ points of the space keeps it, a share below [12]e-05"):
        tuner.ask()


def test_a_rule_that_raises_is_an_error_with_the_parameters() -> None:
    tuner = LlamaTune(CONTINUOUS, rule=lambda params: params["x7"] > 0, progress=False)
    with pytest.raises(RuleError, match=r"rule .*<lambda>@[0-9a-f]{12} raised KeyError\('x7'\) for {'x0': "):
        tuner.ask()


def test_a_rule_sees_values_in_the_place_of_labels() -> None:
    seen: list[Any] = []
    space = {"targets": Categorical({"qv": ["q", "v"], "all": "all-linear"}), "lr": Real(0, 1)}

    def look(params: dict[str, Any]) -> bool:
        seen.append(params["targets"])
        return params["targets"] == ["q", "v"]

    tuner = LlamaTune(space, rule=look, progress=False)
    assert all(tuner.ask().params["targets"] == ["q", "v"] for _ in range(4))
    assert {repr(targets) for targets in seen} == {"['q', 'v']", "'all-linear'"}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("rank < 3", "a rule must be a function of the parameters"),
        ([fits, 3], "a rule must be a function of the parameters"),
    ],
)
def test_what_is_no_rule_is_refused(rule: Any, message: str) -> None:
    with pytest.raises(RuleError, match=message):
        LlamaTune(MIXED, rule=rule)


@pytest.mark.parametrize(
    "arguments", [({}, 0, 1), ({"a": 1},), ({"a": math.nan}, 0), ({"a": "1"}, 0), ({"a": 1}, True), (3, 0)]
)
def test_what_is_no_linear_rule_is_refused(arguments: Any) -> None:
    with pytest.raises(RuleError, match="a linear rule"):
        Linear(*arguments)


@settings(max_examples=30)
@given(st.lists(st.floats(-10, 10), min_size=2, max_size=2), st.floats(-10, 10))
def test_a_linear_rule_is_its_sum(coefficients: list[float], upper: float) -> None:
    rule = Linear(dict(zip("ab", coefficients, strict=True)), upper=upper)
    params = {"a": 0.5, "b": 2.0, "c": "text"}
    assert rule(params) == (math.fsum([coefficients[0] * 0.5, coefficients[1] * 2.0]) <= upper)
    assert Linear({"a": 1, "absent": 5}, lower=0.5)(params)


def test_every_process_brings_the_same_rule(tmp_path: Path) -> None:
    url, linear = f"sqlite:///{tmp_path}/study.db", Linear({"rank": 1, "batch": 1}, upper=60)
    first = LlamaTune(MIXED, score, 3, rule=[fits, linear], storage=url, progress=False)
    first.optimize()
    assert len(LlamaTune(MIXED, rule=[fits, linear], storage=url).study.trials) == 3
    with pytest.raises(StudyMismatchError, match=r"rules: stored fits@\w+, .*, given fits_more@\w+"):
        LlamaTune(MIXED, rule=[fits_more, linear], storage=url)
    with pytest.raises(StudyMismatchError, match="given none"):
        LlamaTune(MIXED, storage=url)
    stored = load_study(url)
    assert isinstance(stored.space.rules[0], Unknown)
    assert stored.space.rules[1] == linear
    assert stored.space.validate(dict(first.study.best_trial.params)) == first.study.best_trial.params
    with pytest.raises(RuleError, match=r"rule fits@\w+ is not known in this process"):
        suggest(stored, Settings(n_initial=100))
    wider = LlamaTune(MIXED, rule=[fits_more], storage=url, extend=True)
    assert [name_of_rule(rule) for rule in load_study(url).space.rules] == [name_of_rule(fits_more)]
    assert len(wider.study.trials) == 3


def test_names_tell_functions_apart() -> None:
    assert name_of_rule(fits) != name_of_rule(fits_more)
    assert name_of_rule(fits) == name_of_rule(fits)
    assert name_of_rule(Linear({"a": 1}, upper=2)) == "1 * a <= 2"
    assert name_of_rule(eval("lambda p: p['a'] > 1")) != name_of_rule(eval("lambda p: p['a'] > 2"))
    assert read_rules(None) == ()
    assert is_kept(read_rules([fits]), {"rank": 1, "batch": 64})


def test_a_space_keeps_its_rules_when_it_is_made_again() -> None:
    space = SearchSpace(MIXED, rule=fits)
    assert SearchSpace(space).rules == (fits,)
    assert SearchSpace(space, rule=fits_more).rules == (fits, fits_more)
    assert space.without_values().rules == (fits,)
