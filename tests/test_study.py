"""The record: frozen, append-only, and what it says about itself."""

from __future__ import annotations

import dataclasses
import html
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import make_study, make_trial, spaces_with_params

from llamatune_torch import (
    Cause,
    Constraint,
    Curve,
    NoCompletedTrialError,
    Outcome,
    SearchSpace,
    SettingsError,
    Study,
    TrialState,
    TrialStateError,
)
from llamatune_torch.study import NUM_SHOWN, UNCHANGED, Extension, Goal

SPACE = SearchSpace({"lr": (0.0, 1.0), "opt": ["adamw", "sgd"]})


def point(lr: float, opt: str = "adamw") -> dict[str, object]:
    return {"lr": lr, "opt": opt}


# --- Changing a study makes a new one ----------------------------------------------------------------------------


def test_a_trial_is_added_at_the_end_and_the_old_study_stays_as_it_was() -> None:
    empty = Study(SPACE)
    study = empty.with_trial(make_trial(0, point(0.5), 1.0))
    assert len(empty.trials) == 0
    assert [trial.number for trial in study.trials] == [0]


def test_a_running_trial_can_be_replaced_by_its_end() -> None:
    study = make_study(SPACE, [(point(0.1), 0.1)], running=[point(0.2), point(0.3)])
    ended = study.with_trial(make_trial(1, point(0.2), 0.7))
    assert [trial.state.value for trial in ended.trials] == ["complete", "complete", "running"]
    assert study.trials[1].state is TrialState.RUNNING


@pytest.mark.parametrize("state", [TrialState.COMPLETE, TrialState.FAILED, TrialState.LOST])
def test_a_finished_trial_never_changes(state: TrialState) -> None:
    study = Study(SPACE).with_trial(make_trial(0, point(0.1), 1.0, state=state))
    with pytest.raises(TrialStateError, match=rf"trial 0 has finished \({state}\) and cannot change"):
        study.with_trial(make_trial(0, point(0.1), 2.0))


@pytest.mark.parametrize("state", [TrialState.LOST, TrialState.FAILED])
def test_only_a_silent_workers_trial_may_still_end_after_it_was_given_up(state: TrialState) -> None:
    lost = make_trial(0, {"x": 0.5}, state=state, cause=Cause.SILENT)
    study = Study(SearchSpace({"x": (0.0, 1.0)}), trials=(lost,))
    assert lost.is_open
    assert study.with_trial(make_trial(0, {"x": 0.5}, 1.0)).best_value == 1.0
    for cause in (Cause.ABANDONED, Cause.OUTSIDE, Cause.ERROR, None):
        assert not dataclasses.replace(lost, cause=cause, reason="worker silent").is_open
    assert make_trial(0, {"x": 0.5}, state=TrialState.RUNNING).is_open


def test_the_budget_counts_neither_lost_nor_added_trials_and_retries_once() -> None:
    params = {"x": 0.5}
    trials = [
        make_trial(0, params, state=TrialState.LOST, cause=Cause.SILENT),
        make_trial(1, params, 1.0),
        make_trial(2, params, None),
        make_trial(3, params, 1.0, origin="added"),
        make_trial(4, params, state=TrialState.LOST, cause=Cause.ABANDONED),
        make_trial(5, params, state=TrialState.LOST, cause=Cause.OUTSIDE),  # evaluated, though of no use any more
        make_trial(6, params, state=TrialState.RUNNING, origin="retry", retry_of=0),
    ]
    study = Study(SearchSpace({"x": (0.0, 1.0)}), trials=tuple(trials))
    assert study.spent == 4
    late = study.with_trial(make_trial(0, params, 1.0))
    assert late.spent == 4
    failed = study.with_trial(make_trial(6, params, None, cause=Cause.SILENT, origin="retry", retry_of=0))
    assert failed.spent == 4
    assert failed.with_trial(make_trial(6, params, 1.0, origin="retry", retry_of=0)).spent == 4


@pytest.mark.parametrize("number", [-1, 2, 7])
def test_a_trial_beyond_the_end_is_unknown(number: int) -> None:
    study = make_study(SPACE, [(point(0.1), 1.0)])
    with pytest.raises(TrialStateError, match=rf"trial {number} is unknown; this study has 1 trials"):
        study.with_trial(make_trial(number, point(0.1), 1.0))


def test_records_are_frozen() -> None:
    study = make_study(SPACE, [(point(0.1), 1.0)])
    for record, field in [(study, "trials"), (study.trials[0], "value"), (Curve(), "steps"), (Outcome(), "value")]:
        with pytest.raises(AttributeError):
            setattr(record, field, None)


# --- The best ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("direction", "number"), [("maximize", 1), ("minimize", 0)])
def test_the_best_trial_is_the_earliest_of_equals_in_the_direction(direction, number) -> None:  # type: ignore[no-untyped-def]
    tried = [(point(0.1), 1.0), (point(0.2), 3.0), (point(0.3), None), (point(0.4), 3.0), (point(0.5), 1.0)]
    study = make_study(SPACE, tried, direction=direction)
    assert study.best_trial.number == number
    assert study.best_value == study.trials[number].value
    assert study.best_params == study.trials[number].params


def test_best_params_are_a_copy() -> None:
    study = make_study(SPACE, [(point(0.1), 1.0)])
    study.best_params["lr"] = 99
    assert study.best_params == point(0.1)


def test_an_equal_value_is_not_better() -> None:
    for direction in ("maximize", "minimize"):
        assert not Study(SPACE, Goal(direction)).better(1.0, than=1.0)
    assert Study(SPACE, Goal("maximize")).better(2.0, than=1.0)
    assert Study(SPACE, Goal("minimize")).better(1.0, than=2.0)


def test_no_best_before_anything_completes() -> None:
    study = make_study(SPACE, running=[point(0.1)])
    with pytest.raises(NoCompletedTrialError, match=r"no trial has completed yet \(1 started\)"):
        _ = study.best_trial


def test_no_best_where_all_failed_counts_the_reasons_and_shows_the_first_error() -> None:
    study = Study(SPACE)
    for i, (reason, error) in enumerate([("nan", "a\nthe value is nan"), ("out of memory", "b"), ("nan", "c")]):
        failed = make_trial(i, point(0.1 * i), reason=reason, error=error)
        study = study.with_trial(failed)
    message = (
        r"no trial has completed: 3 of 3 failed \(nan: 2, out of memory: 1\); "
        r"the first error, of trial 0: the value is nan$"
    )
    with pytest.raises(NoCompletedTrialError, match=message):
        _ = study.best_value


# --- States ------------------------------------------------------------------------------------------------------


def test_trials_by_state() -> None:
    study = make_study(SPACE, [(point(0.1), 1.0), (point(0.2), None)], running=[point(0.3)])
    study = study.with_trial(make_trial(3, point(0.4), state=TrialState.LOST))
    assert [trial.number for trial in study.completed] == [0]
    assert [trial.number for trial in study.failed] == [1]
    assert [trial.number for trial in study.pending] == [2]
    assert [trial.number for trial in study.in_state(TrialState.LOST, TrialState.RUNNING)] == [2, 3]


def test_failures_are_counted_most_frequent_first() -> None:
    study = Study(SPACE)
    for i, reason in enumerate(["nan", "oom", None, "oom"]):
        study = study.with_trial(make_trial(i, point(0.1), reason=reason))
    assert list(study.failures_by_reason().items()) == [("oom", 2), ("nan", 1), ("unknown", 1)]


# --- Failures --------------------------------------------------------------------------------------------------------


def test_the_outcome_of_a_failure_has_a_reason_and_an_error() -> None:
    assert Outcome.failure("out of memory") == Outcome(
        reason="out of memory", error="out of memory", cause=Cause.OUT_OF_MEMORY
    )
    long = Outcome.failure("out of memory", "CUDA out of memory. Tried ...", cost=3.0)
    assert (long.value, long.reason, long.error, long.cost) == (
        None,
        "out of memory",
        "CUDA out of memory. Tried ...",
        3,
    )


# --- For people --------------------------------------------------------------------------------------------------


def test_summary_counts_states_and_names_the_best() -> None:
    study = make_study(SPACE, [(point(0.25), 0.5), (point(0.5, "sgd"), 0.75)], running=[point(0.1)])
    study = study.with_trial(make_trial(3, point(0.4), reason="nan", cost=2.5))
    assert study.summary().splitlines() == [
        "4 trials (1 running, 2 complete, 1 failed), 2.5 s of evaluation",
        "  failed: nan (1)",
        "best value (maximize): 0.75 in trial 1",
        "  lr = 0.5",
        "  opt = 'sgd'",
        "no default was compared",
    ]


LIMITED = Goal(constraints=(Constraint("memory_gb", upper=8),))


@pytest.mark.parametrize(
    ("trials", "said"),
    [
        ([(0.5, {"value": 0.7}), (0.25, {"value": 0.75})], "better than the default (trial 0) by 0.05"),
        ([(0.25, {"value": 0.75}), (0.5, {"value": 0.8})], "the default (trial 1) is the best, with value 0.8"),
        ([(0.25, {"value": 0.75}), (0.5, {"value": 0.75})], "no better than the default (trial 1), with value 0.75"),
        ([(0.25, {"value": 0.75})], "the default has not been tried"),
        ([(0.5, {"reason": "out of memory"}), (0.25, {"value": 1.0})], "the default (trial 0): failed, out of memory"),
        ([(0.5, {"state": TrialState.RUNNING}), (0.25, {"value": 1.0})], "the default (trial 0): running"),
        (
            [(0.5, {"value": 0.9, "outcomes": {"memory_gb": 9}}), (0.25, {"value": 0.1})],
            "the default (trial 0) breaks memory_gb <= 8, with value 0.9",
        ),
        ([(0.5, {"value": 0.9, "outcomes": {"memory_gb": 9}})], "the default (trial 0) breaks memory_gb <= 8"),
        ([(0.5, {"reason": "nan"})], "the default (trial 0): failed, nan"),
        # On the same fresh seeds both means count, else the default's one run.
        (
            [(0.5, {"value": 0.7}), (0.25, {"value": 0.75}), *[(0.25, {"value": 0.5, "origin": "confirm"})] * 2],
            "worse than the one run of the default (trial 0) by 0.2, which may have been lucky",
        ),
        (
            [(0.5, {"value": 0.9}), (0.25, {"value": 0.9}), (0.5, {"value": 0.25, "origin": "confirm"})]
            + [(0.25, {"value": 0.5, "origin": "confirm"})] * 2,
            "better than the default (trial 0) by 0.25",
        ),
    ],
)
def test_summary_compares_with_the_default(trials: list[tuple[float, dict[str, Any]]], said: str) -> None:
    kept = {"outcomes": {"memory_gb": 7}}
    space = SearchSpace(SPACE, default=point(0.5))
    record = tuple(make_trial(i, point(lr), **{**kept, **fields}) for i, (lr, fields) in enumerate(trials))
    assert said in Study(space, LIMITED, trials=record).summary()


def test_the_trial_of_the_default_is_the_first_that_has_completed_whoever_asked_for_it() -> None:
    space = SearchSpace(SPACE, default=point(0.5))
    study = make_study(space, [(point(0.5), None), (point(0.1), 1.0), (point(0.5), 0.5), (point(0.5), 0.7)])
    assert study.default_trial == study.trials[2]
    assert make_study(space, [(point(0.5), None)]).default_trial is not None
    assert make_study(space, [(point(0.1), 1.0)]).default_trial is make_study(SPACE, [(point(0.5), 1.0)]).default_trial


def test_summary_of_an_empty_study_and_of_one_where_nothing_completed() -> None:
    assert Study(SPACE).summary() == "0 trials (none yet), 0.0 s of evaluation\nno trial has completed"
    assert make_study(SPACE, [(point(0.1), None)]).summary().splitlines()[-1] == "no trial has completed"


@pytest.mark.parametrize(("direction", "numbers"), [("maximize", [2, 3, 0, 4]), ("minimize", [4, 0, 2, 3])])
def test_trials_by_value(direction, numbers) -> None:  # type: ignore[no-untyped-def]
    tried = [(point(0.1), v) for v in (1.0, None, 3.0, 3.0, 0.5)]
    assert [trial.number for trial in make_study(SPACE, tried, direction=direction).by_value()] == numbers


def test_a_notebook_shows_the_summary_and_the_best_trials() -> None:
    study = make_study(SPACE, [(point(0.25), 0.5), (point(0.5, "sgd"), 0.75), (point(0.75), None)], [point(0.1)])
    shown = study._repr_html_()
    assert shown.startswith(f"<pre>{html.escape(study.summary())}</pre><table>")
    assert [int(n) for n in re.findall(r"<tr><td>(\d+)</td>", shown)] == [1, 0, 3, 2]  # the others: newest first
    assert "more trials" not in shown
    assert "no trial has completed" in Study(SPACE)._repr_html_()
    assert "<table" not in Study(SPACE)._repr_html_()


def test_a_notebook_shows_some_of_many_trials() -> None:
    study = make_study(SPACE, [(point(0.5), i % 50) for i in range(500)])
    shown = study._repr_html_()
    assert shown.count("<tr>") == 1 + NUM_SHOWN
    assert f"<p>{500 - NUM_SHOWN} more trials: study.dataframe() has all</p>" in shown
    assert "<tr><td>49</td>" in shown


def test_a_notebook_runs_nothing_that_a_study_holds() -> None:
    evil = "<script>alert(1)</script>\x1b[2J"
    space = SearchSpace({f"name {evil}": [evil, "b"]})
    params = {f"name {evil}": evil}
    good = make_trial(0, params, 1.0, notes={evil: evil}, outcomes={evil: 1.0})
    study = Study(space, Goal("maximize", "<script>"), trials=(good, make_trial(1, params, reason=evil, error=evil)))
    shown = study._repr_html_()
    assert "<script" not in shown
    assert "\x1b" not in shown
    assert shown.count("alert(1)") >= 5


def test_a_goal_is_checked_and_settled_once_its_metric_has_a_name() -> None:
    with pytest.raises(SettingsError, match="direction must be 'maximize' or 'minimize', but got 'max'"):
        Goal("max")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="metric must be a line of text or None, but got 3"):
        Goal(metric=3)  # type: ignore[arg-type]
    unsettled = Study(SPACE, Goal("minimize", None))
    assert (unsettled.direction, unsettled.metric, unsettled.is_settled) == ("minimize", "value", False)
    assert Study(SPACE).is_settled


@given(spaces_with_params(), st.data())
def test_an_extension_gives_back_what_was_left_out_and_takes_away_what_is_dropped(
    drawn: tuple[SearchSpace, dict[str, Any]], data: st.DataObject
) -> None:
    space, params = drawn
    params = space.validate(params)
    missing = data.draw(st.sets(st.sampled_from(list(params))))
    before = {name: value for name, value in params.items() if name not in missing}
    inactive = {name: space[name].decode([0.5])[0] for name in space.names if name not in params}
    extension = Extension(inactive | {name: params[name] for name in missing}, ("gone" * 3,))
    assert repr(extension.applied_to({**before, "gone" * 3: 1}, space)) == repr(params)
    assert UNCHANGED.applied_to(before, space) is before
