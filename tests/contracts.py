"""The promises of every kind of store; ``tests/storage/test_store.py`` holds each kind to them."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from llamatune_torch import (
    Cause,
    Curve,
    Integer,
    LlamaTune,
    Outcome,
    OutcomeError,
    Real,
    SpaceExhaustedError,
    TrialState,
    TrialStateError,
)

SPACE = {"x": Real(-1, 1), "n": Integer(1, 8)}


def hill(params: dict[str, Any]) -> float:
    return -((params["x"] - 0.3) ** 2) - 0.01 * params["n"]


class StoreContract:
    """Subclasses have a fixture ``make`` that builds a ``LlamaTune`` on a store of their kind, each a new study."""

    Make = Callable[..., LlamaTune]

    def test_each_study_has_a_token_of_its_own(self, make: Make) -> None:
        one, other = make(), make()
        assert one.token == one.token != other.token
        assert one.name
        assert one.retries >= 0

    def test_ask_tell_and_the_record(self, make: Make) -> None:
        tuner = make()
        trial = tuner.ask()
        assert (trial.number, trial.state, trial.origin) == (0, TrialState.RUNNING, "sobol")
        assert tuner.study.trials == (trial,)
        outcome = Outcome(0.5, outcomes={"memory_gb": 7.5}, cost=120.0, notes={"value": "best evaluation"})
        finished = tuner.tell(trial, outcome)
        assert tuner.study.trials == (finished,)
        assert (finished.state, finished.value, finished.cost) == (TrialState.COMPLETE, 0.5, 120.0)
        assert (finished.outcomes, finished.notes) == ({"memory_gb": 7.5}, {"value": "best evaluation"})
        assert finished.started is not None
        assert finished.finished is not None
        assert finished.started <= finished.finished
        failed = tuner.tell(tuner.ask().number, Outcome.failure("out of memory"))
        assert (failed.state, failed.reason, failed.error) == (TrialState.FAILED, "out of memory", "out of memory")
        lost = tuner.abandon(tuner.ask(), "taken away")
        assert (lost.state, lost.reason) == (TrialState.LOST, "taken away")
        assert tuner.study.spent == 2

    def test_values_at_the_ends_of_double_precision(self, make: Make) -> None:
        tuner = make(direction="minimize")
        for value in (math.inf, 5e-324, -1.7976931348623157e308, 0.1 + 0.2):
            assert tuner.tell(tuner.ask(), value).value == value
        assert [trial.value for trial in tuner.study.trials][-1] == 0.30000000000000004

    def test_curves_grow_and_go_with_the_result(self, make: Make) -> None:
        tuner = make()
        trial = tuner.ask()
        tuner.report(trial, 10, 0.4, 0.5)
        tuner.report(trial.number, 20, math.nan)
        with pytest.raises(OutcomeError, match="steps must not decrease, but got 5 after 20"):
            tuner.report(trial, 5, 0.7)
        tuner.report(trial, 20, math.inf, 1.0)
        assert tuner.tell(trial, 0.6).curve == Curve((10.0, 20.0), (0.4, math.inf), (0.5, 1.0))

    def test_a_finished_trial_never_changes(self, make: Make) -> None:
        tuner = make()
        trial = tuner.ask()
        finished = tuner.tell(trial, 0.25)
        for act in (
            lambda: tuner.tell(trial, 0.5),
            lambda: tuner.tell(finished, 0.25),
            lambda: tuner.report(0, 1, 0.5),
            lambda: tuner.abandon(trial, "reason"),
        ):
            with pytest.raises(TrialStateError, match=r"trial 0 has finished \(complete\) and cannot change"):
                act()
        assert tuner.study.trials == (finished,)

    def test_the_words_of_a_failure_open_no_finished_trial(self, make: Make) -> None:
        tuner = make()
        failed = tuner.tell(tuner.ask(), Outcome.failure("worker silent"))
        with pytest.raises(TrialStateError, match=r"trial 0 has finished \(failed\) and cannot change"):
            tuner.tell(0, 0.5)
        assert tuner.study.trials == (failed,)
        assert not failed.is_open

    def test_the_words_of_giving_up_use_up_no_budget(self, make: Make) -> None:
        tuner = make()
        for reason in ("outside the space", "worker silent", "killed"):
            given_back = tuner.abandon(tuner.ask(), reason)
            assert (given_back.state, given_back.cause) == (TrialState.LOST, Cause.ABANDONED)
        assert tuner.study.spent == 0
        assert tuner.ask().origin == "sobol"  # nothing runs again

    def test_what_somebody_killed_runs_once_more_within_the_budget(self, make: Make) -> None:
        tuner = make(max_evals=2)
        first, second = tuner.ask(2)
        tuner.tell(first, 0.5)
        killed = tuner.tell(second, Outcome.failure("killed by signal 9 (SIGKILL)", cause=Cause.KILLED))
        assert (killed.state, killed.cause) == (TrialState.FAILED, Cause.KILLED)
        assert tuner.study.spent == 2
        assert tuner.may_ask()
        again = tuner.ask()
        assert (again.number, again.origin, again.retry_of) == (2, "retry", 1)
        assert (again.params, again.seed) == (second.params, second.seed)
        assert again.started is not None
        tuner.tell(again, Outcome.failure("killed by signal 9 (SIGKILL)", cause=Cause.KILLED))
        assert tuner.study.spent == 2
        more = make(max_evals=9)
        batch = more.ask(2)
        more.tell(batch[0], Outcome.failure("killed", cause=Cause.KILLED))
        assert [trial.origin for trial in more.ask(3)] == ["retry", "sobol", "sobol"]

    def test_a_retry_that_was_given_back_does_not_count_as_one(self, make: Make) -> None:
        tuner = make(max_evals=1)
        tuner.tell(tuner.ask(), Outcome.failure("killed", cause=Cause.KILLED))
        tuner.abandon(tuner.ask(), "interrupted")
        again = tuner.ask()
        assert again.retry_of == 0
        tuner.tell(again, 0.5)
        assert tuner.study.spent == 1
        assert not any(trial.origin == "retry" for trial in tuner.study.pending)

    def test_unknown_and_foreign_trials_are_refused(self, make: Make) -> None:
        tuner = make()
        tuner.ask()
        for unknown in (1, -1, "0", None, True):
            with pytest.raises(TrialStateError, match=rf"trial {unknown!r} is unknown; this study has 1 trials"):
                tuner.tell(unknown, 0.5)
        with pytest.raises(TrialStateError, match="trial 0 belongs to another study"):
            tuner.tell(make(seed=2).ask(), 0.5)

    def test_a_batch_that_a_finite_space_cannot_fill_starts_nothing(self, make: Make) -> None:
        tuner = make({"c": ["a", "b"]})
        with pytest.raises(SpaceExhaustedError, match="all 2 points of the space are done or running"):
            tuner.ask(3)
        assert tuner.study.trials == ()
        assert [trial.number for trial in tuner.ask(2)] == [0, 1]

    def test_added_trials_use_up_no_budget(self, make: Make) -> None:
        tuner = make(max_evals=2, function=hill)
        added = tuner.add_trial({"n": 3, "x": 0.25}, 0.5)
        assert (added.number, added.origin, added.state) == (0, "added", TrialState.COMPLETE)
        assert added.params == {"x": 0.25, "n": 3}
        tuner.optimize()
        assert [trial.origin for trial in tuner.study.trials] == ["added", "sobol", "sobol"]
        tuner.optimize()
        assert len(tuner.study.trials) == 3

    def test_threads_get_different_trials(self, make: Make) -> None:
        tuner = make()
        with ThreadPoolExecutor(4) as pool:
            trials = list(pool.map(lambda _: tuner.ask(), range(12)))
            list(pool.map(lambda trial: tuner.report(trial, 1, 0.5), trials))
            list(pool.map(lambda trial: tuner.tell(trial, hill(trial.params)), trials))
        assert sorted(trial.number for trial in trials) == list(range(12))
        assert len({repr(trial.params) for trial in trials}) == 12
        assert [trial.value for trial in tuner.study.trials] == [hill(trial.params) for trial in tuner.study.trials]

    def test_the_metric_can_be_settled_until_a_trial_has_completed(self, make: Make) -> None:
        tuner = make(metric=None)
        tuner.settle_metric("eval_loss", "minimize")
        assert (tuner.study.metric, tuner.study.direction) == ("eval_loss", "minimize")
        tuner.tell(tuner.ask(), 0.5)
        with pytest.raises(ValueError, match="direction"):
            tuner.settle_metric("eval_f1", "maximize")
        assert (tuner.study.metric, tuner.study.direction) == ("eval_loss", "minimize")

    def test_the_advice_does_not_depend_on_the_store(self, make: Make) -> None:
        tuner = make(n_initial=3, max_evals=6, function=hill)
        alone = LlamaTune(SPACE, hill, 6, n_initial=3, progress=False)
        tuner.optimize()
        alone.optimize()
        assert [(t.params, t.seed, t.origin) for t in tuner.study.trials] == [
            (t.params, t.seed, t.origin) for t in alone.study.trials
        ]
