"""As many runs as the budget allows, and the best of them finished."""

from __future__ import annotations

from random import Random

import pytest
from simulated import crossing, kinds, next_of, play, record, run, search

from llamatune_torch import TrialState
from llamatune_torch.engine.strategies.top_k import TopK

RUNNING, FAILED, STOPPED = TrialState.RUNNING, TrialState.FAILED, TrialState.STOPPED


@pytest.mark.parametrize(
    ("max_evals", "started", "finished"),
    [(4, 22, 2), (8, 44, 4), (12, 84, 4), (16, 88, 8), (2, 2, 2)],  # FIDELITY: screen 22 at 10 %, finish 2
)
def test_the_budget_is_laid_out_from_the_start(max_evals: int, started: int, finished: int) -> None:
    tuner = search(max_evals, "top_k")
    play(tuner)
    study = tuner.study
    assert len(study.trials) == started
    assert len(study.completed) == finished
    assert len(study.in_state(STOPPED)) == started - finished
    assert study.spent == pytest.approx(max_evals)
    best = sorted((t.params["x"] for t in study.trials), reverse=True)[:finished]
    assert sorted((t.params["x"] for t in study.completed), reverse=True) == best


def test_early_values_choose_and_nothing_else() -> None:
    tuner = search(4, "top_k")
    play(tuner, crossing)
    early = sorted(tuner.study.trials, key=lambda t: -t.curve.values[1])  # reports at every twentieth
    assert {t.number for t in early[:2]} == {t.number for t in tuner.study.completed}


def test_step_by_step() -> None:
    strategy = TopK(rung=0.5, k=1)
    assert kinds(next_of(record(), strategy, left=2, n=2)) == ["start 0.5", "start 0.5"]
    one = record(run(0, [0.1] * 5), run(1, [], RUNNING, 0.5), run(2, [0.3] * 5))
    assert kinds(next_of(one, strategy, left=0.5)) == ["wait"]
    two = record(run(0, [0.1] * 5), run(1, [0.2] * 5), run(2, [0.3] * 5))
    assert kinds(next_of(two, strategy, left=0.5)) == ["resume 2 1"]
    three = record(run(0, [0.1] * 5), run(1, [0.2] * 5), run(2, [0.3] * 10))
    assert kinds(next_of(three, strategy, left=0.0)) == ["discard 0", "discard 1", "finish"]


def test_a_run_that_fails_on_its_way_is_not_replaced_by_a_worse_one() -> None:
    strategy = TopK(rung=0.5, k=1)
    study = record(run(0, [0.1] * 5), run(1, [0.2] * 5), run(2, [0.3] * 7, FAILED))
    assert kinds(next_of(study, strategy, left=0.0)) == ["discard 0", "discard 1", "finish"]


def test_with_a_rung_of_ones_own() -> None:
    assert kinds(next_of(record(), "top_k", rungs=[0.2, 1.0], left=4)) == ["start 0.2"]


@pytest.mark.parametrize("workers", [2, 4])
def test_several_workers_finish_the_same_runs(workers: int) -> None:
    numbers = []
    for n in (1, workers):
        tuner = search(4, "top_k")
        play(tuner, workers=n, chance=Random(5))
        numbers.append(sorted(t.number for t in tuner.study.completed))
    assert numbers[0] == numbers[1]
