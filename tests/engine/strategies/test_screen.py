"""The opening, step by step: FIDELITY's policy with one worker and with four."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import pytest
from simulated import carry, kinds, next_of, play, record, run, search

from llamatune_torch import Trial, TrialState
from llamatune_torch.decisions import Discard, Finish, Start
from llamatune_torch.engine.decide import decide
from llamatune_torch.engine.initial import initial_suggestions
from llamatune_torch.engine.strategies.screen import Screen
from llamatune_torch.engine.suggest import suggest
from llamatune_torch.settings import Settings

COMPLETE, FAILED, RUNNING, STOPPED = TrialState.COMPLETE, TrialState.FAILED, TrialState.RUNNING, TrialState.STOPPED


def batch(first: int = 0, best: int = 3, n: int = 10) -> list[Trial]:
    """Runs that have got to a tenth; the ``best``-th of them has the best value."""
    return [run(first + i, [1.0 if i == best else i / 100]) for i in range(n)]


def finished(number: int, value: float = 0.5) -> Trial:
    return run(number, [value] * 10)


# --- One worker ------------------------------------------------------------------------------------------------------


def test_ten_points_of_the_initial_design_train_to_a_tenth() -> None:
    study = record()
    for number in range(10):
        (decision,) = next_of(study, "screen")
        (expected,) = initial_suggestions(study, Settings(n_initial=10**6), 1)
        assert decision == Start(*expected, 0.1)
        study = study.with_trial(run(number, [0.0], params=decision.params))
    assert kinds(next_of(study, "screen")) == ["resume 0 0.2"]  # the oldest among equals


@pytest.mark.parametrize(("reached", "until"), [(1, 0.2), (2, 0.4), (3, 0.4), (4, 1.0), (5, 1.0)])
def test_the_open_run_with_the_best_newest_value_goes_to_its_next_rung(reached: int, until: float) -> None:
    runs = batch()
    runs[7] = run(7, [0.0] * (reached - 1) + [2.0])
    assert kinds(next_of(record(*runs), "screen")) == [f"resume 7 {until:.3g}"]


def test_newest_values_count_whatever_share_they_are_from() -> None:
    runs = batch(best=3)  # 1.0 at a tenth
    runs[5] = run(5, [5.0, 5.0, 5.0, 0.9])  # was better, and is not any more
    assert kinds(next_of(record(*runs), "screen")) == ["resume 3 0.2"]
    runs[5] = run(5, [0.0, 0.0, 0.0, 1.1])
    assert kinds(next_of(record(*runs), "screen")) == ["resume 5 1"]
    assert kinds(next_of(record(*runs, direction="minimize"), "screen")) == ["resume 0 0.2"]


def test_a_batch_ends_with_its_first_final_and_the_next_begins() -> None:
    runs = [*batch()[:3], finished(3, -9.0), *batch()[4:]]  # however bad it has turned out
    assert kinds(next_of(record(*runs), "screen")) == ["start 0.1"]
    runs += batch(10, best=4)
    assert kinds(next_of(record(*runs), "screen")) == ["resume 14 0.2"]  # none of the first batch any more


def test_runs_that_failed_in_the_opening_take_a_place_and_are_not_taken_up() -> None:
    runs = batch()
    runs[3] = run(3, [], FAILED)
    assert kinds(next_of(record(*runs), "screen")) == ["resume 9 0.2"]


def test_a_lost_run_takes_no_place_in_its_batch() -> None:
    runs = batch()
    runs[3] = run(3, [], TrialState.LOST)
    assert kinds(next_of(record(*runs), "screen")) == ["start 0.1"]


def test_added_trials_are_no_part_of_the_opening() -> None:
    added = [Trial(i, {"x": i / 10, "y": 0.5}, 0, "added", COMPLETE, value=1.0) for i in range(5)]
    assert kinds(next_of(record(*added), "screen")) == ["start 0.1"]


def test_a_retry_stands_for_the_run_that_it_repeats() -> None:
    runs = batch()
    runs[3] = run(3, [1.0], TrialState.LOST)
    again = run(10, [1.0], retry_of=3, origin="retry")
    assert kinds(next_of(record(*runs, again), "screen")) == ["resume 10 0.2"]


def opened(*values: tuple[float, float]) -> list[Trial]:
    """Batches in which the fourth run is finished, with its value; the others are at a tenth."""
    runs: list[Trial] = []
    for i, (value, rest) in enumerate(values):
        runs += [finished(10 * i + j, value) if j == 3 else run(10 * i + j, [rest]) for j in range(10)]
    return runs


def test_leftovers_are_stopped_when_the_opening_has_ended() -> None:
    study = record(*opened((0.5, 0.1), (0.6, 0.9)))
    decisions = next_of(study, "screen", n_initial=None)
    stopped, last = decisions[:-1], decisions[-1]
    assert [d.number for d in stopped if isinstance(d, Discard)] == [i for i in range(20) if i % 10 != 3]
    assert {d.reason for d in stopped if isinstance(d, Discard)} == {
        "left over from the opening, in which others were better"
    }
    assert isinstance(last, Start)
    assert (last.until, last.origin) == (1.0, "surrogate")


def closed(*values: tuple[float, float]) -> Any:
    """The record after an opening and its leftovers."""
    return record(*(t if t.state is COMPLETE else t.stopped("left over", 0.0) for t in opened(*values)))


def test_then_the_engine_goes_on_from_the_finished_runs() -> None:
    study = closed((0.5, 0.1), (0.6, 0.9))
    settings = Settings(strategy="screen")
    (decision,) = decide(study, settings, Screen())
    (expected,) = suggest(study, Settings(n_initial=2))
    assert decision == Start(*expected, 1.0)
    assert decision.origin == "surrogate"


def test_what_is_stopped_says_nothing_to_the_engine() -> None:
    """A partial value is no observation: other ones would give the same proposal."""
    one, other = closed((0.5, 0.1), (0.6, 0.9)), closed((0.5, 0.4), (0.6, -7.0))
    assert decide(one, Settings(), Screen()) == decide(other, Settings(), Screen())


def test_n_initial_says_how_many_more_come_before_the_engine() -> None:
    study = closed((0.5, 0.1), (0.6, 0.9))
    origins = []
    for n_initial in (20, 21):  # twenty are on record
        (decision,) = decide(study, Settings(n_initial=n_initial), Screen())
        assert isinstance(decision, Start)
        assert decision.until == 1.0
        origins.append(decision.origin)
    assert origins == ["surrogate", "sobol"]


@pytest.mark.parametrize(("left", "word"), [(1.0, "start 1"), (0.9, "finish"), (0.0, "finish")])
def test_no_run_starts_that_cannot_be_finished(left: float, word: str) -> None:
    assert kinds(next_of(closed((0.5, 0.1), (0.6, 0.9)), "screen", left)) == [word]


def test_nothing_goes_on_that_has_no_budget() -> None:
    (decision,) = next_of(record(*batch(best=0)), "screen", 0.05)
    assert isinstance(decision, Finish)
    assert "trial 0 takes 0.1 more" in decision.reason


def test_finals_that_have_diverged_prolong_the_opening() -> None:
    bad = -math.inf
    assert kinds(next_of(record(*opened((bad, 0.1))), "screen")) == ["resume 0 0.2"]  # of the same batch
    third = record(*opened((0.5, 0.1)), *batch(10))
    assert kinds(next_of(third, "screen")) == ["resume 13 0.2"]


def test_rungs_are_the_users() -> None:
    assert kinds(next_of(record(), "screen", rungs=[0.25, 1.0])) == ["start 0.25"]
    assert kinds(next_of(record(), "screen", rungs=[100, 500, 1000])) == ["start 0.1"]
    runs = batch()
    assert kinds(next_of(record(*runs), "screen", rungs=[100, 500, 1000])) == ["resume 3 0.5"]


def test_it_costs_about_four_full_runs_until_the_engine_takes_over() -> None:
    tuner = search(30, "screen")
    spent = []
    play(tuner, check=lambda asked: spent.append(asked.study.spent) if len(asked.study.trials) == 20 else None)
    assert max(spent) == pytest.approx(2 * (10 * 0.1 + 0.9))
    assert tuner.study.completed[2].number == 20
    assert len(tuner.study.in_state(STOPPED)) == 18
    assert len(tuner.study.completed) == 2 + 26


# --- Several workers -------------------------------------------------------------------------------------------------


def test_four_start_what_has_not_started_before_they_take_up_a_run() -> None:
    runs = batch(n=8)
    assert kinds(next_of(record(*runs), "screen", n=4)) == ["start 0.1", "start 0.1", "resume 3 0.2", "resume 7 0.2"]


def test_a_run_goes_on_before_its_batch_is_complete() -> None:
    runs = [*batch(n=8), run(8, [], RUNNING, 0.1), run(9, [], RUNNING, 0.1)]
    assert kinds(next_of(record(*runs), "screen")) == ["resume 3 0.2"]


def test_what_runs_is_not_taken_up_again() -> None:
    runs = batch()
    runs[3] = run(3, [1.0], RUNNING, 0.2, pauses=1)
    assert kinds(next_of(record(*runs), "screen")) == ["resume 9 0.2"]


def test_a_free_worker_begins_the_next_batch_where_all_of_the_first_runs() -> None:
    runs = [run(i, [0.1], RUNNING, 0.2, pauses=1) for i in range(10)]
    assert kinds(next_of(record(*runs), "screen", n=2)) == ["start 0.1", "start 0.1"]


def test_it_waits_while_nothing_has_finished_and_all_of_the_opening_runs() -> None:
    four = [run(i, [0.1], RUNNING, 1.0, pauses=1) for i in range(40)]
    assert kinds(next_of(record(*four), "screen")) == ["wait"]


def test_four_workers_take_little_more_than_one() -> None:
    costs = []
    for workers in (1, 4):
        tuner = search(30, "screen")
        play(tuner, workers=workers, chance=Random(0))
        opening = [t for t in tuner.study.trials if t.number < 20]
        costs.append(sum(t.share for t in opening))
    assert costs[0] <= costs[1] <= 2 * costs[0]


def test_decisions_for_four_are_carried_out_one_after_the_other() -> None:
    study = record(*batch(n=9))
    together = next_of(study, "screen", n=3)
    assert kinds(together) == ["start 0.1", "resume 3 0.2", "resume 8 0.2"]
    assert len(carry(study, together).pending) == 3
