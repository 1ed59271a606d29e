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

    # --- Pausing -------------------------------------------------------------------------------------------------

    def staged(self, make: Make, **changes: Any) -> LlamaTune:
        """Two runs to a half, the better of which is finished."""
        return make(**{"strategy": "successive_halving", "rungs": [0.5, 1.0], "max_evals": 4, **changes})

    def test_a_paused_trial_is_on_record_and_goes_on(self, make: Make) -> None:
        tuner = self.staged(make)
        first, second = tuner.ask(2)
        assert (first.until, first.reached, first.pauses) == (0.5, 0.0, 0)
        for trial, value in ((first, 0.25), (second, 0.125)):
            tuner.report(trial, 5, value, 0.5)
        paused = tuner.tell(first, Outcome(paused=True, cost=10.0, outcomes={"memory_gb": 7.5}, notes={"a": "b"}))
        assert (paused.state, paused.reached, paused.pauses, paused.cost) == (TrialState.PAUSED, 0.5, 1, 10.0)
        assert (paused.value, paused.finished, paused.worker) == (None, None, None)
        assert (tuner.study.spent, tuner.study.trained) == (1.0, 0.5)
        tuner.pause(second)
        again = tuner.ask()
        assert (again.number, again.state, again.until) == (0, TrialState.RUNNING, 1.0)
        assert (again.curve.values, again.pauses, again.seed) == ((0.25,), 1, first.seed)
        assert (again.started, again.worker) == (first.started, tuner.worker)
        assert again.resumed is not None
        stopped = tuner.study.trials[1]
        assert (stopped.state, stopped.reached, stopped.is_open) == (TrialState.STOPPED, 0.5, False)
        assert stopped.reason == "not among the best 1 of 2 at 50%"
        tuner.report(again, 10, 0.75, 1.0)
        told = tuner.tell(again, Outcome(0.75, cost=5.0, notes={"c": "d"}))
        assert (told.state, told.cost, told.notes) == (TrialState.COMPLETE, 15.0, {"a": "b", "c": "d"})
        assert told.curve == Curve((5.0, 10.0), (0.25, 0.75), (0.5, 1.0))
        assert (tuner.study.spent, tuner.study.trained) == (1.5, 1.5)

    def test_steps_that_are_reported_again_replace_the_former(self, make: Make) -> None:
        tuner = self.staged(make)
        for trial in tuner.ask(2):
            for step in (1, 2, 3):
                tuner.report(trial, step, trial.number / 10, step / 6)
            tuner.pause(trial)
        again = tuner.ask()
        tuner.report(again, 2, 0.5, 1 / 3)  # its checkpoint was of the first step
        tuner.report(again, 6, 0.75, 1.0)
        assert tuner.tell(again, 0.75).curve.values == (0.1, 0.5, 0.75)

    def test_what_was_given_back_is_paused_again(self, make: Make) -> None:
        tuner = self.staged(make)
        for trial in tuner.ask(2):
            tuner.report(trial, 1, trial.number / 10, 0.5)
            tuner.tell(trial, Outcome(paused=True, cost=1.0))
        again = tuner.ask()
        given_back = tuner.abandon(again, "interrupted")
        assert (given_back.state, given_back.reached, given_back.worker) == (TrialState.PAUSED, 0.5, None)
        assert tuner.study.spent == 1.0
        assert tuner.ask().number == again.number
        first = self.staged(make)
        lost = first.abandon(first.ask(), "interrupted")  # has no checkpoint
        assert lost.state is TrialState.LOST
        assert first.study.spent == 0

    def test_a_second_pause_changes_nothing_and_a_run_to_the_end_has_none(self, make: Make) -> None:
        tuner = self.staged(make)
        trial = tuner.ask()
        paused = tuner.tell(trial, Outcome(paused=True, cost=2.0))
        assert tuner.tell(trial, Outcome(paused=True, cost=9.0)) == paused
        tuner.pause(tuner.ask())
        last = tuner.ask()
        assert last.until == 1.0
        with pytest.raises(OutcomeError, match=r"trial \d was started to train to its end: it has a value then"):
            tuner.pause(last)
        assert tuner.study.trials[last.number].state is TrialState.RUNNING
        with pytest.raises(OutcomeError, match="is not paused"):
            tuner.add_trial({"x": 0.5, "n": 1}, Outcome(paused=True))

    def test_a_pause_with_nan_is_a_failure(self, make: Make) -> None:
        tuner = self.staged(make)
        trial = tuner.ask()
        tuner.report(trial, 7, math.nan, 0.5)
        failed = tuner.pause(trial)
        assert (failed.state, failed.cause, failed.reason) == (TrialState.FAILED, Cause.DIVERGED, "nan")
        assert failed.error == "the value at step 7 is nan"
        assert tuner.study.spent == 1

    def test_a_pause_without_progress_is_at_the_share_it_was_started_for(self, make: Make) -> None:
        tuner = self.staged(make)
        trial = tuner.ask()
        tuner.report(trial, 7, 0.25)
        paused = tuner.pause(trial)
        assert (paused.curve.progress, paused.reached) == ((0.5,), 0.5)
        later = tuner.ask()
        tuner.report(later, 7, 0.25, 0.75)  # evaluates seldom
        assert tuner.pause(later).reached == 0.75
        assert tuner.study.spent == 1.25

    def test_a_killed_run_that_has_paused_runs_again_from_there(self, make: Make) -> None:
        tuner = self.staged(make)
        for trial in tuner.ask(2):
            tuner.report(trial, 1, trial.number / 10, 0.5)
            tuner.tell(trial, Outcome(paused=True, cost=1.0))
        killed = tuner.ask()
        tuner.tell(killed, Outcome.failure("killed", cause=Cause.KILLED))
        again = tuner.ask()
        assert (again.retry_of, again.first, again.until) == (killed.number, killed.number, 1.0)
        assert (again.reached, again.pauses, again.curve.values) == (0.5, 1, (0.1,))
        told = tuner.tell(again, Outcome(0.5, cost=3.0))
        assert told.cost == 3.0  # the first has its own
        assert tuner.study.spent == 1.5

    def test_what_is_due_takes_its_share_before_anything_starts(self, make: Make) -> None:
        tuner = self.staged(make, max_evals=2, strategy="asha")
        tuner.tell(tuner.ask(), 0.5)  # 1
        trial = tuner.ask()
        tuner.pause(trial)  # 0.5, so that the next count as halves
        tuner.tell(tuner.ask(), Outcome.failure("killed", cause=Cause.KILLED))
        started = tuner.ask(1) if tuner.may_ask() else []
        assert [t.origin for t in started] == ["retry"]
        assert tuner.study.spent <= 2.5

    def test_pausing_strategies_do_not_depend_on_the_store(self, make: Make) -> None:
        from simulated import play

        def record(tuner: LlamaTune) -> list[Any]:
            play(tuner, lambda params, share: share * hill(params))
            return [(t.params, t.state, t.until, t.reached, t.pauses, t.value, t.reason) for t in tuner.study.trials]

        changes = {"strategy": "screen", "max_evals": 5}
        alone = LlamaTune(SPACE, None, n_initial=100, progress=False, **changes)
        assert record(make(**changes)) == record(alone)

    def test_threads_never_get_the_same_paused_trial(self, make: Make) -> None:
        tuner = make(strategy="asha", rungs=[0.5, 1.0], max_evals=50)
        for trial in tuner.ask(12):
            tuner.report(trial, 1, 0.5, 0.5)
            tuner.pause(trial)
        with ThreadPoolExecutor(4) as pool:
            trials = list(pool.map(lambda _: tuner.ask(), range(10)))
        numbers = [trial.number for trial in trials]
        assert len(set(numbers)) == 10
        assert sum(number < 12 for number in numbers) == 6  # half of twelve
