"""The opening, step by step: FIDELITY's policy with one worker and with four."""

from __future__ import annotations

import math
from random import Random

import pytest
from simulated import carry, kinds, next_of, play, record, run, search

from llamatune_torch import Study, Trial, TrialState
from llamatune_torch.decisions import Discard, Finish, Start
from llamatune_torch.engine.decide import decide
from llamatune_torch.engine.initial import initial_suggestions
from llamatune_torch.engine.strategies.screen import Screen
from llamatune_torch.engine.suggest import suggest
from llamatune_torch.settings import Settings
from llamatune_torch.trial import Direction

COMPLETE, FAILED, RUNNING, STOPPED = TrialState.COMPLETE, TrialState.FAILED, TrialState.RUNNING, TrialState.STOPPED


def batch(first: int = 0, best: int = 3, n: int = 10) -> list[Trial]:
    """Runs that have got to a tenth; the ``best``-th of them has the best value."""
    return [run(first + i, [1.0 if i == best else i / 100]) for i in range(n)]


def chosen(number: int, value: float = 0.5) -> Trial:
    """A finished run that paused on its way."""
    return run(number, [value] * 10, pauses=3)


def finished(number: int, value: float = 0.5) -> Trial:
    """A run that was started to train to its end."""
    return run(number, [value] * 10)


# --- One worker ------------------------------------------------------------------------------------------------------


def test_ten_points_of_the_initial_design_train_to_a_tenth() -> None:
    study = record()
    for number in range(10):
        (decision,) = next_of(study, "screen")
        (expected,) = initial_suggestions(study, Settings(n_initial=10**6), 1)
        assert decision == Start.of(expected, 0.1)
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
    runs = [*batch()[:3], chosen(3, -9.0), *batch()[4:]]  # however bad it has turned out
    runs = [t if t.state is COMPLETE else t.stopped("left over", 0.0) for t in runs]
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
        runs += [chosen(10 * i + j, value) if j == 3 else run(10 * i + j, [rest]) for j in range(10)]
    return runs


def test_the_leftovers_of_a_batch_are_stopped_when_one_of_it_has_finished() -> None:
    decisions = next_of(record(*opened((0.5, 0.9))), "screen")
    assert [d.number for d in decisions if isinstance(d, Discard)] == [i for i in range(10) if i != 3]
    assert {d.reason for d in decisions if isinstance(d, Discard)} == {
        "batch 1 of the opening has finished a better run"
    }
    assert kinds(decisions)[-1] == "start 0.1"


def closed(*more: Trial, values: tuple[float, float] = (0.5, 0.6), rest: float = 0.1) -> Study:
    """The record after an opening, with a final of each value and stopped runs; then ``more`` runs."""
    runs = [t if t.state is COMPLETE else t.stopped("left over", 0.0) for t in opened(*((v, rest) for v in values))]
    return record(*runs, *more)


def test_the_control_is_the_next_point_of_the_initial_design() -> None:
    study = closed()
    (decision,) = decide(study, Settings(), Screen())
    (expected,) = initial_suggestions(study, Settings(n_initial=10**6), 1)
    assert decision == Start.of(expected)


def test_a_control_that_beats_none_of_the_chosen_hands_over_to_the_engine() -> None:
    study = closed(finished(20, 0.4))
    (decision,) = decide(study, Settings(strategy="screen"), Screen())
    (expected,) = suggest(study, Settings(n_initial=3))
    assert decision[:3] == Start.of(expected)[:3]
    assert expected.origin == "surrogate"


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@pytest.mark.parametrize("control", [0.55, 0.7])
def test_a_control_that_beats_one_of_the_chosen_prolongs_the_design_until_six_have_finished(
    control: float, direction: Direction
) -> None:
    sign = 1.0 if direction == "maximize" else -1.0
    runs = list(closed(finished(20, sign * control), values=(sign * 0.5, sign * 0.6)).trials)
    origins = []
    for number in range(21, 25):
        (decision,) = decide(record(*runs, direction=direction), Settings(), Screen())
        assert isinstance(decision, Start)
        origins.append((decision.origin, decision.until))
        runs.append(finished(number, 0.0))
    assert origins == [("sobol", 1.0)] * 3 + [("surrogate", 1.0)]


def test_meanwhile_others_take_what_the_engine_proposes() -> None:
    decisions = decide(closed(), Settings(), Screen(), n=3)
    assert [(d.origin, d.until) for d in decisions if isinstance(d, Start)] == [
        ("sobol", 1.0), ("surrogate", 1.0), ("surrogate", 1.0)
    ]  # fmt: skip


def test_a_control_that_failed_says_nothing() -> None:
    (decision,) = decide(closed(run(20, [], FAILED, 1.0)), Settings(), Screen())
    assert isinstance(decision, Start)
    assert decision.origin == "surrogate"


def test_a_search_that_has_finished_six_runs_has_no_opening() -> None:
    runs = [finished(i, i / 10) for i in range(6)]
    (decision,) = decide(record(*runs), Settings(), Screen())
    assert isinstance(decision, Start)
    assert (decision.origin, decision.until) == ("surrogate", 1.0)


def test_what_is_stopped_says_nothing_to_the_engine() -> None:
    """A partial value is no observation: other ones would give the same proposal."""
    one, other = (closed(finished(20, 0.4), rest=rest) for rest in (0.1, -7.0))
    (mine,), (theirs,) = decide(one, Settings(), Screen()), decide(other, Settings(), Screen())
    assert isinstance(mine, Start)
    assert mine[:3] == theirs[:3]


def test_n_initial_says_how_many_more_come_before_the_engine() -> None:
    study = closed(finished(20, 0.4))
    origins = []
    for n_initial in (21, 22):  # 21 are on record
        (decision,) = decide(study, Settings(n_initial=n_initial), Screen())
        assert isinstance(decision, Start)
        assert decision.until == 1.0
        origins.append(decision.origin)
    assert origins == ["surrogate", "sobol"]


@pytest.mark.parametrize(("left", "word"), [(1.0, "start 1"), (0.9, "finish"), (0.0, "finish")])
def test_no_run_starts_that_cannot_be_finished(left: float, word: str) -> None:
    assert kinds(next_of(closed(), "screen", left)) == [word]


def test_nothing_goes_on_that_has_no_budget() -> None:
    (decision,) = next_of(record(*batch(best=0)), "screen", 0.05)
    assert isinstance(decision, Finish)
    assert "trial 0 takes 0.1 more" in decision.reason


def test_finals_that_have_diverged_prolong_the_opening() -> None:
    bad = -math.inf
    assert kinds(next_of(record(*opened((bad, 0.1))), "screen")) == ["resume 0 0.2"]  # of the same batch
    third = [*closed(values=(0.5, bad)).trials, *batch(20)]
    assert kinds(next_of(record(*third), "screen")) == ["resume 23 0.2"]


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
    assert (tuner.study.completed[2].number, tuner.study.completed[2].origin) == (20, "sobol")
    assert len(tuner.study.in_state(STOPPED)) == 18
    assert len(tuner.study.completed) == 2 + 26


# --- Several workers -------------------------------------------------------------------------------------------------


def both(*changed: Trial) -> list[Trial]:
    """Two batches at a tenth, their fourth runs the best, with some runs in the place of others."""
    runs = [*batch(), *batch(10)]
    for other in changed:
        runs[other.number] = other
    return runs


def on_its_way(number: int, until: float) -> Trial:
    return run(number, [1.0], RUNNING, until, pauses=1)


def test_a_free_worker_begins_what_has_not_begun_before_it_takes_up_a_run() -> None:
    assert kinds(next_of(record(*batch(n=8)), "screen", n=4)) == ["start 0.1"] * 4
    running = [*batch(n=8), run(8, [], RUNNING, 0.1), run(9, [], RUNNING, 0.1)]
    assert kinds(next_of(record(*running), "screen")) == ["start 0.1"]


def test_then_the_best_idle_run_of_each_batch() -> None:
    assert kinds(next_of(record(*both()), "screen", n=2)) == ["resume 3 0.2", "resume 13 0.2"]
    assert kinds(next_of(record(*both(on_its_way(3, 0.2), on_its_way(13, 0.4))), "screen")) == ["resume 9 0.2"]


def test_a_batch_with_a_run_on_its_last_leg_takes_up_no_other() -> None:
    study = record(*both(on_its_way(3, 1.0), on_its_way(13, 0.4)))
    assert kinds(next_of(study, "screen")) == ["resume 19 0.2"]


def test_where_all_are_on_their_last_leg_the_control_begins_and_then_spare_runs_go_on() -> None:
    study = record(*both(on_its_way(3, 1.0), on_its_way(13, 1.0)))
    assert kinds(next_of(study, "screen", n=3)) == ["start 1", "resume 9 0.2", "resume 8 0.2"]
    assert kinds(next_of(study, "screen", left=0.9)) == ["resume 9 0.2"]
    assert kinds(next_of(study, "screen", left=0.05)) == ["wait"]


def test_it_waits_while_nothing_has_finished_and_all_of_the_opening_runs() -> None:
    four = [on_its_way(i, 1.0) for i in range(20)]
    assert kinds(next_of(record(*four), "screen", n=2)) == ["start 1", "wait"]


def test_four_workers_take_little_more_than_one() -> None:
    costs = []
    for workers in (1, 4):
        tuner = search(30, "screen")
        play(tuner, workers=workers, chance=Random(0))
        opening = [t for t in tuner.study.trials if t.number < 20]
        costs.append(sum(t.share for t in opening))
    assert costs[0] <= costs[1] <= 1.6 * costs[0]


def test_decisions_for_four_are_carried_out_one_after_the_other() -> None:
    study = record(*both())
    together = next_of(study, "screen", n=4)
    assert kinds(together) == ["resume 3 0.2", "resume 13 0.2", "resume 9 0.2", "resume 8 0.2"]
    assert len(carry(study, together).pending) == 4
