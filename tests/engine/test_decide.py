"""The laws that hold for every strategy: purity, the budget, progress, and what may be decided about whom."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from random import Random
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import SPACE, carry, crossing, kinds, next_of, plain, play, record, run, search

from llamatune_torch import BudgetSpentError, Cause, LlamaTune, SearchSpace, StillRunningError, Trial, TrialState
from llamatune_torch.decisions import Discard, Finish, Resume, Start, Wait
from llamatune_torch.engine.decide import STRATEGIES, decide, find_strategy
from llamatune_torch.engine.strategies.strategy import own_runs, spent_on_default
from llamatune_torch.settings import Settings, StrategyName
from llamatune_torch.storage.document import from_document, to_document
from llamatune_torch.storage.reader import Snapshot

NAMES = sorted(STRATEGIES)
PAUSING = [name for name in NAMES if name != "full"]
FINITE = {"x": [0.0, 0.25, 0.5, 0.75, 1.0], "y": [0.0]}


def fates(seed: int, kinds: list[str]) -> Any:
    """A fate for each leg of each trial, always the same."""
    return lambda trial: Random(f"{seed} {trial.number} {trial.pauses}").choice(kinds)


def test_each_name_is_a_strategy() -> None:
    assert {"auto", *NAMES} == set(get_args(StrategyName))


@pytest.mark.parametrize(
    ("max_evals", "can_pause", "name"), [(4, True, "screen"), (3, True, "full"), (50, False, "full")]
)
def test_auto_screens_where_runs_can_pause_and_four_fit(max_evals: int, can_pause: bool, name: str) -> None:
    assert find_strategy(Settings(), max_evals, can_pause) == STRATEGIES[name](None)


# --- The default ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("workers", [1, 3])
def test_the_default_is_the_first_trial_and_trains_to_its_end_and_nothing_recommended_is_worse(
    name: str, workers: int
) -> None:
    for max_evals in (1, 2, 5, 9):
        for x in (0.05, 0.5, 0.97):
            tuner = search(max_evals, name, default={"x": x, "y": 0.5}, initial_points=[{"x": 0.3, "y": 0.5}])
            played = play(tuner, crossing, workers, steps=90)
            study = tuner.study
            first = study.trials[0]
            assert (first.params, first.origin, first.until, first.pauses) == ({"x": x, "y": 0.5}, "default", 1.0, 0)
            assert first == study.default_trial
            assert sum(trial.origin == "default" for trial in study.trials) == 1
            assert played.trained <= max_evals + 1e-6
            assert study.best_value >= (study.default_value or math.nan)
            assert (tuner.recommend().value or math.nan) >= (study.default_value or math.nan)


def test_the_default_is_none_of_the_runs_that_a_strategy_compares() -> None:
    space = SearchSpace(SPACE, default={"x": 0.5, "y": 0.5})
    default = run(0, [9.0] * 10, origin="default", params={"x": 0.5, "y": 0.5})
    for name in PAUSING:
        with_it = next_of(record(default, space=space), name, left=8, max_evals=9)
        assert with_it == next_of(record(), name, left=8, max_evals=8), name
    retried = default.given_up(Cause.SILENT, "its worker stalled", 0.0)
    again = run(1, [9.0] * 10, origin="retry", retry_of=0, params={"x": 0.5, "y": 0.5})
    assert own_runs(record(retried, again, space=space)) == []
    assert spent_on_default(record(retried, again, space=space)) == 1


def test_without_room_for_a_full_run_the_default_does_not_stand_in_the_way() -> None:
    space = SearchSpace(SPACE, default={"x": 0.5, "y": 0.5})
    (found,) = next_of(record(space=space), "screen", left=0.5)
    assert found == next_of(record(), "screen", left=0.5)[0]


# --- Progress, the budget, and who goes on ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25)
@given(
    max_evals=st.integers(1, 9),
    workers=st.integers(1, 4),
    seed=st.integers(0, 10**6),
    steps=st.sampled_from([10, 20, 90]),
    curve=st.sampled_from([plain, crossing]),
    direction=st.sampled_from(["maximize", "minimize"]),
)
def test_the_budget_is_kept_and_the_search_ends(
    name: str, max_evals: int, workers: int, seed: int, steps: int, curve: Any, direction: Any
) -> None:
    tuner = search(max_evals, name, direction=direction)
    played = play(tuner, curve, workers, Random(seed), steps=steps)
    study = tuner.study
    grain = 0.0 if name == "full" else len(study.trials) / steps  # runs pause where they evaluate
    assert played.trained <= max_evals + grain
    assert study.spent == pytest.approx(study.trained)
    assert study.trained == pytest.approx(played.trained)
    assert not study.pending
    assert max_evals - study.spent < 1  # what is left is too little for a run, or for what comes next
    if max_evals >= 5 or name == "full":
        assert study.completed


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25)
@given(max_evals=st.integers(1, 9), workers=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_failures_count_one_and_nothing_starts_beyond_the_budget(
    name: str, max_evals: int, workers: int, seed: int
) -> None:
    tuner = search(max_evals, name)
    fate = fates(seed, ["pauses", "pauses", "pauses", "fails", "breaks", "trains on"])

    def check(asked: LlamaTune) -> None:
        assert asked.study.spent <= max_evals + workers  # what runs may have failed, which nobody could know before

    played = play(tuner, plain, workers, Random(seed), fate, check=check)
    study = tuner.study
    assert not study.pending
    by_state = sum(1.0 if t.state in (TrialState.COMPLETE, TrialState.FAILED) else t.reached for t in study.trials)
    assert study.spent == pytest.approx(by_state)
    if workers == 1:  # one run that trains on, or fails, may take more than was foreseen
        assert study.spent < max_evals + 1
    assert played.trained <= study.spent + 1e-6


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("workers", [1, 4])
def test_runs_that_never_pause_keep_the_budget_too(name: str, workers: int) -> None:
    tuner = search(6, name)
    played = play(tuner, plain, workers, Random(1), lambda trial: "trains on")
    assert played.trained == tuner.study.spent == len(tuner.study.completed) == 6


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("kinds_of_runs", [["fails"], ["breaks"], ["breaks", "pauses"]])
def test_a_search_in_which_much_breaks_ends(name: str, workers: int, kinds_of_runs: list[str]) -> None:
    tuner = search(5, name)
    play(tuner, plain, workers, Random(2), fates(3, kinds_of_runs))
    assert not tuner.study.pending
    assert tuner.study.spent > 4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("workers", [1, 3])
def test_a_space_with_fewer_points_than_the_strategy_wants_is_finished(name: str, workers: int) -> None:
    tuner = search(9, name, FINITE)
    play(tuner, plain, workers, Random(0))
    study = tuner.study
    assert len({repr(trial.params) for trial in study.trials}) == len(study.trials) == 5
    assert study.completed, "no run has come to its end"
    assert study.best_params["x"] == 1.0
    if name != "asha":  # which never knows that nobody else comes
        assert not study.paused


@pytest.mark.parametrize("name", PAUSING)
def test_the_users_points_come_first(name: str) -> None:
    points = [{"x": 0.25, "y": 0.5}, {"x": 0.125}]
    tuner = search(4, name, initial_points=points)
    play(tuner)
    first, second, third = tuner.study.trials[:3]
    assert (first.params, first.origin) == (points[0], "initial")
    assert (second.params["x"], second.origin, third.origin) == (0.125, "initial", "sobol")


# --- Purity ----------------------------------------------------------------------------------------------------------


def reread(tuner: LlamaTune) -> Any:
    """The record after a round trip through JSON."""
    stored = Snapshot("s", tuner.study, {}, {}, 0.0)
    return from_document(json.loads(json.dumps(to_document(stored)))).study


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=8)
@given(max_evals=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_the_same_record_gives_the_same_decisions(name: str, max_evals: int, seed: int) -> None:
    tuner = search(max_evals, name, seed=seed)

    def check(asked: LlamaTune) -> None:
        strategy, left = asked.strategy, max_evals - asked.study.spent
        first = decide(asked.study, asked.settings, strategy, 1, left)
        assert decide(asked.study, asked.settings, strategy, 1, left) == first
        again = search(max_evals, name, seed=seed)
        assert decide(reread(asked), again.settings, again.strategy, 1, left) == first

    fate = fates(seed, ["pauses", "pauses", "pauses", "fails", "breaks"])
    play(tuner, plain, fate=fate, check=check)


@pytest.mark.parametrize("name", PAUSING)
def test_several_decisions_at_once_are_those_of_one_after_the_other(name: str) -> None:
    study = record(*(run(i, [i / 10]) for i in range(4)))
    together = next_of(study, name, n=6)
    one_by_one = []
    for _ in range(6):
        single = next_of(study, name)
        one_by_one += single
        if isinstance(single[-1], (Wait, Finish)):
            break
        study = carry(study, single)
    assert together == one_by_one


# --- The list of decisions -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scripted:
    """Decides as it was told."""

    script: tuple[Any, ...]
    least: float = 0.1

    def decide(self, study: Any, settings: Settings, left: float) -> Any:
        number = sum(t.state in (TrialState.STOPPED, TrialState.RUNNING) for t in study.trials)
        return self.script[min(number, len(self.script) - 1)]


def test_decisions_end_with_what_nothing_follows() -> None:
    study = record(run(0, [0.1]), run(1, [0.2]))
    script = (Discard(0, "bad"), Resume(1, 0.5, "good"), Wait("for it"))
    assert next_of(study, Scripted(script), n=1) == list(script[:2])
    assert next_of(study, Scripted(script), n=2) == list(script)
    assert next_of(study, Scripted((Discard(0, "bad"), Finish("over")))) == [Discard(0, "bad"), Finish("over")]


def test_what_runs_takes_its_share_until_a_run_has_paused_a_whole_one() -> None:
    """Nobody knows yet that runs can pause, so that each may cost a full run."""
    assert kinds(next_of(record(), "screen", left=2, n=9)) == ["start 0.1", "start 0.1", "wait"]
    paused = record(run(0, [0.5]))
    assert kinds(next_of(paused, "screen", left=0.25, n=9)) == ["start 0.1", "start 0.1", "finish"]


def test_what_is_stopped_is_stopped_where_nothing_new_is_left_to_start() -> None:
    space = {"x": [0.0, 0.5], "y": [0.0]}
    done = Trial(0, {"x": 0.0, "y": 0.0}, 0, "sobol", TrialState.COMPLETE, value=0.5, pauses=3)
    left_over = Trial(1, {"x": 0.5, "y": 0.0}, 1, "sobol", TrialState.PAUSED, until=0.1, reached=0.1, pauses=1)
    assert kinds(next_of(record(done, left_over, space=space), "screen"))[0] == "discard 1"
    assert kinds(next_of(record(done, left_over, space=space), "screen"))[1:] == ["finish"]


def test_ask_says_whether_to_wait_or_to_go() -> None:
    tuner = search(4, "successive_halving", rungs=[0.5, 1.0])
    first, second = tuner.ask(), tuner.ask()
    with pytest.raises(StillRunningError, match="nothing is to start until one of 2 running trials ends"):
        tuner.ask()
    for trial, value in ((first, 0.1), (second, 0.2)):
        tuner.report(trial, 1, value, 0.5)
        tuner.pause(trial)
    assert tuner.ask().number == 1
    assert tuner.study.trials[0].state is TrialState.STOPPED
    tuner.tell(1, 0.3)
    while True:
        try:
            trial = tuner.ask()
        except BudgetSpentError:
            break
        tuner.report(trial, 1, 0.0, 0.5)
        tuner.pause(trial) if trial.until < 1 else tuner.tell(trial, 0.5)
    assert tuner.study.spent == 4


def test_a_pause_without_any_report_is_a_pause_at_the_share_it_was_started_for() -> None:
    for name in PAUSING:
        tuner = search(3, name)
        for _ in range(200):
            try:
                trial = tuner.ask()
            except BudgetSpentError:
                break
            tuner.pause(trial) if trial.until < 1 else tuner.tell(trial, 0.5)
        else:
            pytest.fail(f"{name} never ends")
        assert tuner.study.spent <= 3 + 1e-9, name


def test_full_finishes_what_has_paused() -> None:
    study = record(run(0, [0.1] * 3), run(1, [0.1] * 10))
    assert kinds(next_of(study, "full", n=2)) == ["resume 0 1", "start 1"]
    assert math.isclose(next_of(study, "full", left=0.7)[0].until, 1.0)  # type: ignore[union-attr]
    assert isinstance(next_of(study, "full", left=0.5)[0], Finish)
    assert all(isinstance(decision, Start) for decision in next_of(record(), "full", n=3))
