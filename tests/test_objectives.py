"""Several objectives as records: spellings, dominance, the front and the best of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from botorch.utils.multi_objective.pareto import is_non_dominated
from hypothesis import given
from hypothesis import strategies as st

from llamatune_torch import LlamaTune, NoFeasibleTrialError, Objective, ObjectiveError, Outcome, Study
from llamatune_torch.objectives import find_front, read_objectives

TWO = {"accuracy": "maximize", "latency_ms": "minimize"}


def told(values: list[tuple[float, float | None]], **arguments: Any) -> Study:
    """A study whose trials have these accuracies and latencies."""
    search = LlamaTune({"x": (0.0, 1.0)}, max_evals=50, objectives=TWO, progress=False, **arguments)
    for i, (accuracy, latency) in enumerate(values):
        outcomes = {} if latency is None else {"latency_ms": latency}
        search.add_trial({"x": i / 50}, Outcome(accuracy, outcomes=outcomes))
    return search.study


@pytest.mark.parametrize(
    ("spelled", "message"),
    [
        ({"accuracy": "maximize"}, "two or more"),
        ({"accuracy": "max", "latency_ms": "minimize"}, "'max'"),
        ({"accuracy": ("maximize", 1, 2), "latency_ms": "minimize"}, "must be spelled"),
        ({"accuracy": ("maximize", float("nan")), "latency_ms": "minimize"}, "finite"),
        ({"accuracy": ("maximize", True), "latency_ms": "minimize"}, "finite"),
        ({"": "maximize", "latency_ms": "minimize"}, "name"),
        ([Objective("a", "maximize"), Objective("a", "minimize")], "name of its own"),
        ("accuracy", "objectives must be"),
    ],
)
def test_what_is_no_objective_is_said(spelled: Any, message: str) -> None:
    with pytest.raises(ObjectiveError, match=message):
        read_objectives(spelled)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metric": "loss"}, "first objective is the metric"),
        ({"objectives": {"loss": "maximize", "b": "maximize"}, "direction": "minimize"}, "first objective"),
        ({"stopping": "auto"}, "stopping"),
        ({"confirm": 3}, "confirm"),
        ({"strategy": "asha"}, "'asha'"),
    ],
)
def test_what_needs_a_single_objective_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ObjectiveError, match=message):
        LlamaTune({"x": (0.0, 1.0)}, **({"objectives": TWO} | arguments))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12))
def test_the_front_is_botorchs(points: list[tuple[int, int, int]]) -> None:
    expected = is_non_dominated(torch.tensor(points, dtype=torch.float64), deduplicate=False)
    assert find_front(points) == expected.nonzero().squeeze(-1).tolist()


def test_the_front_has_the_best_first_and_leaves_out_what_was_not_measured() -> None:
    study = told([(0.5, 5.0), (0.9, 30.0), (0.7, 10.0), (0.6, 20.0), (0.99, None), (0.98, float("nan"))])
    assert [trial.number for trial in study.pareto()] == [1, 2, 0]
    assert study.best_trial.number == 4, "of the first objective alone"
    assert "Pareto front (maximize accuracy, minimize latency_ms): 3 trials" in study.summary()


def test_a_limit_is_kept_on_the_front_and_asked_for_afterwards() -> None:
    study = told([(0.5, 5.0), (0.9, 30.0), (0.7, 10.0)], constraints={"latency_ms": "<= 25"})
    assert [trial.number for trial in study.pareto()] == [2, 0]
    assert study.best(latency_ms="<= 8").number == 0
    assert study.best(accuracy=[">= 0.4", "<= 0.6"]).number == 0
    assert study.best().number == 2
    with pytest.raises(NoFeasibleTrialError, match="none of 2 feasible trials keeps latency_ms <= 1"):
        study.best(latency_ms="<= 1")


def test_of_one_objective_the_front_is_the_best() -> None:
    search = LlamaTune({"x": (0.0, 1.0)}, direction="minimize", progress=False)
    for i, value in enumerate([3.0, 1.0, 2.0]):
        search.add_trial({"x": i / 5}, value)
    assert [trial.number for trial in search.study.pareto()] == [1]


def test_an_objective_that_nobody_reports_is_found_out_at_the_first_trial() -> None:
    search = LlamaTune({"x": (0.0, 1.0)}, lambda p: 1.0, objectives=TWO, progress=False)
    with pytest.raises(ObjectiveError, match="does not report 'latency_ms'; it reports nothing besides"):
        search.optimize()


def test_a_trial_without_one_objective_goes_on_record_and_the_search_goes_on() -> None:
    def evaluate(params: dict[str, float]) -> Outcome:
        x = params["x"]
        return Outcome(x, outcomes={} if 0.3 < x < 0.6 else {"latency_ms": x**2})

    search = LlamaTune({"x": (0.0, 1.0)}, max_evals=12, objectives=TWO, progress=False)
    search.tell(search.ask(), Outcome(0.1, outcomes={"latency_ms": 1.0}))
    search.model_eval_fn = evaluate
    search.optimize()
    assert len(search.study.completed) == 12
    assert any("latency_ms" not in trial.outcomes for trial in search.study.completed)
