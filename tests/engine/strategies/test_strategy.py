"""What the strategies have in common: runs that repeat each other as one, values at a share, and their order."""

from __future__ import annotations

import math

import pytest
from simulated import record, run

from llamatune_torch import Curve, Study, Trial, TrialState
from llamatune_torch.decisions import Finish, Resume, Start
from llamatune_torch.engine.strategies.strategy import (
    best_at,
    best_first,
    newest,
    next_rung,
    own_runs,
    resume,
    start,
    value_at,
)
from llamatune_torch.settings import Settings

COMPLETE, LOST, PAUSED = TrialState.COMPLETE, TrialState.LOST, TrialState.PAUSED


def numbers(trials: list[Trial]) -> list[int]:
    return [trial.number for trial in trials]


def test_own_runs_stand_for_their_retries_in_the_order_in_which_they_began() -> None:
    trials = [
        run(0, [0.1], LOST),
        run(1, [0.1]),
        run(2, [0.1] * 10, origin="added"),
        run(3, [0.1], LOST),
        run(4, [0.1], LOST, origin="retry", retry_of=0),
        run(5, [0.2], origin="retry", retry_of=0),
    ]
    assert numbers(own_runs(record(*trials))) == [5, 1]


@pytest.mark.parametrize(
    ("share", "value"), [(0.05, 1.0), (0.1, 1.0), (0.15, 2.0), (0.2, 2.0), (0.5, 3.0), (1.0, math.nan)]
)
def test_the_value_at_a_share_is_the_first_at_or_beyond_it(share: float, value: float) -> None:
    assert value_at(run(0, [1.0, 2.0, 3.0, 3.0, 3.0]), share) == pytest.approx(value, nan_ok=True)


def test_the_value_at_the_end_may_have_no_point() -> None:
    without = Trial(0, {}, 0, "sobol", COMPLETE, value=0.5)
    assert value_at(without, 1.0) == 0.5
    assert math.isnan(value_at(without, 0.5))
    unknown = Trial(0, {}, 0, "sobol", PAUSED, curve=Curve((1.0,), (0.5,), (None,)), reached=0.1)
    assert math.isnan(value_at(unknown, 0.1))


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_the_best_first_and_the_oldest_among_equals(direction: str) -> None:
    trials = [run(0, [1.0]), run(1, [2.0, 0.5]), run(2, [1.0]), run(3, []), run(4, [math.nan]), run(5, [3.0] * 10)]
    study = record(*trials, direction=direction)
    order = [5, 0, 2, 1] if direction == "maximize" else [1, 0, 2, 5]
    assert numbers(best_first(study, trials)) == [*order, 3, 4]


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_the_best_at_a_share_are_of_those_that_have_got_there(direction: str) -> None:
    silent = Trial(4, {}, 0, "sobol", PAUSED, reached=0.2, pauses=1)
    trials = [run(0, [1.0]), run(1, [2.0, 0.5]), run(2, [0.0, 0.7]), silent, run(5, [0.1] * 10)]
    study = Study(record(direction=direction).space, record(direction=direction).goal)
    order = [2, 1, 5] if direction == "maximize" else [5, 1, 2]
    assert numbers(best_at(study, trials, 0.2)) == [*order, 4]  # what has no value there is the last


def test_newest_values_and_next_rungs() -> None:
    assert newest(run(0, [1.0, 2.0])) == 2.0
    assert math.isnan(newest(run(0, [])))
    rungs = (0.1, 1 / 3, 1.0)
    assert [next_rung(rungs, reached) for reached in (0.0, 0.1, 0.3, 1 / 3 - 1e-9, 0.9)] == [
        0.1,
        1 / 3,
        1 / 3,
        1.0,
        1.0,
    ]


def test_starts_and_resumes_need_their_share_of_the_budget() -> None:
    study = record()
    assert isinstance(start(study, Settings(), 0.1, 0.1), Start)
    assert start(study, Settings(), 0.1, 0.09) == Finish(
        "of the budget, 0.09 full runs are left, but the next run takes 0.1"
    )
    paused = run(0, [0.1] * 4)
    assert resume(paused, 1.0, 0.6, "good") == Resume(0, 1.0, "good")
    assert isinstance(resume(paused, 1.0, 0.59, "good"), Finish)
    assert resume(paused, 0.5, 0.1 - 1e-12, "sums of shares miss").until == 0.5  # type: ignore[union-attr]
