"""Studies to and from Optuna, by way of real SQLite files; numbers are checked with Optuna's own API."""

from __future__ import annotations

import json
import logging
import math
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import categoricals, integers, make_study, make_trial, params_of, reals, spaces

pytest.importorskip("optuna", reason="the extra `optuna` is not installed")
import optuna
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from theirs import Opened, written

from llamatune_torch import (
    Categorical,
    Curve,
    Integer,
    LlamaTune,
    Outcome,
    Real,
    SearchSpace,
    SettingsError,
    SpaceError,
    StorageError,
    Study,
    Trial,
    TrialState,
)
from llamatune_torch.integrations.optuna.studies import SPACE, from_optuna, to_optuna
from llamatune_torch.parameter_base import type_key
from llamatune_torch.study import Goal

SPACE_OF_ALL_KINDS = SearchSpace(
    {
        "lr": Real(1e-5, 1e-2, prior="log-uniform"),
        "dropout": Real(0.0, 0.5),
        "batch": Integer(8, 64, prior="log-uniform"),
        "epochs": Integer(1, 5),
        "weight_decay": Real(1e-4, 0.1, prior="log-uniform", special=[0.0]),
        "method": ["full", "lora"],
        "rank": Integer(1, 64, prior="log-uniform", special=[0], when={"method": "lora"}),
        "size": Categorical(["small", "base", "large"], ordered=True),
        "bias": Categorical([True, 1, 1.0, None, "1"]),
    }
)


FULL = {
    "lr": 1e-3,
    "dropout": 0.1,
    "batch": 16,
    "epochs": 3,
    "weight_decay": 0.0,
    "method": "full",
    "size": "base",
    "bias": 1,
}


LORA = FULL | {"method": "lora", "rank": 0, "weight_decay": 0.01, "bias": 1.0, "size": "large"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], tuple[str, str]]:
    """A new name in a file that all examples of a property share, because its tables take their time."""
    url, number = f"sqlite:///{tmp_path_factory.mktemp('shared')}/optuna.db", count()
    return lambda: (url, f"study {next(number)}")


def typed_params(params: dict[str, Any]) -> dict[str, Any]:
    return {name: type_key(value) for name, value in params.items()}


@st.composite
def studies(draw: st.DrawFn, space: SearchSpace | None = None) -> Study:
    space = draw(spaces()) if space is None else space
    direction = draw(st.sampled_from(["maximize", "minimize"]))
    worst = -math.inf if direction == "maximize" else math.inf
    values = st.one_of(st.none(), st.just(worst), st.floats(allow_nan=False, allow_infinity=False))
    tried = draw(st.lists(st.tuples(params_of(space), values), min_size=1, max_size=3))
    return make_study(space, tried, direction=direction)


@settings(max_examples=20)
@given(studies(), st.booleans())
def test_round_trip_of_any_study(shared: Callable[[], tuple[str, str]], study: Study, space_given: bool) -> None:
    url, name = shared()
    assert to_optuna(study, url, name) == len(study.trials)
    back = from_optuna(url, name, study.space if space_given else None)
    assert back.space == study.space
    assert back.direction == study.direction
    for ours, theirs in zip(study.trials, back.trials, strict=True):
        assert (ours.number, ours.state, ours.value) == (theirs.number, theirs.state, theirs.value)
        assert typed_params(ours.params) == typed_params(theirs.params)
    with Opened(url, name) as exported:
        if study.completed:
            assert exported.best_value == study.best_value


def scalars_in(parameter: Categorical) -> set[Any]:
    return {choice for choice in parameter.choices if not isinstance(choice, (list, dict))}


@st.composite
def plain_spaces(draw: st.DrawFn) -> SearchSpace:
    """What can be inferred: no beliefs, special values, conditions, labels, powers, or choices that Optuna confuses."""
    distinct = categoricals().filter(lambda p: p.values is None and len(scalars_in(p)) == len(p.choices))
    no_powers = integers(special=False).filter(lambda p: p.powers_of is None)
    numbers = st.one_of(reals(special=False), no_powers).map(lambda p: replace(p, belief=None))
    parameters = st.one_of(numbers, distinct)
    return draw(spaces(named=parameters).filter(lambda space: not space.parent_columns))


@settings(max_examples=10)
@given(plain_spaces().flatmap(lambda space: studies(space)))
def test_round_trip_with_the_space_inferred(shared: Callable[[], tuple[str, str]], study: Study) -> None:
    url, name = shared()
    to_optuna(study, url, name)
    with Opened(url, name) as exported:
        exported.set_user_attr(SPACE, None)
    back = from_optuna(url, name)
    unordered = {
        n: Categorical(p.choices) if isinstance(p, Categorical) else p for n, p in study.space.parameters.items()
    }
    assert back.space == SearchSpace(unordered)
    assert [typed_params(t.params) for t in back.trials] == [typed_params(t.params) for t in study.trials]


def test_what_optuna_sees_of_an_exported_study(url: str) -> None:
    study = make_study(SPACE_OF_ALL_KINDS, [(FULL, 0.5), (LORA, 0.9), (FULL, None), (LORA, -math.inf)])
    study = replace(study, goal=Goal(study.direction, "accuracy"))
    assert to_optuna(study, url, "ours") == 4
    with Opened(url, "ours") as exported:
        assert exported.metric_names == ["accuracy"]
        assert exported.direction == optuna.study.StudyDirection.MAXIMIZE
        assert (exported.best_trial.number, exported.best_value) == (1, 0.9)
        assert [trial.value for trial in exported.trials] == [0.5, 0.9, None, -math.inf]
        assert [trial.state.name for trial in exported.trials] == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE"]
        full, lora = exported.trials[:2]
        assert full.params == {
            "lr": 1e-3,
            "dropout": 0.1,
            "batch": 16,
            "epochs": 3,
            "weight_decay (special)": 0.0,
            "method": "full",
            "size": "base",
            "bias": "1",
        }
        assert lora.params["rank (special)"] == 0
        assert lora.params["bias"] == "1.0"
        assert "rank" not in lora.params
        assert "weight_decay (special)" not in lora.params
        assert lora.distributions == {
            "lr": FloatDistribution(1e-5, 1e-2, log=True),
            "dropout": FloatDistribution(0.0, 0.5),
            "batch": IntDistribution(8, 64, log=True),
            "epochs": IntDistribution(1, 5),
            "weight_decay": FloatDistribution(1e-4, 0.1, log=True),
            "method": CategoricalDistribution(["full", "lora"]),
            "rank (special)": CategoricalDistribution([0]),
            "size": CategoricalDistribution(["small", "base", "large"]),
            "bias": CategoricalDistribution(["true", "1", "1.0", "null", '"1"']),
        }


@pytest.mark.parametrize(("direction", "best"), [("maximize", 2), ("minimize", 1)])
def test_best_trial_is_the_same_on_both_sides(url: str, direction: Any, best: int) -> None:
    tried = [({"x": 0.1}, 0.5), ({"x": 0.2}, -1.0), ({"x": 0.3}, 2.0), ({"x": 0.4}, None)]
    study = make_study({"x": Real(0, 1)}, tried, direction=direction)
    to_optuna(study, url, "ours")
    with Opened(url, "ours") as exported:
        assert exported.best_trial.number == study.best_trial.number == best
        assert exported.best_params == study.best_params
        assert exported.best_value == study.best_value
    assert from_optuna(url).best_trial.number == best


RICH = Trial(
    0,
    {"x": 0.5},
    seed=77,
    origin="surrogate",
    state=TrialState.COMPLETE,
    value=0.9,
    curve=Curve((10.0, 19.6, 20.0, 30.0), (0.1, 0.2, math.nan, 0.9), (0.3, 0.6, 0.65, None)),
    outcomes={"memory_gb": 7.5},
    cost=12.5,
    notes={"value": "the last evaluation"},
    started=1_700_000_000.25,
    finished=1_700_000_013.5,
)


def test_everything_else_of_a_trial_goes_along(url: str) -> None:
    failed = make_trial(1, {"x": 0.1}, reason="out of memory", error="CUDA out of memory")
    to_optuna(Study(SearchSpace({"x": Real(0, 1)}), trials=(RICH, failed)), url, "ours")
    with Opened(url, "ours") as exported:
        first, second = exported.trials
    assert list(first.intermediate_values) == [10, 20, 30]
    assert first.intermediate_values[30] == 0.9
    assert math.isnan(first.intermediate_values[20])  # step 19.6 is 20 too, and the last one counts; infinity is none
    assert first.datetime_start is not None
    assert first.datetime_start.timestamp() == 1_700_000_000.25
    assert first.duration is not None
    assert first.duration.total_seconds() == 13.25
    assert first.user_attrs == {
        "number": 0,
        "seed": 77,
        "origin": "surrogate",
        "cost": 12.5,
        "outcomes": {"memory_gb": 7.5},
        "notes": {"value": "the last evaluation"},
        "progress": [0.3, 0.65, None],
    }
    assert second.user_attrs["reason"] == "out of memory"
    assert second.user_attrs["error"] == "CUDA out of memory"

    one, two = from_optuna(url, "ours").trials
    assert (one.seed, one.origin, one.cost, one.notes) == (77, "added", 12.5, RICH.notes)
    assert (one.outcomes, one.started, one.finished) == (RICH.outcomes, RICH.started, RICH.finished)
    assert one.curve.steps == (10.0, 20.0, 30.0)
    assert one.curve.progress == (0.3, 0.65, None)
    assert (two.state, two.reason, two.error) == (TrialState.FAILED, "out of memory", "CUDA out of memory")
    assert two.cost is None  # as it was, though Optuna has a time for it


def test_running_and_lost_trials_are_left_out(url: str) -> None:
    trials = (
        make_trial(0, {"x": 0.1}, state=TrialState.LOST, reason="Ctrl-C"),
        make_trial(1, {"x": 0.2}, 1.0),
        make_trial(2, {"x": 0.3}, state=TrialState.RUNNING),
    )
    assert to_optuna(Study(SearchSpace({"x": Real(0, 1)}), trials=trials), url, "ours") == 1
    with Opened(url, "ours") as exported:
        assert [trial.user_attrs["number"] for trial in exported.trials] == [1]


def test_a_study_without_trials_keeps_its_space(url: str) -> None:
    study = make_study(SPACE_OF_ALL_KINDS)
    assert to_optuna(study, url, "ours") == 0
    assert from_optuna(url) == study


def test_optuna_goes_on_with_an_exported_study(url: str) -> None:
    to_optuna(make_study({"lr": Real(1e-5, 1e-2, prior="log-uniform")}, [({"lr": 1e-3}, 0.5)]), url, "ours")
    with Opened(url, "ours") as exported:
        exported.optimize(lambda trial: trial.suggest_float("lr", 1e-5, 1e-2, log=True), n_trials=2)
    back = from_optuna(url)
    assert [trial.number for trial in back.trials] == [0, 1, 2]
    assert back.trials[1].value == pytest.approx(back.trials[1].params["lr"])


def objective(trial: optuna.Trial) -> float:
    lr = trial.suggest_float("lr", 1e-5, 1e-1, log=True)
    batch = trial.suggest_int("batch", 8, 64)
    method = trial.suggest_categorical("method", ["full", "lora"])
    rank = trial.suggest_int("rank", 1, 64, log=True) if method == "lora" else 8
    if lr > 3e-2:
        raise MemoryError("out of memory")
    return -((math.log10(lr) + 3) ** 2) - batch / 100 - abs(rank - 8) / 100


def test_a_study_of_optunas_tpe_is_imported_and_continued(url: str) -> None:
    with Opened(url, "tpe", direction="maximize", sampler=optuna.samplers.TPESampler(seed=3)) as study:
        study.optimize(objective, n_trials=20, catch=(MemoryError,))
        best, values = study.best_trial, [trial.value for trial in study.trials]
    imported = from_optuna(url, "tpe")
    assert imported.space == SearchSpace(
        {
            "lr": Real(1e-5, 1e-1, prior="log-uniform"),
            "batch": Integer(8, 64),
            "method": ["full", "lora"],
            "rank": Integer(1, 64, prior="log-uniform", when={"method": ["lora"]}),
        }
    )
    assert [trial.value for trial in imported.trials] == values
    assert imported.best_trial.number == best.number
    assert imported.best_params.keys() == best.params.keys()
    assert imported.best_params["lr"] == pytest.approx(best.params["lr"], rel=1e-11)  # kept to 12 digits here
    assert imported.best_params == best.params | {"lr": imported.best_params["lr"]}
    assert imported.failures_by_reason() == {"failed in Optuna": values.count(None)}
    assert values.count(None) > 0

    tuner = LlamaTune(imported.space, direction=imported.direction)
    for trial in imported.completed + imported.failed:
        tuner.add_trial(trial.params, Outcome(trial.value, cost=trial.cost, reason=trial.reason))
    for _ in range(3):
        asked = tuner.ask()
        assert asked.origin == "surrogate"
        assert asked.params["lr"] < 3e-2
        tuner.tell(asked, objective(optuna.trial.FixedTrial(asked.params)))
    assert tuner.study.best_value >= imported.best_value


def test_pruned_trials_are_stopped_with_their_curve(url: str) -> None:
    def pruned(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        trial.report(math.nan, step=5)
        trial.report(x, step=1)
        if trial.number == 1:
            raise optuna.TrialPruned
        return x

    with Opened(url, "pruned", direction="minimize") as study:
        study.optimize(pruned, n_trials=3)
        study.ask()  # stays running
        study.enqueue_trial({"x": 0.5})  # stays waiting
        xs = [trial.params["x"] for trial in study.trials[:3]]
    imported = from_optuna(url)
    assert [trial.state for trial in imported.trials] == ["complete", "stopped", "complete"]
    stopped = imported.trials[1]
    assert (stopped.value, stopped.reason, stopped.is_open) == (None, "pruned", False)
    assert stopped.curve.steps == (1.0, 5.0)
    assert stopped.curve.values[0] == xs[1]
    assert math.isnan(stopped.curve.values[1])
    assert stopped.cost is not None
    assert stopped.cost >= 0


def test_an_infinity_that_no_training_can_earn_is_a_failure(url: str) -> None:
    x = (0.5, FloatDistribution(0, 1))
    written(url, [({"x": x}, math.inf), ({"x": x}, -math.inf)], direction="maximize")
    good, bad = from_optuna(url).trials
    assert (good.state, good.reason) == (TrialState.FAILED, "infinite")
    assert (bad.state, bad.value) == (TrialState.COMPLETE, -math.inf)


METHOD, PLACE = CategoricalDistribution(["full", "lora", "ia3"]), CategoricalDistribution(["all", "top"])


RANK, DEPTH = IntDistribution(1, 8), IntDistribution(1, 12)


def test_with_a_space_given_what_does_not_fit_is_left_out(url: str, caplog: pytest.LogCaptureFixture) -> None:
    wide = FloatDistribution(0, 10)
    written(url, [({"x": (9.0, wide)}, 1.0), ({"x": (0.0, wide)}, 2.0), ({"x": (0.5, wide)}, 3.0)])
    study = from_optuna(url, space=SearchSpace({"x": Real(0.1, 1, special=[0.0])}))
    assert [(trial.number, trial.params, trial.value) for trial in study.trials] == [
        (0, {"x": 0.0}, 2.0),
        (1, {"x": 0.5}, 3.0),
    ]
    assert "'theirs': 1 of 3 trials do not fit" in caplog.text


def test_choices_go_by_their_values_not_by_their_places(url: str) -> None:
    written(url, [({"method": ("lora", METHOD), "n": (8, IntDistribution(8, 16, step=8))}, 1.0)])
    study = from_optuna(url, space=SearchSpace({"method": ["lora", "full"], "n": [4, 8]}))
    assert study.trials[0].params == {"method": "lora", "n": 8}


def test_attributes_of_other_peoples_studies_mean_something_else(url: str) -> None:
    with Opened(url, "theirs", direction="minimize") as study:
        study.enqueue_trial({"x": 0.5}, user_attrs={"seed": "of apples", "cost": "3 dollars", "notes": 7})
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    (trial,) = from_optuna(url).trials
    assert (trial.seed, trial.notes) == (0, {})
    assert isinstance(trial.cost, float)


def test_several_objectives_are_refused(url: str) -> None:
    with Opened(url, "two", directions=["minimize", "maximize"]):
        pass
    with pytest.raises(StorageError, match=r"one objective, but Optuna study 'two' in .*optuna.db has 2"):
        from_optuna(url)


def test_unknown_names_list_the_known_ones(url: str) -> None:
    study = make_study({"x": Real(0, 1)})
    to_optuna(study, url, "one")
    to_optuna(study, url, "two")
    with pytest.raises(StorageError, match=r"no Optuna study 'three', only \['one', 'two'\]"):
        from_optuna(url, "three")
    with pytest.raises(StorageError, match=r"has the Optuna studies \['one', 'two'\]: say which"):
        from_optuna(url)


def test_an_existing_name_is_refused_and_left_alone(url: str) -> None:
    study = make_study({"x": Real(0, 1)}, [({"x": 0.5}, 1.0)])
    to_optuna(study, url, "ours")
    with pytest.raises(StorageError, match=r"optuna.db has an Optuna study 'ours' already: choose another name"):
        to_optuna(study, url, "ours")
    assert len(from_optuna(url).trials) == 1


def test_a_study_that_cannot_be_written_to_its_end_leaves_nothing(url: str) -> None:
    far = replace(RICH, curve=Curve((1e30,), (0.5,), (None,)))  # beyond a database's integers
    with pytest.raises(StorageError, match=r"optuna.db cannot be written to as an Optuna storage: .*too large"):
        to_optuna(Study(SearchSpace({"x": Real(0, 1)}), trials=(RICH, far)), url, "ours")
    with pytest.raises(StorageError, match=r"has no Optuna study 'ours', only \[\]"):
        from_optuna(url, "ours")


def test_a_missing_file_is_not_made(url: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"there is no .*optuna.db"):
        from_optuna(url, "ours")
    with pytest.raises(StorageError, match=r"there is no folder .*nowhere"):
        to_optuna(make_study({"x": Real(0, 1)}), f"sqlite:///{tmp_path}/nowhere/optuna.db", "ours")
    assert list(tmp_path.iterdir()) == []


def test_reading_leaves_other_files_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database\n" * 100)
    with pytest.raises(StorageError, match=r"text.db cannot be read as an Optuna storage: .*not a database"):
        from_optuna(f"sqlite:///{tmp_path}/text.db")
    LlamaTune({"x": Real(0, 1)}, storage=f"sqlite:///{tmp_path}/ours.db")
    with pytest.raises(StorageError, match=r"ours.db cannot be read as an Optuna storage: .*no such table"):
        from_optuna(f"sqlite:///{tmp_path}/ours.db")
    connection = sqlite3.connect(tmp_path / "ours.db")
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    connection.close()
    assert tables
    assert all(name.startswith("llamatune_") for name in tables)


@pytest.mark.parametrize("storage", ["optuna.db", None, "sqlite://", "sqlite:///:memory:"])
def test_what_is_no_url_of_a_file_or_server_is_refused(storage: Any) -> None:
    with pytest.raises(SettingsError, match=r"storage must .*'sqlite:///optuna.db', but got"):
        from_optuna(storage)


def test_messages_keep_passwords_to_themselves() -> None:
    with pytest.raises(
        StorageError, match=r"nosuchdb://me:\*\*\*@host/x cannot be read as an Optuna storage"
    ) as caught:
        from_optuna("nosuchdb://me:secret@host/x")
    assert "secret" not in str(caught.value)


def test_names_that_collide_or_are_empty_are_refused(url: str) -> None:
    space = {"wd": Real(0.1, 1, special=[0.0]), "wd (special)": [1, 2]}
    with pytest.raises(SpaceError, match=r"'wd \(special\)' has the name that special values of another need"):
        to_optuna(make_study(space), url, "ours")
    with pytest.raises(SettingsError, match="name must be a non-empty string, but got ''"):
        to_optuna(make_study({"x": Real(0, 1)}), url, "")


def test_optuna_is_quiet_and_its_loggers_are_as_before(url: str, caplog: pytest.LogCaptureFixture) -> None:
    loggers = [logging.getLogger("optuna"), logging.getLogger("alembic")]
    optuna.logging.set_verbosity(optuna.logging.INFO)
    loggers[0].addHandler(caplog.handler)  # Optuna's own writes to what was stderr when it was imported
    loggers[1].setLevel(logging.NOTSET)
    try:
        to_optuna(make_study({"x": Real(0, 1)}, [({"x": 0.5}, 1.0)]), url, "ours")
        from_optuna(url)
    finally:
        loggers[0].removeHandler(caplog.handler)
    assert caplog.records == []
    assert [log.level for log in loggers] == [logging.INFO, logging.NOTSET]


def test_without_optuna_the_message_names_the_extra() -> None:
    code = "import sys; sys.modules['optuna'] = None; import llamatune_torch.integrations.optuna.studies"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ModuleNotFoundError: to_optuna() and from_optuna() need optuna: pip install 'llamatune-torch[optuna]'" in (
        run.stderr
    )


def test_the_space_is_there_for_people_to_read(url: str) -> None:
    to_optuna(make_study({"x": Real(0, 1)}), url, "ours")
    with Opened(url, "ours") as exported:
        assert [entry["name"] for entry in json.loads(exported.user_attrs[SPACE])] == ["x"]


def test_old_trials_of_an_extended_study_are_exported_as_they_count_now(url: str, tmp_path: Path) -> None:
    names: Any = {"storage": f"sqlite:///{tmp_path}/ours.db", "name": "ours"}
    LlamaTune({"x": Real(0, 1), "n": [1, 2]}, **names).add_trial({"x": 0.5, "n": 2}, 1.0)
    grown = LlamaTune({"x": Real(0, 1), "y": Real(0, 1)}, extend={"y": 0.25}, **names)
    assert to_optuna(grown.study, url, "ours") == 1
    (trial,) = from_optuna(url).trials
    assert trial.params == {"x": 0.5, "y": 0.25}
    assert trial.notes["params.n"] == "2"
