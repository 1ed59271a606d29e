"""Searches under constraints: what is reported, what is best, and what is stored."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from llamatune_torch import (
    Constraint,
    ConstraintError,
    LlamaTune,
    NoFeasibleTrialError,
    Outcome,
    RuleError,
    StudyMismatchError,
    TrialState,
    load_study,
    report,
    should_pause,
)

SPACE = {"x": (0.0, 1.0)}


def measured(params: dict[str, Any]) -> Outcome:
    return Outcome(params["x"], outcomes={"memory_gb": 10 * params["x"]})


def tuner(function: Any = measured, **changes: Any) -> LlamaTune:
    return LlamaTune(SPACE, function, **{"max_evals": 12, "progress": False, **changes})


def test_the_best_is_at_the_limit() -> None:
    best, value = (search := tuner(constraints={"memory_gb": "<= 5"})).optimize()
    assert 0.45 < best["x"] == value <= 0.5
    assert search.recommend().value <= 0.5
    assert [str(limit) for limit in search.study.binding()] == ["memory_gb <= 5"]


def test_an_outcome_that_nobody_reports_is_found_out_at_the_first_trial() -> None:
    search = tuner(constraints=[Constraint("latency_ms", upper=5)])
    message = r"latency_ms <= 5: the evaluation does not report 'latency_ms'; it reports \['memory_gb'\]"
    with pytest.raises(ConstraintError, match=message):
        search.optimize()
    assert len(search.study.trials) == 1
    assert not search.study.pending
    by_hand = tuner(None, constraints={"latency_ms": "<= 5"})
    trial = by_hand.ask()
    with pytest.raises(ConstraintError, match="it reports nothing besides its value"):
        by_hand.tell(trial, 0.5)
    assert by_hand.study.trials[0].state is TrialState.RUNNING
    by_hand.tell(trial, Outcome(0.5, outcomes={"latency_ms": 4.0}))
    assert by_hand.study.best_value == 0.5


def test_an_outcome_that_one_trial_lacks_makes_that_trial_none_of_the_best() -> None:
    search = tuner(None, constraints={"memory_gb": "<= 5"})
    first, second = search.ask(), search.ask()
    search.tell(first, Outcome(0.1, outcomes={"memory_gb": 1.0}))
    search.tell(second, 0.9)
    assert search.study.best_trial.number == first.number


def test_where_nothing_is_feasible_the_end_says_so(caplog: pytest.LogCaptureFixture) -> None:
    search = tuner(constraints={"memory_gb": "<= -1"}, max_evals=3)
    with (
        caplog.at_level("INFO"),
        pytest.raises(NoFeasibleTrialError, match="none of 3 completed trials keeps the limits"),
    ):
        search.optimize()
    assert any("breaks memory_gb <= -1 | none keeps the limits yet" in line for line in caplog.messages)
    assert "none feasible" in repr(search)


def test_limits_are_stored_and_every_process_brings_the_same(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    first = tuner(storage=url, constraints={"memory_gb": "<= 5"}, max_evals=4)
    first.optimize()
    stored = load_study(url)
    assert [str(limit) for limit in stored.constraints] == ["memory_gb <= 5"]
    assert stored.best_trial == first.study.best_trial
    message = "constraints: stored memory_gb <= 5, given memory_gb <= 3"
    with pytest.raises(StudyMismatchError, match=message):
        tuner(storage=url, constraints={"memory_gb": "<= 3"})
    with pytest.raises(StudyMismatchError, match="constraints: stored memory_gb <= 5, given none"):
        tuner(storage=url)
    narrower = tuner(storage=url, constraints={"memory_gb": "<= 3"}, extend=True)
    assert all(trial.outcomes["memory_gb"] <= 3 for trial in narrower.study.feasible)
    assert [str(limit) for limit in load_study(url).constraints] == ["memory_gb <= 3"]


def test_a_run_that_exceeds_a_limit_already_does_not_go_on() -> None:
    def train(params: dict[str, Any]) -> Any:
        memory = {"memory_gb": 10 * params["x"]}
        for step in range(1, 11):
            report(step, params["x"] * step, step / 10)
            if should_pause():
                return Outcome(paused=True, outcomes=memory)
        return Outcome(10 * params["x"], outcomes=memory)

    search = tuner(train, constraints={"memory_gb": "<= 5"}, strategy="screen", max_evals=8)
    search.optimize()
    taken_up = [trial for trial in search.study.trials if trial.pauses > 1]
    assert len(taken_up) == 2
    assert all(trial.params["x"] <= 0.5 for trial in taken_up)
    assert search.study.best_value > 4


def test_a_metric_that_is_settled_later_leaves_the_limits_as_they_are(tmp_path: Path) -> None:
    for place in ({}, {"storage": f"sqlite:///{tmp_path}/study.db"}):
        search = tuner(None, metric=None, constraints={"memory_gb": "<= 5"}, **place)
        search.settle_metric("accuracy", "maximize")
        trial = search.ask()
        search.tell(trial, Outcome(0.5, outcomes={"memory_gb": 9.0}))
        assert [str(limit) for limit in search.study.constraints] == ["memory_gb <= 5"]
        assert not search.study.feasible


# --- Bad input, for a search in memory and for a stored one --------------------------------------------------------


@pytest.fixture(params=["in memory", "stored"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    return {} if request.param == "in memory" else {"storage": f"sqlite:///{tmp_path}/study.db"}


def test_a_limit_on_what_nobody_reports_ends_the_search_at_its_first_trial(place: dict[str, Any]) -> None:
    search = tuner(constraints={"latency_ms": "<= 5"}, **place)
    with pytest.raises(ConstraintError, match=r"does not report 'latency_ms'; it reports \['memory_gb'\]"):
        search.optimize()
    assert [trial.state for trial in search.study.trials] == [TrialState.LOST]  # it may run again, with the name mended


def test_bounds_that_exclude_everything_end_with_how_near_it_came(place: dict[str, Any]) -> None:
    search = tuner(constraints={"memory_gb": "<= -1"}, max_evals=8, **place)
    with pytest.raises(NoFeasibleTrialError, match=r"memory_gb <= -1 \(nearest: 0\.?\d* in trial \d\)"):
        search.optimize()
    assert len(search.study.completed) == 8
    if place:
        with pytest.raises(NoFeasibleTrialError, match="nearest"):
            load_study(place["storage"]).best_trial  # noqa: B018


def test_an_outcome_that_is_nan_in_one_trial_makes_that_trial_none_of_the_best(place: dict[str, Any]) -> None:
    def measure(params: dict[str, Any]) -> Outcome:
        memory = math.nan if params["x"] == 0.25 else 10 * params["x"]
        return Outcome(5.0 if params["x"] == 0.25 else params["x"], outcomes={"memory_gb": memory})

    search = tuner(measure, constraints={"memory_gb": "<= 5"}, initial_points=[{"x": 0.25}], max_evals=10, **place)
    best, value = search.optimize()
    assert 0.4 < best["x"] == value <= 0.5
    study = load_study(place["storage"]) if place else search.study
    assert study.trials[0].value == 5.0
    assert math.isnan(study.trials[0].outcomes["memory_gb"])
    assert not study.is_feasible(study.trials[0])
    assert study.best_value == value


def test_a_rule_that_raises_names_itself_and_the_parameters(place: dict[str, Any]) -> None:
    search = tuner(rule=lambda params: 1 / (params["x"] - params["x"]) > 0, **place)
    with pytest.raises(RuleError, match=r"rule .*<lambda>@[0-9a-f]{12} raised ZeroDivisionError.* for {'x': 0\."):
        search.optimize()
    assert search.study.trials == ()  # nothing was trained, nothing waits
