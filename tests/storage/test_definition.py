"""Opening a stored study with another search than it was made with."""

from __future__ import annotations

import time
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
from durable import SPACE, execute, fall_silent, states, tuner

from llamatune_torch import (
    Categorical,
    Cause,
    Integer,
    LlamaTune,
    Real,
    SchemaError,
    SearchSpace,
    SettingsError,
    SpaceError,
    Study,
    StudyMismatchError,
    TrialState,
    load_study,
)
from llamatune_torch.engine.data import training_data
from llamatune_torch.engine.suggest import suggest
from llamatune_torch.storage.definition import remember


def test_another_search_is_an_error_that_shows_the_difference(url: str) -> None:
    tuner(url, metric="accuracy").ask()
    with pytest.raises(StudyMismatchError) as caught:
        tuner(url, direction="minimize", metric="loss", space={**SPACE, "x": Real(-1, 2), "c": ["a"]}, extend=True)
    message = str(caught.value)
    assert "study 's' in " in message
    assert "parameters: stored ['x', 'n'], given ['x', 'n', 'c']" in message
    assert "x: stored Real(low=-1, high=1, prior='uniform'), given Real(low=-1, high=2, prior='uniform')" in message
    assert "direction: stored 'maximize', given 'minimize'" in message
    assert "metric: stored 'accuracy', given 'loss'" in message
    assert "extend=True" not in message  # it would not help
    assert len(tuner(url, metric="accuracy").study.trials) == 1  # as it was


@pytest.mark.parametrize(
    "changes", [{"direction": "minimize"}, {"metric": "loss"}, {"space": {"x": Real(-1, 1), "n": Integer(1, 9)}}]
)
def test_each_difference_alone_is_one(sqlite_url: str, changes: dict[str, Any]) -> None:
    tuner(sqlite_url)
    with pytest.raises(StudyMismatchError):
        tuner(sqlite_url, **changes)


def test_the_order_of_the_parameters_is_no_part_of_a_study(url: str) -> None:
    parameters: dict[str, Any] = {
        "x": Real(-1, 1),
        "method": ["full", "lora", "dora"],
        "quant": [True, False],
        "rank": Integer(1, 8, when={"method": ["lora", "dora"], "quant": [True]}),
    }
    turned = {**parameters, "rank": Integer(1, 8, when={"quant": [True], "method": ["dora", "lora"]})}
    turned = dict(reversed(turned.items()))
    point = {"x": 0.5, "method": "lora", "quant": True, "rank": 4}
    first = tuner(url, space=parameters, initial_points=[point])
    again = tuner(url, space=turned, initial_points=[dict(reversed(point.items()))])
    assert again.study.space.names == first.study.space.names
    trials = [first.ask(), again.ask(), first.ask()]
    assert [trial.origin for trial in trials] == ["initial", "sobol", "sobol"]  # the point is the same one
    alone = LlamaTune(parameters, n_initial=100, initial_points=[point])
    assert [alone.ask().params for _ in trials] == [trial.params for trial in trials]
    wider = tuner(url, space={**turned, "x": Real(-2, 1)}, extend=True)
    assert wider.study.space.names == first.study.space.names
    assert wider.study.trials == tuple(trials)


def test_extending_keeps_old_trials_where_they_fit_and_counts_all(url: str) -> None:
    space = {"x": Real(0.0, 1.0), "c": Categorical(["a", "b"])}
    old = tuner(url, space=space, metric="m")
    for x, c in ((0.25, "a"), (0.75, "b")):
        old.tell(old.ask(), 1.0 - x)
        old.add_trial({"x": x, "c": c}, x)
    wider = {"x": Real(0.5, 2.0), "c": Categorical(["a", "b", "c"])}
    with pytest.raises(StudyMismatchError, match="extend=True accepts that, and uses the old trials that still fit"):
        tuner(url, space=wider, metric="m")
    new = tuner(url, space=wider, metric="m", extend=True, max_evals=4, function=lambda params: params["x"])
    for before, now in zip(old.study.trials, new.study.trials, strict=True):
        if before.params["x"] >= 0.5:
            assert now == before
        else:
            assert (now.state, now.cause) == (TrialState.LOST, Cause.OUTSIDE)
            assert now.error == f"parameter 'x' must lie in [0.5, 2.0], but got {before.params['x']}"
            assert (now.value, now.params) == (before.value, before.params)
    assert {t.cause for t in new.study.trials} == {None, Cause.OUTSIDE}
    new.optimize()  # two of four were done, whether they fit or not
    assert sum(trial.origin == "sobol" for trial in new.study.trials) == 4
    assert load_study(url, "s").space == new.study.space
    # The record itself has not changed.
    back = tuner(url, space={"x": Real(0.0, 2.0), "c": ["a", "b", "c"]}, metric="m", extend=True)
    assert back.study.trials[:4] == old.study.trials


def test_a_search_that_was_extended_meanwhile_goes_on(url: str) -> None:
    old = tuner(url)
    trial = old.ask()
    new = tuner(url, space={"x": Real(2.0, 3.0), "n": Integer(1, 8)}, extend=True)
    assert new.study.trials[0].cause is Cause.OUTSIDE
    strange = new.ask()
    assert old.tell(trial, 0.5).state is TrialState.COMPLETE
    assert old.study.trials[1].cause is Cause.OUTSIDE
    assert new.tell(strange, 1.0).value == 1.0
    assert new.study.best_value == 1.0
    assert old.study.best_value == 0.5


def test_the_metric_that_a_first_trial_teaches_is_kept(url: str) -> None:
    first = tuner(url, metric=None)
    trial = first.ask()
    first.settle_metric("eval_loss", "minimize")
    first.tell(trial, 0.5)
    again = tuner(url, metric=None)
    assert (again.study.metric, again.study.direction) == ("eval_loss", "minimize")
    again.settle_metric("eval_loss", "minimize")
    with pytest.raises(StudyMismatchError, match="metric: stored 'eval_loss', given 'eval_f1'"):
        again.settle_metric("eval_f1", "minimize")
    with pytest.raises(StudyMismatchError, match="direction: stored 'minimize', given 'maximize'"):
        tuner(url, metric="eval_loss")


class Scheduler(str, Enum):  # noqa: UP042  # as transformers' own enums, whose str() is not their value
    LINEAR = "linear"
    COSINE = "cosine"


def test_choices_of_an_enum_are_the_same_choices_at_the_next_start(url: str) -> None:
    space = {"x": Real(-1, 1), "scheduler": Categorical(list(Scheduler))}
    first = tuner(url, space=space, max_evals=2, function=lambda params: params["x"])
    first.optimize()
    assert [trial.state for trial in first.study.trials] == [TrialState.COMPLETE] * 2
    again = tuner(url, space=space, max_evals=3, function=lambda params: params["x"])
    again.optimize()
    assert [trial.state for trial in again.study.trials] == [TrialState.COMPLETE] * 3
    assert {type(trial.params["scheduler"]) for trial in again.study.trials} == {str}


def test_a_study_keeps_its_token_and_another_of_its_name_has_another(url: str, tmp_path: Path) -> None:
    first = tuner(url)
    assert (first.name, first.token) == ("s", tuner(url, seed=3).token)
    remember(url, "s", {"launch": {}})
    assert tuner(url).token == first.token
    assert len({first.token, tuner(url, name="other").token, tuner(f"sqlite:///{tmp_path}/another.db").token}) == 3


def test_a_study_of_an_earlier_version_gets_a_token(sqlite_url: str) -> None:
    tuner(sqlite_url)
    execute(sqlite_url, "UPDATE llamatune_studies SET settings = :settings", settings='{"seed": 3}')
    opened = tuner(sqlite_url)
    assert opened.settings.seed == 3
    assert opened.token == tuner(sqlite_url).token != ""


def test_other_values_under_the_same_labels_are_another_search(url: str) -> None:
    space = {"targets": Categorical({"qv": ["q", "v"], "all": "all-linear"})}
    tuner(url, space=space)
    tuner(url, space={"targets": Categorical({"qv": ("q", "v"), "all": "all-linear"})})
    other = {"targets": Categorical({"qv": ["q", "k"], "all": "all-linear"})}
    for extend in (False, True):
        with pytest.raises(
            StudyMismatchError, match=r"targets: stored .*'qv': \['q', 'v'\].*given .*'qv': \['q', 'k'\]"
        ):
            tuner(url, space=other, extend=extend)
    with pytest.raises(StudyMismatchError, match="targets: stored"):
        tuner(url, space={"targets": ["qv", "all"]})  # texts that mean themselves


def test_labels_may_be_added_as_other_choices(url: str) -> None:
    tuner(url, space={"c": Categorical({"a": [1], "b": object()})}).add_trial({"c": "a"}, 0.5)
    wider = {"c": Categorical({"a": [1], "b": object(), "d": {"x": 2}})}
    with pytest.raises(StudyMismatchError, match="extend=True accepts that"):
        tuner(url, space=wider)
    assert len(tuner(url, space=wider, extend=True).study.completed) == 1
    assert load_study(url, "s").space["c"] == Categorical(["a", "b", "d"], values={"a": [1], "d": {"x": 2}})


def test_objects_under_labels_are_compared_by_their_labels(url: str) -> None:
    first = tuner(url, space={"dtype": Categorical({"half": object(), "single": 32, "double": object()})})
    again = tuner(url, space={"dtype": Categorical({"half": object(), "single": 32, "double": 64})})
    assert first.ask().params != again.ask().params
    assert load_study(url, "s").space["dtype"] == Categorical(
        ["half", "single", "double"], values={"single": 32, "double": 64}
    )
    with pytest.raises(StudyMismatchError, match="dtype: stored"):
        tuner(url, space={"dtype": Categorical({"half": object(), "single": 33, "double": object()})})


def test_a_step_is_part_of_the_definition_and_the_spelling_of_a_condition_is_not(url: str) -> None:
    def opened(step: int, comparison: str, **changes: Any) -> LlamaTune:
        space = {"n": Integer(0, 64, step=step), "c": Categorical(["a", "b"], when={"n": comparison})}
        return tuner(url, space=space, **changes)

    opened(8, "> 0").add_trial({"n": 8, "c": "a"}, 0.5)
    assert len(opened(8, " >0").study.completed) == 1
    with pytest.raises(StudyMismatchError, match=r"n: stored .*step=8\), given .*step=16\)"):
        opened(16, "> 0")
    with pytest.raises(StudyMismatchError, match=r"c: stored .*'> 0'.*given .*'> 8'"):
        opened(8, "> 8")
    coarser = opened(16, "> 0", extend=True)
    assert coarser.study.trials[0].cause is Cause.OUTSIDE  # 8 is no value any more


GAINED: dict[str, Any] = {
    "x": Real(0.0, 1.0),
    "method": ["full", "lora"],
    "warmup": Real(0.0, 0.5),
    "rank": Integer(1, 64, when={"method": "lora"}),
}
BEFORE = {name: GAINED[name] for name in ("x", "method")}
VALUES = {"warmup": 0.1, "rank": 8}
FULL, LORA = {"x": 0.25, "method": "full"}, {"x": 0.75, "method": "lora"}


def begun(url: str, **changes: Any) -> LlamaTune:
    """Two trials of the space as it was before."""
    old = tuner(url, space=BEFORE, initial_points=[FULL, LORA], **changes)
    for value in (0.5, 1.0):
        old.tell(old.ask(), value)
    return old


def params(study: Study) -> list[dict[str, Any]]:
    return [trial.params for trial in study.trials]


def test_old_trials_have_the_value_that_is_said_of_an_added_parameter(url: str) -> None:
    old = begun(url)
    new = tuner(url, space=GAINED, extend=VALUES)
    now = [{**FULL, "warmup": 0.1}, {**LORA, "warmup": 0.1, "rank": 8}]  # the full one has no rank
    assert params(new.study) == params(load_study(url, "s")) == params(tuner(url, space=GAINED).study) == now
    assert new.study.best_params == now[1]
    assert params(old.study) == [FULL, LORA]
    assert new.study.initial_points == tuple(now)  # and both are done
    assert new.ask().origin == "sobol"


def test_later_advice_is_that_of_a_study_whose_trials_had_the_value(url: str) -> None:
    old = begun(url, n_initial=4)
    for trial in (old.ask(), old.ask()):
        old.tell(trial, trial.params["x"])
    new = tuner(url, space=GAINED, extend=VALUES, n_initial=4)
    alike = tuple(replace(trial, params=new.study.space.validate(trial.params)) for trial in new.study.trials)
    study = Study(SearchSpace(GAINED), trials=alike)
    assert (
        suggest(new.study, new.settings) == suggest(load_study(url, "s"), new.settings) == suggest(study, new.settings)
    )
    assert suggest(study, new.settings)[0].origin == "surrogate"
    data = training_data(new.study, torch.device("cpu"), [])
    assert data.X.tolist() == study.space.encode_all([trial.params for trial in alike]).tolist()
    assert data.X[:, 2].tolist() == pytest.approx([0.2] * 4)  # 0.1 of 0.5


@pytest.mark.parametrize("extend", [False, True, {}, {"warmup": 0.1}])
def test_an_added_parameter_without_a_value_is_an_error_that_says_how_to_give_it(url: str, extend: Any) -> None:
    begun(url)
    with pytest.raises(StudyMismatchError) as caught:
        tuner(url, space=GAINED, extend=extend)
    message = str(caught.value)
    assert "parameters: stored ['x', 'method'], given ['x', 'method', 'warmup', 'rank']" in message
    assert "extend={'warmup': ..., 'rank': ...} accepts that, with the value that old trials have had" in message
    assert load_study(url, "s").space == SearchSpace(BEFORE)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"warmup": 0.7, "rank": 8}, SpaceError, r"extend: parameter 'warmup' must lie in \[0.0, 0.5\], but got 0.7"),
        ({"warmup": "no", "rank": 8}, SpaceError, r"extend: parameter 'warmup' must be a number, but got 'no'"),
        ({**VALUES, "decay": 0.1}, SettingsError, r"extend has a value for 'decay', but the space has \['x', "),
        ({3: 0.1}, SettingsError, r"extend must be True, False, or a dict of the values that new parameters have had"),
        ("warmup", SettingsError, r"extend must be True, False, or a dict .*, but got 'warmup'"),
    ],
)
def test_a_value_that_cannot_be_is_refused_before_a_file_is_made(
    tmp_path: Path, values: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        tuner(f"sqlite:///{tmp_path}/study.db", space=GAINED, extend=values)
    assert not (tmp_path / "study.db").exists()


def test_a_script_keeps_its_value_and_another_one_is_refused(url: str) -> None:
    tuner(url, space=BEFORE, extend={"x": 0.5})  # a new study needs none
    tuner(url, space=GAINED, extend=VALUES)
    assert tuner(url, space=GAINED, extend=VALUES).study.extension.values == VALUES
    with pytest.raises(StudyMismatchError, match=r"warmup: old trials have had 0.1, given 0.2"):
        tuner(url, space=GAINED, extend={"warmup": 0.2})


def test_a_process_with_the_old_space_ends_what_it_runs_and_the_next_is_refused(url: str) -> None:
    old = begun(url)
    running, silent = old.ask(), old.ask()
    new = tuner(url, space=GAINED, extend=VALUES)
    strange = new.ask()
    old.report(running, 1, 0.25)
    assert old.tell(running, 2.0).params == running.params
    late = old.ask()  # it may go on, with what it knows
    assert old.study.trials[strange.number].cause is Cause.OUTSIDE
    old.tell(late, 0.5)
    new.tell(strange, 0.75)
    assert states(new.study) == ["complete"] * 3 + ["running"] + ["complete"] * 2
    assert all(trial.params["warmup"] == 0.1 for trial in new.study.trials if trial.number != strange.number)
    assert new.study.best_trial.number == running.number
    shown = new.study.trials[silent.number]
    assert new.tell(shown, 0.5).value == 0.5  # as it counts there, or as it was written
    with pytest.raises(StudyMismatchError, match=r"parameters: stored \['x', 'method', 'warmup', 'rank'\], given"):
        tuner(url, space=BEFORE)


def test_a_lost_trial_of_before_runs_again_in_the_new_space(url: str) -> None:
    old = tuner(url, space=BEFORE)
    trial = old.ask()
    fall_silent(url, old)
    new = tuner(url, space=GAINED, extend=VALUES, grace=0.2)
    again = new.ask()
    while again.retry_of is None:  # a silence is believed at a second look
        time.sleep(0.05)
        again = new.ask()
    assert again.retry_of == trial.number
    assert again.params == new.study.space.with_values(trial.params, VALUES)
    assert old.tell(trial, 0.5).state is TrialState.COMPLETE


def test_a_dropped_parameter_stays_on_record_and_in_notes(url: str) -> None:
    begun(url)
    new = tuner(url, space={"x": GAINED["x"]}, extend=True)
    assert params(new.study) == [{"x": 0.25}, {"x": 0.75}]
    assert [trial.notes["params.method"] for trial in new.study.trials] == ["'full'", "'lora'"]
    assert [row["params.x"] for row in new.study.rows()] == [0.25, 0.75]
    new.tell(new.ask(), 0.5)
    with pytest.raises(StudyMismatchError, match=r"given \['x', 'method'\]"):
        tuner(url, space=BEFORE)
    back = tuner(url, space=BEFORE, extend={"method": "lora"})  # which the third trial has had
    assert params(back.study)[:2] == [FULL, LORA]
    assert back.study.trials[2].params["method"] == "lora"
    assert not back.study.trials[0].notes


def test_old_trials_that_become_equal_are_both_used(url: str) -> None:
    old = tuner(url, space=BEFORE)
    for method, value in (("full", 0.25), ("lora", 0.75)):
        old.add_trial({"x": 0.5, "method": method}, value)
    new = tuner(url, space={"x": GAINED["x"]}, extend=True, n_initial=1)
    assert params(new.study) == [{"x": 0.5}] * 2
    assert new.ask().params["x"] != 0.5
    assert new.recommend().params == {"x": 0.5}


def test_a_parameter_may_come_and_another_go_together_with_ranges(url: str) -> None:
    begun(url)
    space = {"x": Real(0.5, 2.0), "warmup": GAINED["warmup"]}
    new = tuner(url, space=space, extend={"warmup": 0.1})
    assert [trial.cause for trial in new.study.trials] == [Cause.OUTSIDE, None]
    assert new.study.best_params == {"x": 0.75, "warmup": 0.1}
    with pytest.raises(StudyMismatchError) as caught:
        tuner(
            url, space={"x": Real(0.5, 2.0, prior="log-uniform"), "warmup": GAINED["warmup"], "a": [1, 2]}, extend=True
        )
    assert "extend" not in str(caught.value)  # the scale differs too


def test_partial_points_last_and_are_known_at_the_next_start(url: str) -> None:
    points = [{"x": 0.5}, {"method": "lora"}]
    first = tuner(url, space=BEFORE, initial_points=points)
    second = tuner(url, space=BEFORE, initial_points=[*points, {"x": 0.125}], seed=0)
    trials = [first.ask(), second.ask(), second.ask(), first.ask()]
    assert [trial.origin for trial in trials] == ["initial"] * 3 + ["sobol"]
    assert (trials[0].params["x"], trials[1].params["method"], trials[2].params["x"]) == (0.5, "lora", 0.125)
    assert first.study.initial_points == tuple(points)
    assert load_study(url, "s").initial_points == (*points, {"x": 0.125})


def test_points_of_before_are_known_to_a_script_that_still_has_them(url: str) -> None:
    begun(url)
    for _ in range(2):
        new = tuner(url, space=GAINED, extend=VALUES, initial_points=[FULL, LORA])
        assert len(new.study.initial_points) == 2
    assert new.ask().origin == "sobol"


def test_the_default_is_stored_and_the_first_trial_of_whoever_asks(url: str) -> None:
    default = {"x": 0.25, "n": 4}
    first = tuner(url, default=default)
    again = tuner(url)  # which does not say it
    assert again.study.space.default == load_study(url, "s").space.default == default
    trial = again.ask()
    assert (trial.params, trial.origin) == (default, "default")
    assert first.ask().origin == "sobol"
    again.tell(trial, 0.5)
    assert load_study(url, "s").default_trial == again.study.trials[0]


def test_another_default_takes_its_place_and_runs_next(url: str) -> None:
    old, new = {"x": 0.25, "n": 4}, {"x": 0.5, "n": 1}
    first = tuner(url, default=old)
    first.tell(first.ask(), 0.5)
    again = tuner(url, default=new)
    assert again.study.space.default == new
    assert (again.ask().params, again.ask().origin) == (new, "sobol")


def test_an_extended_space_keeps_a_default_that_still_fits(url: str, caplog: pytest.LogCaptureFixture) -> None:
    first = tuner(url, default={"x": 0.25, "n": 4})
    first.tell(first.ask(), 0.5)
    wider = tuner(url, space={"x": Real(-1, 2), "n": Integer(1, 8), "c": ["a", "b"]}, extend={"c": "b"})
    assert wider.study.space.default == {"x": 0.25, "n": 4, "c": "b"}
    assert wider.study.default_trial == wider.study.trials[0]  # as it counts now
    narrow = tuner(url, space={"x": Real(0.5, 2), "n": Integer(1, 8), "c": ["a", "b"]}, extend=True)
    assert narrow.study.space.default is None
    assert "goes on without its default" in caplog.text
    assert load_study(url, "s").space.default is None


def test_a_stored_default_that_cannot_be_read_is_a_named_error(sqlite_url: str) -> None:
    tuner(sqlite_url, default={"x": 0.25, "n": 4})
    execute(sqlite_url, "UPDATE llamatune_studies SET settings = replace(settings, '0.25', '9.25')")
    with pytest.raises(SchemaError, match="default: parameter 'x' must lie in"):
        load_study(sqlite_url, "s")
