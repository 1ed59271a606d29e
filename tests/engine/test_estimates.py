"""Limits that are estimated before anything is measured."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llamatune_torch import Integer, LlamaTune, Outcome, SearchSpace, Study
from llamatune_torch.constraints import Estimate, read_constraints
from llamatune_torch.engine.cube import Cube
from llamatune_torch.engine.estimates import LOCAL, OFF, EstimatedLimit, likely_kept
from llamatune_torch.engine.features import Features
from llamatune_torch.engine.measured import measurements
from llamatune_torch.study import Goal
from llamatune_torch.trial import Cause, Trial, TrialState

SPACE = SearchSpace({"batch": Integer(1, 64, prior="log-uniform"), "lr": (0.0, 1.0)})


def memory(batch: float) -> float:
    return 2 + 0.25 * batch


def study_of(outcomes: dict[int, float] | None = None, limit: str = "<= 8", failed: tuple[int, ...] = ()) -> Study:
    """Estimates all over the space; trials with these outcomes, by batch."""
    estimates = tuple(
        Estimate("memory_gb", {"batch": b, "lr": lr}, memory(b))
        for i, b in enumerate((1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64))
        for lr in (0.1 + 0.07 * i, 0.9 - 0.07 * i)
    )
    trials = tuple(
        Trial(
            i,
            {"batch": batch, "lr": 0.1 * i},
            0,
            "sobol",
            TrialState.FAILED if batch in failed else TrialState.COMPLETE,
            value=None if batch in failed else 0.5,
            cause=Cause.OUT_OF_MEMORY if batch in failed else None,
            outcomes={"memory_gb": value},
        )
        for i, (batch, value) in enumerate((outcomes or {}).items())
    )
    goal = Goal(constraints=read_constraints({"memory_gb": limit}))
    return Study(SPACE, goal, trials=trials, estimates=estimates)


def model_of(study: Study) -> EstimatedLimit:
    like = torch.zeros(0, 2, dtype=torch.float64)
    (limit,) = study.constraints
    return EstimatedLimit(study, Features(SPACE), measurements(study, like, limit), limit)


def predicted(study: Study, batch: int, lr: float = 0.5) -> tuple[float, float]:
    X = Cube(SPACE).encode_all([{"batch": batch, "lr": lr}]).unsqueeze(-2)
    mean, spread = model_of(study).moments(X)
    return math.exp(float(mean)), float(spread)


@pytest.mark.parametrize("batch", [1, 3, 10, 20, 40, 64])
def test_before_anything_is_measured_the_estimates_count_to_within_their_usual_error(batch: int) -> None:
    mean, spread = predicted(study_of(), batch)
    assert mean == pytest.approx(memory(batch), rel=0.05)
    assert spread == pytest.approx(math.hypot(OFF, LOCAL), rel=0.15)


@pytest.mark.parametrize("factor", [0.8, 1.25, 1.5])
def test_three_measurements_teach_by_what_factor_the_estimates_are_off(factor: float) -> None:
    study = study_of({batch: factor * memory(batch) for batch in (2, 8, 16)})
    for batch in (4, 32, 64):
        mean, spread = predicted(study, batch)
        assert mean == pytest.approx(factor * memory(batch), rel=0.06)
        assert spread < 0.12


def test_many_measurements_teach_where_the_factor_differs() -> None:
    off = {batch: 1.0 if batch < 10 else 1.2 for batch in (1, 2, 4, 6, 8, 12, 16, 24, 32, 40, 48)}
    study = study_of({batch: factor * memory(batch) for batch, factor in off.items()})
    assert predicted(study, 3)[0] == pytest.approx(memory(3), rel=0.05)
    assert predicted(study, 28)[0] == pytest.approx(1.2 * memory(28), rel=0.05)


def test_a_run_that_went_out_of_memory_has_taken_at_least_so_much() -> None:
    unknown, known = study_of({4: memory(4)}), study_of({4: memory(4), 20: 1.4 * memory(20)}, failed=(20,))
    assert predicted(known, 20)[0] > 1.1 * predicted(unknown, 20)[0]


def test_a_measurement_of_nothing_does_little_harm() -> None:
    study = study_of({2: memory(2), 4: 0.0, 8: memory(8), 16: memory(16)})
    mean, spread = predicted(study, 12)
    assert 0.5 * memory(12) < mean < memory(12)
    assert math.isfinite(spread)


@given(st.floats(-3, 3), st.floats(-3, 3))
@settings(max_examples=20)
def test_probabilities_are_those_of_a_log_normal(low: float, high: float) -> None:
    lower, upper = sorted((memory(8) * math.exp(0.2 * low), memory(8) * math.exp(0.2 * high)))
    study = study_of({4: memory(4)})
    study = Study(SPACE, Goal(constraints=read_constraints({"memory_gb": [f">= {lower}", f"<= {upper}"]})),
                  trials=study.trials, estimates=study.estimates)  # fmt: skip
    X = Cube(SPACE).encode_all([{"batch": 8, "lr": 0.5}]).unsqueeze(-2)
    model = model_of(study)
    mean, spread = (float(m) for m in model.moments(X))
    normal = torch.distributions.Normal(mean, spread)
    expected = float(normal.cdf(torch.tensor(math.log(upper))) - normal.cdf(torch.tensor(math.log(lower))))
    assert float(model.log_probability(X).exp()) == pytest.approx(expected, abs=2e-6)


def test_points_that_more_likely_than_not_keep_the_limits_are_marked() -> None:
    mark = likely_kept(study_of())
    assert mark is not None
    X = Cube(SPACE).encode_all([{"batch": batch, "lr": 0.5} for batch in (4, 16, 40, 64)])
    assert mark(X).tolist() == [True, True, False, False]
    assert likely_kept(Study(SPACE)) is None


def evaluate(params: dict[str, float]) -> Outcome:
    """More is better, until memory runs out at 8 GB; estimates are a sixth too low."""
    taken = 1.2 * memory(params["batch"])
    if taken > 8:
        return Outcome.failure("out of memory", outcomes={"memory_gb": 8.0})
    return Outcome(params["batch"] - abs(params["lr"] - 0.4), outcomes={"memory_gb": taken})


def test_a_search_with_estimates_knows_the_wall_before_the_first_crash() -> None:
    def failed(seed: int, **estimates: Any) -> list[int]:
        constraints = {"memory_gb": "<= 8"}
        tuner = LlamaTune(SPACE, evaluate, 10, constraints=constraints, seed=seed, progress=False, **estimates)
        tuner.optimize()
        assert tuner.study.best_value > 14  # of 18
        return [trial.number for trial in tuner.study.failed]

    warned = [failed(seed, estimates={"memory_gb": lambda p: memory(p["batch"])}) for seed in range(2)]
    unwarned = [failed(seed) for seed in range(2)]
    assert not any(warned)
    assert any(unwarned)
