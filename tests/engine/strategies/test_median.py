"""The median rule, by hand and against Optuna's ``MedianPruner`` on the same curves."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import kinds, next_of, play, record, run, search

from llamatune_torch import Trial, TrialState
from llamatune_torch.decisions import Discard
from llamatune_torch.engine.strategies.median import Median

FIVE = [run(i, [i / 10] * 10) for i in range(5)]  # their median is 0.2 at every tenth


@pytest.mark.parametrize(
    ("own", "word"),
    [
        ([0.1], "discard"),
        ([0.2], "resume"),  # no worse
        ([0.3], "resume"),
        ([0.3, 0.1], "resume"),  # its best so far counts
        ([0.1, 0.1, 0.1], "discard"),
    ],
)
def test_a_run_ends_where_its_best_value_is_worse_than_the_median_there(own: list[float], word: str) -> None:
    (decision, *_) = kinds(next_of(record(*FIVE, run(5, own)), "median"))
    assert decision.split()[:2] == [word, "5"]
    if word == "resume":
        assert float(decision.split()[2]) == pytest.approx((len(own) + 1) / 10)


def test_small_values_may_be_good() -> None:
    study = record(*FIVE, run(5, [0.1]), direction="minimize")
    assert kinds(next_of(study, "median"))[0] == "resume 5 0.2"


def test_nothing_ends_before_five_have_finished() -> None:
    assert kinds(next_of(record(*FIVE[:4], run(4, [-1.0])), "median")) == ["resume 4 0.2"]


def test_the_others_are_compared_at_the_same_share() -> None:
    rising = [run(i, [j / 10 for j in range(10)]) for i in range(5)]
    assert kinds(next_of(record(*rising, run(5, [0.0, 0.0, 0.25])), "median"))[0] == "resume 5 0.4"
    assert kinds(next_of(record(*rising, run(5, [0.0, 0.0, 0.15])), "median"))[0] == "discard 5"


def test_runs_that_failed_or_were_stopped_are_no_others() -> None:
    study = record(*FIVE[:4], run(4, [9.0] * 9, TrialState.FAILED), run(5, [9.0], TrialState.STOPPED), run(6, [-1.0]))
    assert kinds(next_of(study, "median")) == ["resume 6 0.2"]


def test_points_are_the_engines_and_train_to_the_first_rung() -> None:
    from llamatune_torch.engine.suggest import suggest
    from llamatune_torch.settings import Settings

    study = record(*FIVE)
    (decision,) = next_of(study, "median", n_initial=4)
    (expected,) = suggest(study, Settings(n_initial=4))
    assert decision[:3] == (*expected[:2], 0.1)
    assert expected.origin == "surrogate"


@settings(max_examples=60)
@given(
    finished=st.lists(st.lists(st.integers(0, 9), min_size=10, max_size=10), min_size=0, max_size=8),
    own=st.lists(st.integers(0, 9), min_size=1, max_size=9),
    direction=st.sampled_from(["maximize", "minimize"]),
)
def test_optunas_median_pruner_decides_alike(finished: list[Any], own: list[int], direction: Any) -> None:
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=0)
    theirs = optuna.create_study(direction=direction, pruner=pruner)
    for values in finished:
        curve = {step: float(value) for step, value in enumerate(values, 1)}
        theirs.add_trial(optuna.trial.create_trial(value=float(values[-1]), intermediate_values=curve))
    trial = theirs.ask()
    for step, value in enumerate(own, 1):
        trial.report(float(value), step)
    ours = [run(i, [float(value) for value in values]) for i, values in enumerate(finished)]
    study = record(*ours, run(len(ours), [float(value) for value in own]), direction=direction)
    decision = next_of(study, "median")[0]
    assert isinstance(decision, Discard) == trial.should_prune()


def test_a_search_stops_half_of_what_comes_later() -> None:
    tuner = search(12, "median")
    play(tuner, chance=Random(0))
    study = tuner.study
    assert all(t.state is TrialState.COMPLETE for t in study.trials[:5])
    stopped = study.in_state(TrialState.STOPPED)
    assert stopped
    assert all(isinstance(t, Trial) and t.reached == pytest.approx(0.1) for t in stopped)
    assert study.best_params["x"] == max(t.params["x"] for t in study.trials)


def test_other_rungs_and_another_number_of_finished_runs() -> None:
    study = record(*FIVE[:2], run(2, [-1.0] * 5))
    assert kinds(next_of(study, Median((0.5, 1.0), num_finished=2)))[0] == "discard 2"
    assert kinds(next_of(record(), "median", rungs=[0.5, 1.0])) == ["start 0.5"]
