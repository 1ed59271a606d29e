"""A study as a document, and trials from a table: nothing is lost, and what cannot be read is named."""

from __future__ import annotations

import io
import json
import math
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import make_study, make_trial, params_of, spaces

from llamatune_torch import (
    Curve,
    Integer,
    LlamaTune,
    Outcome,
    Real,
    SchemaError,
    SearchSpace,
    SettingsError,
    StorageError,
    Study,
    StudyMismatchError,
    Trial,
    TrialState,
    load_study,
)
from llamatune_torch.storage.document import from_document, restore, to_document
from llamatune_torch.storage.reader import Reader, Snapshot
from llamatune_torch.study import End, Goal
from llamatune_torch.tables import read_table, to_csv, trials_table

NUMBERS = st.floats(allow_nan=False)
GOALS = st.builds(Goal, st.sampled_from(["maximize", "minimize"]), st.sampled_from([None, "value", "eval_f1"]))


def snapshot(study: Study) -> Snapshot:
    return Snapshot("mine", study, {"seed": 3, "max_evals": 50}, {}, 0.0)


@st.composite
def studies(draw: st.DrawFn) -> Study:
    space = draw(spaces())
    if draw(st.booleans()):
        space = SearchSpace(space, default=draw(params_of(space)))
    states = [TrialState.COMPLETE, TrialState.FAILED, TrialState.LOST]
    trials: list[Trial] = []
    for i in range(draw(st.integers(0, 3))):
        state = draw(st.sampled_from(states))
        trials.append(
            make_trial(
                i,
                space.validate(draw(params_of(space))),
                draw(NUMBERS) if state is TrialState.COMPLETE else None,
                state,
                curve=Curve((1.0,), (draw(NUMBERS),), (draw(st.sampled_from([None, 0.5])),)),
                outcomes={"memory": draw(NUMBERS)},
                cost=draw(st.one_of(st.none(), NUMBERS)),
                error=draw(st.one_of(st.none(), st.text(max_size=5))),
                notes={"inf": "nan"},  # text stays text
            )
        )
    return Study(space, draw(GOALS), (), tuple(trials))


@given(studies())
def test_a_study_survives_the_way_to_strict_json_and_back(study: Study) -> None:
    document = to_document(snapshot(study))
    assert from_document(document).study.space.default == study.space.default
    text = json.dumps(document, allow_nan=False)  # which other programs read too
    again = from_document(json.loads(text))
    assert repr(again) == repr(snapshot(study))  # tells 1, 1.0 and True apart


def test_nan_survives_too_and_running_trials_are_lost() -> None:
    study = make_study({"x": Real(0, 1)}, [({"x": 0.5}, -math.inf)], running=[{"x": 0.25}])
    study = study.with_trial(make_trial(2, {"x": 0.5}, 1.0, curve=Curve((1.0,), (math.nan,), (None,))))
    again = from_document(json.loads(json.dumps(to_document(snapshot(study)), allow_nan=False))).study
    assert again.trials[0].value == -math.inf
    assert math.isnan(again.trials[2].curve.values[0])
    assert (again.trials[1].state, again.trials[1].reason) == (TrialState.LOST, "running elsewhere")
    assert not again.trials[1].is_open


@pytest.mark.parametrize(
    "document",
    [
        [],
        None,
        {},
        {"llamatune_study": 2},
        {"llamatune_study": 1},
        {**to_document(snapshot(make_study({"x": Real(0, 1)}))), "space": [{"kind": "Complex"}]},
        {**to_document(snapshot(make_study({"x": Real(0, 1)}))), "trials": [{"number": 0}]},
    ],
)
def test_anything_else_is_named(document: Any) -> None:
    with pytest.raises(SchemaError, match=r"no study that export has written|cannot be read|has no"):
        from_document(document)


@pytest.mark.parametrize("numbers", [[2, 1, 0], [0, 2, 3], [0, 1, 1], [0, 1, True], [0, 1, "2"]])
def test_numbers_that_are_not_in_order_are_refused(numbers: list[Any]) -> None:
    document = to_document(snapshot(make_study({"x": Real(0, 1)}, [({"x": i / 4}, 0.5) for i in range(3)])))
    for entry, number in zip(document["trials"], numbers, strict=True):
        entry["number"] = number
    with pytest.raises(SchemaError, match=r"number must be .*, but got"):
        from_document(document)


NESTED: list[Any] = []
for _ in range(5000):
    NESTED = [NESTED]
ODD: list[Any] = [None, True, -1, 0.5, 10**400, -(10**5000), "x", "nan", "\ud800", [], {}, [[]], {"a": {}}, NESTED]


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to each value within a document."""
    if value is NESTED:
        return [path]
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(way for key, within in inner for way in paths(within, (*path, key)))]


def full_document() -> dict[str, Any]:
    """A document with something in each field."""
    space = {"x": Real(0, 1, special=[2.0]), "how": ["a", None], "n": Integer(1, 8, when={"how": "a"})}
    study = make_study(space, [({"x": 0.5, "how": "a", "n": 2}, 0.5), ({"x": 2.0, "how": None}, None)])
    curve = Curve((1.0, 2.0), (0.5, math.inf), (0.5, None))
    rest: Any = {
        "outcomes": {"gb": 1.0},
        "notes": {"a": "b"},
        "cost": 1.0,
        "started": 1.0,
        "retry_of": 1,
        "worker": "w",
    }
    study = study.with_trial(make_trial(2, {"x": 0.25, "how": None}, 0.25, curve=curve, **rest))
    document: dict[str, Any] = json.loads(json.dumps(to_document(snapshot(study)), allow_nan=False))
    return document


@given(st.data())
@settings(max_examples=300)
def test_a_damaged_document_is_refused_or_loses_nothing(data: st.DataObject) -> None:
    document = full_document()
    for _ in range(data.draw(st.integers(1, 2))):
        way = data.draw(st.sampled_from(paths(document)[1:]))
        place: Any = document
        for key in way[:-1]:
            place = place[key]
        if data.draw(st.booleans()):
            del place[way[-1]]
        else:
            place[way[-1]] = data.draw(st.sampled_from(ODD))
    said = ""
    try:
        study = from_document(document).study
    except SchemaError as error:
        said = str(error)
    assert len(said) < 2000
    if said:
        return
    assert len(study.trials) == len(document["trials"])
    # All that is done with a study takes it.
    json.dumps(to_document(snapshot(study)), allow_nan=False)
    assert study.summary()
    assert len(study.rows()) == len(study.trials)
    assert trials_table(study.trials)
    assert study.spent <= len(study.trials)


ROW_ODD: list[Any] = [None, -1, 1.5, 2**62, "x", b"\xff", "[" * 5000, "{}", "[]", "1" * 5000, "null", float("inf")]


@given(st.sampled_from(["trials", "studies"]), st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_row_is_named_or_loses_nothing(stored: Path, table: str, data: st.DataObject) -> None:
    columns = {
        "trials": ["number", "state", "origin", "value", "params", "worker", "retry_of", "details"],
        "studies": ["space", "direction", "metric", "initial_points", "settings"],
    }[table]
    column, value = data.draw(st.sampled_from(columns)), data.draw(st.sampled_from(ROW_ODD))
    file = stored.with_name("damaged.db")
    file.write_bytes(stored.read_bytes())
    with closing(sqlite3.connect(file)) as connection, suppress(sqlite3.IntegrityError):
        where = " WHERE number = 1" if table == "trials" else ""
        connection.execute(f"UPDATE llamatune_{table} SET {column} = ?{where}", (value,))
        connection.commit()
    said = ""
    try:
        study = load_study(f"sqlite:///{file}")
    except SchemaError as error:
        said = str(error)
    assert len(said) < 2000
    if said:
        return
    assert len(study.trials) == 3
    assert study.summary()
    assert len(study.rows()) == 3


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    restore(f"sqlite:///{tmp_path}/study.db", "mine", from_document(full_document()))
    with closing(sqlite3.connect(tmp_path / "study.db")) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")  # all of it in one file
    return tmp_path / "study.db"


def test_a_restored_study_advises_what_the_first_would_have(url: str, tmp_path: Path) -> None:
    space = SearchSpace({"x": Real(-1, 1), "n": Integer(1, 8)})
    first = LlamaTune(space, seed=5, n_initial=3, max_evals=20, storage=f"sqlite:///{tmp_path}/first.db", name="a")
    for i in range(6):
        trial = first.ask()
        first.tell(trial, Outcome.failure("no") if i == 2 else -((trial.params["x"] - 0.3) ** 2))
    archived = from_document(json.loads(json.dumps(to_document(Reader(f"sqlite:///{tmp_path}/first.db").look()))))
    restore(url, "b", archived)
    second = LlamaTune(space, n_initial=3, max_evals=20, storage=url, name="b")
    assert second.study.trials == first.study.trials
    assert second.token != first.token  # a copy is another study, with folders of its own
    assert second.settings.seed == 5
    mine, others = first.ask(), second.ask()
    assert (mine.number, mine.params, mine.seed, mine.origin) == (
        others.number,
        others.params,
        others.seed,
        others.origin,
    )
    with pytest.raises(StorageError, match="has a study 'b' already"):
        restore(url, "b", archived)


def test_a_value_beyond_a_databases_integers(url: str) -> None:
    document = full_document()
    document["trials"][0]["value"] = 2**70
    restore(url, "b", from_document(document))
    assert load_study(url, "b").trials[0].value == 2.0**70


def test_what_a_space_has_gained_and_lost_survives_the_way_through_a_document(url: str, tmp_path: Path) -> None:
    names: Any = {"storage": url, "name": "s", "progress": False, "n_initial": 100}
    old = LlamaTune({"x": Real(0, 1), "n": Integer(1, 8)}, **names)
    for x in (0.25, 0.75):
        old.add_trial({"x": x, "n": 8}, x)
    LlamaTune({"x": Real(0.5, 1), "y": Real(0, 1)}, extend={"y": 0.125}, **names)
    stored = Reader(url).look("s")
    document = json.loads(json.dumps(to_document(stored), allow_nan=False))
    assert document["extension"] == {"values": {"y": 0.125}, "dropped": ["n"]}
    assert [entry["params"] for entry in document["trials"]] == [{"x": x, "n": 8} for x in (0.25, 0.75)]
    copy = f"sqlite:///{tmp_path}/copy.db"
    archived = from_document(document)
    assert (archived.study, archived.written) == (stored.study, stored.written)
    restore(copy, "s", archived)
    again = Reader(copy).look("s")
    assert (again.study, again.written) == (stored.study, stored.written)
    assert [trial.params for trial in again.study.completed] == [{"x": 0.75, "y": 0.125}]
    # In a space as it was at first, all is as it was.
    back = LlamaTune({"x": Real(0, 1), "n": Integer(1, 8)}, **names | {"storage": copy}, extend={"n": 1})
    assert back.study.trials == old.study.trials


def test_a_document_from_before_extensions_is_read_and_a_strange_one_refused() -> None:
    document = to_document(snapshot(make_study({"x": Real(0, 1)}, [({"x": 0.5}, 1.0)])))
    del document["extension"]
    assert from_document(document).study.trials[0].params == {"x": 0.5}
    document["settings"]["extension"] = "odd"  # where a database keeps it, but no document
    assert "extension" not in from_document(document).settings
    for odd in (None, {}, {"values": [], "dropped": []}, {"values": {}, "dropped": [3]}):
        with pytest.raises(SchemaError, match="the exported study: extension"):
            from_document({**document, "extension": odd})


def test_a_document_has_the_limits(tmp_path: Path) -> None:
    limits = {"memory_gb": "<= 8", "rate": [">= 0.5", "<= 2"]}
    search = LlamaTune({"x": (0.0, 1.0)}, max_evals=2, storage=f"sqlite:///{tmp_path}/a.db", constraints=limits)
    search.tell(search.ask(), Outcome(0.5, outcomes={"memory_gb": 1.0, "rate": 1.0}))
    document = json.loads(json.dumps(to_document(Reader(f"sqlite:///{tmp_path}/a.db").look())))
    assert document["constraints"] == {"memory_gb": [None, 8], "rate": [0.5, 2]}
    assert from_document(document).study.constraints == search.study.constraints
    restore(f"sqlite:///{tmp_path}/b.db", "copy", from_document(document))
    assert load_study(f"sqlite:///{tmp_path}/b.db", "copy").constraints == search.study.constraints
    for broken in ({"memory_gb": [8, 1]}, {"memory_gb": "<= 8"}, {"memory_gb": [None]}, [1], {"a": [None, None]}):
        with pytest.raises(SchemaError, match="constraints"):
            from_document({**document, "constraints": broken})


def test_a_document_and_a_stored_study_have_the_objectives(tmp_path: Path) -> None:
    objectives = {"accuracy": ("maximize", 0.5), "latency_ms": "minimize", "bytes": ("minimize", 8)}
    url, space = f"sqlite:///{tmp_path}/a.db", {"x": (0.0, 1.0)}
    search = LlamaTune(space, max_evals=2, storage=url, objectives=objectives)
    search.tell(search.ask(), Outcome(0.7, outcomes={"latency_ms": 3.0, "bytes": 4.0}))
    document = json.loads(json.dumps(to_document(Reader(url).look())))
    assert document["objectives"] == [[None, None, 0.5], ["latency_ms", "minimize", None], ["bytes", "minimize", 8]]
    assert from_document(document).study.goal == search.study.goal
    restore(f"sqlite:///{tmp_path}/b.db", "copy", from_document(document))
    assert load_study(f"sqlite:///{tmp_path}/b.db", "copy").goal == search.study.goal
    assert LlamaTune(space, max_evals=2, storage=url, objectives=objectives).study.goal == search.study.goal
    others = {"accuracy": "maximize", "latency_ms": "minimize"}
    with pytest.raises(StudyMismatchError, match="objectives beside the metric: stored minimize latency_ms, minimize"):
        LlamaTune(space, max_evals=2, storage=url, objectives=others)
    extended = LlamaTune(space, max_evals=2, storage=url, objectives=others, extend=True)
    assert [each.name for each in extended.study.objectives] == ["accuracy", "latency_ms"]
    for broken in (3, [[None]], [[None, None, 0.5], ["a", "up", None]], [[None, None, None], [3, "minimize", None]]):
        with pytest.raises(SchemaError, match="objectives"):
            from_document({**document, "objectives": broken})


def test_the_end_of_a_search_stays_with_its_study(tmp_path: Path) -> None:
    study = Study(SearchSpace({"x": Real(0, 1)}), end=End(0, "enough is known"))
    document = json.loads(json.dumps(to_document(snapshot(study))))
    assert from_document(document).study.ended == "enough is known"
    url = f"sqlite:///{tmp_path}/s.db"
    restore(url, "mine", from_document(document))
    assert load_study(url).ended == "enough is known"
    assert LlamaTune(study.space, storage=url, name="mine").study.ended == "enough is known"
    for odd in ("yes", [1], ["1", "why"], [0, 1]):
        with pytest.raises(SchemaError, match="end"):
            from_document({**document, "end": odd})


def test_a_known_standard_deviation_is_stored_exported_and_read_from_tables(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    tuner = LlamaTune({"x": Real(0, 1)}, storage=url)
    tuner.tell(tuner.ask(), Outcome(0.5, std=0.125))
    tuner.tell(tuner.ask(), 0.75)
    study = load_study(url)
    assert [trial.std for trial in study.trials] == [0.125, None]
    assert from_document(json.loads(json.dumps(to_document(Reader(url).look())))).study.trials == study.trials
    assert study.rows()[0]["std"] == 0.125
    assert "std" not in study.rows()[1]
    table = io.StringIO()
    to_csv(study.rows(), table)
    assert [trial.std for trial in read_table([table.getvalue()], study.space, "value")] == [0.125, None]
    with pytest.raises(SettingsError, match=r"row 1, column 'std': must be a finite number >= 0, but got -1.0"):
        read_table(["x,value,std", "0.5,1,-1"], study.space, "value")
