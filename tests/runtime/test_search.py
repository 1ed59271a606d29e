"""A search whose loop is somebody's own: ask, tell, report, abandon, add."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from llamatune_torch import (
    Integer,
    LlamaTune,
    Outcome,
    OutcomeError,
    ParamsError,
    Real,
    SettingsError,
    SpaceExhaustedError,
    TrialState,
    TrialStateError,
)

SPACE = {"x": Real(-1, 1), "n": Integer(1, 8)}


def hill(params: dict[str, Any]) -> float:
    return -((params["x"] - 0.3) ** 2) - 0.01 * params["n"]


def tuner(function: Callable[[dict[str, Any]], Any] | None = hill, max_evals: int = 4, **changes: Any) -> LlamaTune:
    """By default all trials are from the Sobol sequence: no fits, so it costs nothing."""
    return LlamaTune(SPACE, function, max_evals, **{"n_initial": 100, "progress": False, **changes})


def states(optimizer: LlamaTune) -> list[str]:
    return [trial.state.value for trial in optimizer.study.trials]


# --- ask and tell ------------------------------------------------------------------------------------------------


def test_ask_and_tell_by_hand() -> None:
    optimizer = tuner(None)
    trial = optimizer.ask()
    assert (trial.number, trial.state, trial.origin) == (0, TrialState.RUNNING, "sobol")
    finished = optimizer.tell(trial, 0.5)
    assert (finished.state, finished.value) == (TrialState.COMPLETE, 0.5)
    assert optimizer.study.trials == (finished,)
    assert optimizer.tell(optimizer.ask().number, 0.75).value == 0.75
    assert optimizer.study.best_value == 0.75


def test_the_repr_is_one_line_with_the_state_and_no_password(tmp_path: Path) -> None:
    optimizer = tuner(None, direction="minimize", metric="eval loss")
    assert repr(optimizer) == "<LlamaTune 'study': minimize 'eval loss', 0 trials, none complete>"
    for value in (0.25, 0.0125, Outcome.failure("nan")):
        optimizer.tell(optimizer.ask(), value)
    assert repr(optimizer) == "<LlamaTune 'study': minimize 'eval loss', 3 trials, best 0.0125>"
    assert repr(tuner(None, metric=None)) == "<LlamaTune 'study': no metric yet, 0 trials, none complete>"
    stored = tuner(None, storage=f"sqlite:///{tmp_path}/secret.db", name="it's mine")
    assert repr(stored) == """<LlamaTune "it's mine": maximize 'value', 0 trials, none complete>"""


def test_a_batch_holds_different_trials_that_can_be_told_in_any_order() -> None:
    optimizer = tuner(None, n_initial=2)
    for trial in optimizer.ask(2):
        optimizer.tell(trial, hill(trial.params))
    batch = optimizer.ask(3)
    assert [trial.number for trial in batch] == [2, 3, 4]
    assert [trial.origin for trial in batch] == ["surrogate"] * 3
    assert len({repr(trial.params) for trial in batch}) == 3
    for trial in reversed(batch):
        optimizer.tell(trial, hill(trial.params))
    assert states(optimizer) == ["complete"] * 5


def test_tell_takes_an_outcome_with_everything_measured() -> None:
    optimizer = tuner(None)
    trial = optimizer.ask()
    outcome = Outcome(0.5, outcomes={"memory_gb": 7.5}, cost=120.0, notes={"value": "best evaluation"})
    finished = optimizer.tell(trial, outcome)
    assert (finished.value, finished.cost) == (0.5, 120.0)
    assert finished.outcomes == {"memory_gb": 7.5}
    assert finished.notes == {"value": "best evaluation"}
    failed = optimizer.tell(optimizer.ask(), Outcome.failure("out of memory", cost=3.0))
    assert (failed.state, failed.reason, failed.value) == (TrialState.FAILED, "out of memory", None)


def test_reports_make_the_curve_of_a_running_trial_and_tell_keeps_it() -> None:
    optimizer = tuner(None)
    trial = optimizer.ask()
    optimizer.report(trial, 10, 0.4, 0.5)
    optimizer.report(trial.number, 20, 0.6, 1.0)
    with pytest.raises(OutcomeError, match="steps must not decrease, but got 5 after 20"):
        optimizer.report(trial, 5, 0.7)
    curve = optimizer.tell(trial, 0.6).curve
    assert (curve.steps, curve.values, curve.progress) == ((10, 20), (0.4, 0.6), (0.5, 1.0))


def test_an_abandoned_trial_is_lost_and_says_why() -> None:
    optimizer = tuner(None)
    lost = optimizer.abandon(optimizer.ask(), "the machine was taken away")
    assert (lost.state, lost.reason) == (TrialState.LOST, "the machine was taken away")
    assert optimizer.study.failed == []


def test_added_trials_inform_the_search_like_its_own() -> None:
    optimizer = tuner(None, n_initial=3)
    for i in range(3):
        added = optimizer.add_trial({"n": 2 * i + 1, "x": 0.3 * i}, 0.1 * i)
        assert (added.origin, added.state, added.params) == (
            "added",
            TrialState.COMPLETE,
            {"x": 0.3 * i, "n": 2 * i + 1},
        )
    assert optimizer.ask().origin == "surrogate"


def test_the_same_parameters_may_be_added_again_with_another_value() -> None:
    optimizer = tuner(None, n_initial=3)
    for value in (0.1, 0.3, 0.1):
        optimizer.add_trial({"x": 0.5, "n": 2}, value)
    assert [trial.value for trial in optimizer.study.completed] == [0.1, 0.3, 0.1]
    trial = optimizer.ask()
    assert trial.origin == "sobol"  # one place says nothing about the parameters
    assert trial.params != {"x": 0.5, "n": 2}


def test_params_outside_the_space_or_a_bad_score_add_nothing() -> None:
    optimizer = tuner(None)
    with pytest.raises(ParamsError, match=r"parameter 'x' must lie in \[-1, 1\], but got 3"):
        optimizer.add_trial({"x": 3, "n": 1}, 0.5)
    with pytest.raises(ParamsError, match=r"missing parameters \['n'\]"):
        optimizer.add_trial({"x": 0.5}, 0.5)
    with pytest.raises(OutcomeError, match=r"but got '0.5' \(str\)"):
        optimizer.add_trial({"x": 0.5, "n": 1}, "0.5")
    assert optimizer.study.trials == ()


ACTIONS = pytest.mark.parametrize(
    "act",
    [
        lambda optimizer, trial: optimizer.tell(trial, 0.5),
        lambda optimizer, trial: optimizer.report(trial, 1, 0.5),
        lambda optimizer, trial: optimizer.abandon(trial, "reason"),
    ],
    ids=["tell", "report", "abandon"],
)


@ACTIONS
def test_an_unknown_trial_is_an_error(act: Callable[[LlamaTune, Any], Any]) -> None:
    optimizer = tuner(None)
    optimizer.ask()
    for unknown in (1, -1, "0", None):
        with pytest.raises(TrialStateError, match=rf"trial {unknown!r} is unknown; this study has 1 trials"):
            act(optimizer, unknown)
    assert states(optimizer) == ["running"]


@ACTIONS
def test_a_finished_trial_is_an_error(act: Callable[[LlamaTune, Any], Any]) -> None:
    optimizer = tuner(None)
    trial = optimizer.ask()
    finished = optimizer.tell(trial, 0.25)
    for again in (trial, finished, 0):
        with pytest.raises(TrialStateError, match=r"trial 0 has finished \(complete\) and cannot change"):
            act(optimizer, again)
    assert optimizer.study.best_value == 0.25


@ACTIONS
def test_a_foreign_trial_is_an_error(act: Callable[[LlamaTune, Any], Any]) -> None:
    optimizer, other = tuner(None, seed=1), tuner(None, seed=2)
    optimizer.ask()
    with pytest.raises(TrialStateError, match=r"trial 0 belongs to another study"):
        act(optimizer, other.ask())
    twin = tuner(None, seed=1)
    with pytest.raises(TrialStateError, match=r"trial 0 belongs to another study"):
        act(optimizer, twin.ask())  # same parameters, same seed, asked for at another time


def test_a_score_that_is_no_number_leaves_the_trial_running() -> None:
    optimizer = tuner(None)
    trial = optimizer.ask()
    with pytest.raises(OutcomeError, match=r"but got '0.93' \(str\)"):
        optimizer.tell(trial, "0.93")
    assert optimizer.tell(trial, 0.93).state is TrialState.COMPLETE


def test_ask_refuses_a_batch_of_no_trials() -> None:
    for n in (0, -1, 1.5, True, "2"):
        with pytest.raises(SettingsError, match=rf"ask\(n\) needs an integer n >= 1, but got {n!r}"):
            tuner(None).ask(n)


def test_a_batch_that_a_finite_space_cannot_fill_starts_nothing() -> None:
    optimizer = LlamaTune({"c": ["a", "b"]})
    with pytest.raises(SpaceExhaustedError, match="all 2 points of the space are done or running"):
        optimizer.ask(3)
    assert optimizer.study.trials == ()


def test_trials_asked_for_from_several_threads_are_all_different() -> None:
    optimizer = tuner(None, n_initial=100)
    with ThreadPoolExecutor(4) as pool:
        trials = list(pool.map(lambda _: optimizer.ask(), range(12)))
        list(pool.map(lambda trial: optimizer.tell(trial, hill(trial.params)), trials))
    assert sorted(trial.number for trial in trials) == list(range(12))
    assert len({repr(trial.params) for trial in trials}) == 12
    assert states(optimizer) == ["complete"] * 12


@pytest.fixture
def two_threads() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("n_initial", [0, 100])
def test_asking_leaves_the_number_of_threads_as_it_was(two_threads: None, n_initial: int) -> None:
    optimizer = tuner(None, n_initial=n_initial)
    optimizer.add_trial({"x": 0.0, "n": 1}, 0.5)
    optimizer.ask()
    assert torch.get_num_threads() == 2
    with pytest.raises(SpaceExhaustedError):
        LlamaTune({"c": ["a", "b"]}).ask(3)
    assert torch.get_num_threads() == 2
    assert threading.active_count() < 20


def test_the_metric_can_be_settled_until_a_trial_has_completed() -> None:
    optimizer = tuner(None)
    optimizer.settle_metric("eval_loss", "minimize")
    assert (optimizer.study.metric, optimizer.study.direction) == ("eval_loss", "minimize")
    optimizer.tell(optimizer.ask(), 0.5)
    optimizer.settle_metric("loss", "minimize")
    with pytest.raises(TrialStateError, match="the direction cannot become 'maximize' after a trial has completed"):
        optimizer.settle_metric("eval_f1", "maximize")
