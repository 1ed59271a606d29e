"""ASHA against Algorithm 2 of its paper and against Optuna's asynchronous successive halving."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import kinds, next_of, play, record, run, search

from llamatune_torch import Trial, TrialState
from llamatune_torch.engine.strategies.asha import Asha

RUNNING, FAILED, STOPPED = TrialState.RUNNING, TrialState.FAILED, TrialState.STOPPED
TENTHS = Asha((0.1, 0.5, 1.0))  # one in five goes on, then one in two


def at(number: int, value: float, tenths: int = 1) -> Trial:
    return run(number, [value] * tenths)


def test_a_new_run_starts_until_one_in_eta_can_go_on() -> None:
    for n in range(5):
        assert kinds(next_of(record(*(at(i, i) for i in range(n))), TENTHS)) == ["start 0.1"]
    assert kinds(next_of(record(*(at(i, i) for i in range(5))), TENTHS)) == ["resume 4 0.5"]
    assert kinds(next_of(record(*(at(i, i) for i in range(5)), direction="minimize"), TENTHS)) == ["resume 0 0.5"]


def test_who_has_gone_on_holds_its_place() -> None:
    runs = [at(i, i) for i in range(4)] + [run(4, [4.0], RUNNING, 0.5, pauses=1)]
    assert kinds(next_of(record(*runs), TENTHS)) == ["start 0.1"]
    more = [at(i, 0) for i in range(5, 9)]
    assert kinds(next_of(record(*runs, *more), TENTHS)) == ["start 0.1"]  # nine
    assert kinds(next_of(record(*runs, *more, at(9, 3.5)), TENTHS)) == ["resume 9 0.5"]  # ten: two places


def test_the_highest_rung_comes_first() -> None:
    runs = [at(0, 0.9, 5), at(1, 0.8, 5), *(at(i, i) for i in range(2, 13))]
    assert kinds(next_of(record(*runs), TENTHS)) == ["resume 0 1"]
    runs[0] = run(0, [0.9] * 5, STOPPED)
    assert kinds(next_of(record(*runs), TENTHS)) == ["resume 12 0.5"]


def test_failed_runs_count_where_they_have_got_to() -> None:
    runs = [at(i, i) for i in range(4)]
    assert kinds(next_of(record(*runs, run(4, [9.0], FAILED)), TENTHS)) == ["start 0.1"]  # it has the place
    assert kinds(next_of(record(*runs, run(4, [-9.0], FAILED)), TENTHS)) == ["resume 3 0.5"]
    assert kinds(next_of(record(*runs, run(4, [], FAILED)), TENTHS)) == ["start 0.1"]


def test_a_worker_never_waits() -> None:
    running = [run(i, [], RUNNING, 0.1) for i in range(50)]
    assert kinds(next_of(record(*running), "asha", n=3)) == ["start 0.111"] * 3


@settings(max_examples=40)
@given(values=st.lists(st.integers(0, 20).map(float), min_size=1, max_size=30), seed=st.integers(0, 99))
def test_it_goes_on_as_algorithm_two_says(values: list[float], seed: int) -> None:
    """Li et al. (2020), ``get_job``, written down once more on plain lists, for runs in any stage."""
    chance, rungs = Random(seed), (0.1, 0.5, 1.0)
    reached = [chance.choice([1, 1, 1, 5]) for _ in values]
    runs = [at(i, value, tenths) for i, (value, tenths) in enumerate(zip(values, reached, strict=True))]
    expected = "start 0.1"
    for k in (1, 0):
        there = [i for i, tenths in enumerate(reached) if tenths >= 10 * rungs[k]]
        top = sorted(there, key=lambda i: (-values[i], i))[: math.floor(len(there) * rungs[k] / rungs[k + 1] + 1e-9)]
        waiting = [i for i in top if reached[i] < 10 * rungs[k + 1]]
        if waiting:
            expected = f"resume {waiting[0]} {rungs[k + 1]:.3g}"
            break
    assert kinds(next_of(record(*runs), TENTHS)) == [expected]


def test_optunas_asynchronous_halving_agrees_on_who_is_good_enough() -> None:
    """Optuna asks when a run comes to a rung, this package when a worker is free: compared for the newest run.

    Optuna lets one run go on too while fewer than ``eta`` have got there; so the comparison begins with the third.
    """
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    theirs = optuna.create_study(direction="maximize", pruner=pruner)
    chance, agreed, promoted = Random(3), 0, 0
    runs: list[Trial] = []
    for number in range(40):
        value = chance.random()
        trial = theirs.ask()
        trial.report(value, step=1)
        goes_on = not trial.should_prune()
        theirs.tell(trial, state=optuna.trial.TrialState.PRUNED)
        runs.append(run(number, [value], TrialState.PAUSED, reached=1 / 9))
        runs[-1] = Trial(**{**vars(runs[-1]), "curve": type(runs[-1].curve)((1.0,), (value,), (1 / 9,))})
        decision = kinds(next_of(record(*runs), "asha"))
        if len(runs) >= 3:
            assert (decision == [f"resume {number} 0.333"]) == goes_on, number
            agreed += 1
            promoted += goes_on
        if decision[0].startswith("resume"):  # it goes on, and holds its place
            n = int(decision[0].split()[1])
            runs[n] = runs[n].going_on(1 / 3, "", None, 0.0)
    assert agreed == 38
    assert promoted > 5


def test_a_search_finishes_the_best() -> None:
    tuner = search(6, "asha")
    play(tuner, workers=3, chance=Random(1), steps=18)
    assert max(t.params["x"] for t in tuner.study.completed) == max(t.params["x"] for t in tuner.study.trials)
