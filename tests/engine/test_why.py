"""The words that a suggestion comes with."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from llamatune_torch import Categorical, LlamaTune, Real, SearchSpace, TrialState
from llamatune_torch.constraints import read_constraints
from llamatune_torch.engine.cube import Cube
from llamatune_torch.engine.suggest import suggest
from llamatune_torch.engine.why import _next_to
from llamatune_torch.objectives import Objective
from llamatune_torch.settings import Settings
from llamatune_torch.study import Goal, Study
from llamatune_torch.trial import Trial

SPACE = SearchSpace({"rate": Real(1e-5, 1e-1, prior="log-uniform"), "kind": Categorical(["plain", "fancy"])})


def searched(n: int, failing: bool = False) -> Study:
    """A search for the rate 1e-3; runs above 1e-2 fail, if any does."""

    def evaluate(params: dict[str, float]) -> float:
        if failing and params["rate"] > 1e-2:
            raise MemoryError
        return -(abs(params["rate"] - 1e-3) ** 0.5) - 0.1 * (params["kind"] == "plain")

    tuner = LlamaTune(SPACE, evaluate, max_evals=n, seed=3, n_initial=4, progress=False)
    tuner.optimize()
    return tuner.study


def test_a_suggestion_says_what_is_expected_and_how_it_differs_from_the_best() -> None:
    study = searched(8)
    (suggestion,) = suggest(study, Settings(n_initial=4, seed=3))
    why = suggestion.notes["why"]
    found = re.match(r"expected (\S+) \((\S+) to (\S+)\); next to trial (\d+), the best: (.+)$", why)
    assert found, why
    mean, low, high = map(float, found.groups()[:3])
    assert low <= mean <= high
    assert int(found[4]) == study.best_trial.number
    best, own = study.best_params["rate"], suggestion.params["rate"]
    if f"rate x {own / best:.2g}" not in why:
        assert "all else alike" in why or "rate" in why


def test_it_is_kept_with_the_trial_and_left_out_of_the_summary() -> None:
    study = searched(8)
    chosen = [trial for trial in study.trials if trial.origin == "surrogate"]
    assert len(chosen) == 4
    assert all("expected" in trial.notes["why"] for trial in chosen)
    assert all("why" not in trial.notes for trial in study.trials if trial.origin == "sobol")
    assert "why" not in study.summary()


def test_failures_and_limits_are_spoken_of() -> None:
    study = searched(10, failing=True)
    assert study.failed
    (suggestion,) = suggest(study, Settings(n_initial=4, seed=3))
    assert re.search(r"\d+% chance to fail", suggestion.notes["why"])


def completed(n: int, **outcomes: Callable[[int], float]) -> tuple[Trial, ...]:
    """``n`` trials with falling rates and rising values, which have measured ``outcomes``."""
    return tuple(
        Trial(
            number=i,
            params={"rate": 10.0 ** (-1 - i / 2), "kind": "plain" if i % 2 else "fancy"},
            seed=i,
            origin="sobol",
            state=TrialState.COMPLETE,
            value=float(i),
            outcomes={name: of(i) for name, of in outcomes.items()},
        )
        for i in range(n)
    )


def test_a_limit_that_nothing_keeps_is_what_is_sought() -> None:
    goal = Goal("maximize", "value", constraints=read_constraints({"memory": "<= 1"}))
    (suggestion,) = suggest(Study(SPACE, goal, trials=completed(6, memory=lambda i: 9.0 - i)), Settings(n_initial=4))
    assert re.search(r"\d+% chance to keep memory <= 1", suggestion.notes["why"])
    assert "the best" not in suggestion.notes["why"]


def test_several_objectives_have_no_single_expectation() -> None:
    goal = Goal("maximize", "value", others=(Objective("latency", "minimize"),))
    (suggestion,) = suggest(Study(SPACE, goal, trials=completed(6, latency=lambda i: i**2.0)), Settings(n_initial=4))
    assert suggestion.notes["why"].startswith("to widen the Pareto front; next to trial 5, the best: ")


@pytest.mark.parametrize(
    ("own", "best", "said"),
    [
        ({"rate": 2e-3, "kind": "plain"}, {"rate": 1e-3, "kind": "plain"}, "rate x 2, all else alike"),
        ({"rate": 1e-3, "kind": "plain"}, {"rate": 1e-3, "kind": "fancy"}, "kind 'plain' instead of 'fancy', all else"),
        ({"rate": 1.01e-3, "kind": "plain"}, {"rate": 1e-3, "kind": "plain"}, "the best: all else alike"),
    ],
)
def test_changes_in_words(own: dict[str, object], best: dict[str, object], said: str) -> None:
    trial = Trial(12, best, 0, "sobol", TrialState.COMPLETE, value=1.0)
    assert said in _next_to(trial, Cube(SPACE), Cube(SPACE).encode(own))
