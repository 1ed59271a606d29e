"""Limits: their spellings, what keeps them, and the best trial under them."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamatune_torch import Constraint, ConstraintError, NoFeasibleTrialError, SearchSpace, Study, Trial, TrialState
from llamatune_torch.constraints import read_constraints
from llamatune_torch.study import Goal

numbers = st.floats(-1e6, 1e6)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({"memory_gb": "<= 8"}, ["memory_gb <= 8"]),
        ({"b": ">= 0.5", "a": [">= 1", "<= 20"]}, ["1 <= a <= 20", "b >= 0.5"]),
        ([Constraint("seconds", upper=3600), Constraint("a", 1, 2)], ["1 <= a <= 2", "seconds <= 3600"]),
        (None, []),
        ({}, []),
    ],
)
def test_limits_have_several_spellings(given: Any, shown: list[str]) -> None:
    assert [str(limit) for limit in read_constraints(given)] == shown


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"memory_gb": 8}, 'must be spelled "<= 8", .* but got an int, 8|must be spelled'),
        ({"memory_gb": "< 8"}, "'memory_gb' must be spelled"),
        ({"memory_gb": "<= many"}, "'memory_gb' must be spelled"),
        ({"memory_gb": ["<= 8", "<= 9"]}, "'memory_gb' must be spelled"),
        ({"memory_gb": [">= 8", "<= 7"]}, "lower <= upper must hold, but got 8 and 7"),
        ("memory_gb <= 8", "constraints must be Constraints, or a dict"),
        ([Constraint("a", 1), Constraint("a", 2)], "each outcome can have one constraint, but got a >= 1, a >= 2"),
    ],
)
def test_what_is_no_limit_is_refused(given: Any, message: str) -> None:
    with pytest.raises(ConstraintError, match=message):
        read_constraints(given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": ""}, "needs the name of an outcome"),
        ({"name": "a"}, "'a' must have a bound"),
        ({"name": "a", "upper": math.nan}, "'a': a bound must be a finite number, but got nan"),
        ({"name": "a", "upper": True}, "'a': a bound must be a finite number, but got True"),
        ({"name": "a", "upper": "8"}, "'a': a bound must be a finite number, but got '8'"),
    ],
)
def test_a_constraint_that_cannot_be_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ConstraintError, match=message):
        Constraint(**arguments)


@given(numbers, numbers, st.one_of(st.none(), numbers))
def test_what_is_kept_has_no_excess(value: float, upper: float, lower: float | None) -> None:
    limit = Constraint("a", lower if lower is None or lower <= upper else upper, upper)
    assert limit.is_kept({"a": value}) == (limit.excess(value) <= 0)


def test_what_was_not_measured_is_not_kept() -> None:
    limit = Constraint("a", upper=1)
    assert not limit.is_kept({})
    assert not limit.is_kept({"a": math.nan})
    assert math.isnan(limit.excess(math.nan))


def study_of(*outcomes: tuple[float, dict[str, float]], **goal: Any) -> Study:
    trials = tuple(
        Trial(i, {"x": i / 10}, 0, "sobol", TrialState.COMPLETE, value=value, outcomes=found)
        for i, (value, found) in enumerate(outcomes)
    )
    return Study(SearchSpace({"x": (0.0, 1.0)}), Goal(**goal), trials=trials)


LIMITS: dict[str, Any] = {"constraints": {"memory_gb": "<= 8", "seconds": "<= 60"}}


def test_the_best_trial_keeps_all_limits() -> None:
    study = study_of(
        (0.9, {"memory_gb": 9.0, "seconds": 10.0}),
        (0.8, {"memory_gb": 7.9, "seconds": 30.0}),
        (0.7, {"memory_gb": 4.0, "seconds": 30.0}),
        (0.95, {"seconds": 30.0}),
        **LIMITS,
    )
    assert study.best_trial.number == 1
    assert [trial.number for trial in study.feasible] == [1, 2]
    assert [trial.number for trial in study.by_value()] == [1, 2, 3, 0]
    assert [str(limit) for limit in study.binding()] == ["memory_gb <= 8"]
    lines = study.summary().splitlines()
    assert "limit memory_gb <= 8: 7.9 in the best, it binds; kept by 2 of 4" in lines
    assert "limit seconds <= 60: 30 in the best; kept by 4 of 4" in lines


def test_where_nothing_keeps_them_the_error_says_how_near_it_came() -> None:
    study = study_of((0.9, {"memory_gb": 9.0}), (0.8, {"memory_gb": 8.5}), **LIMITS)
    message = (
        r"none of 2 completed trials keeps the limits: memory_gb <= 8 \(nearest: 8.5 in trial 1\); "
        r"seconds <= 60 \(never measured\)"
    )
    with pytest.raises(NoFeasibleTrialError, match=message):
        study.best_trial  # noqa: B018
    assert "none of 2 completed trials keeps the limits" in study.summary()


@given(st.permutations(["a", "b", "c"]))
def test_the_order_of_limits_does_not_matter(names: list[str]) -> None:
    assert Goal(constraints=dict.fromkeys(names, "<= 1")) == Goal(  # type: ignore[arg-type]
        constraints=dict.fromkeys("abc", "<= 1")  # type: ignore[arg-type]
    )
