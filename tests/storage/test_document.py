"""A study as a document, and trials from a table: nothing is lost, and what cannot be read is named."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import make_study, make_trial, params_of, spaces

from llamatune_torch import (
    Categorical,
    Curve,
    Integer,
    LlamaTune,
    Outcome,
    ParamsError,
    Real,
    SchemaError,
    SearchSpace,
    SettingsError,
    StorageError,
    Study,
    Trial,
    TrialState,
)
from llamatune_torch.storage.document import from_document, restore, to_document
from llamatune_torch.storage.reader import Reader, Snapshot
from llamatune_torch.tables import read_table

NUMBERS = st.floats(allow_nan=False)


def snapshot(study: Study, settled: bool = True) -> Snapshot:
    return Snapshot("mine", study, settled, {"seed": 3, "max_evals": 50}, {}, 0.0)


@st.composite
def studies(draw: st.DrawFn) -> Study:
    space = draw(spaces())
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
    return Study(space, draw(st.sampled_from(["maximize", "minimize"])), "value", (), tuple(trials))


@given(studies(), st.booleans())
def test_a_study_survives_the_way_to_strict_json_and_back(study: Study, settled: bool) -> None:
    document = to_document(snapshot(study, settled))
    text = json.dumps(document, allow_nan=False)  # which other programs read too
    again = from_document(json.loads(text))
    assert repr(again) == repr(snapshot(study, settled))  # tells 1, 1.0 and True apart


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
    with pytest.raises(SchemaError, match=r"no study that export has written|cannot be read"):
        from_document(document)


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


TABLE = """\
number,state,value,params.lr,params.fp16,params.clip,params.rank,cost,reason,outcomes.gb
0,complete,0.5,0.001,True,,4,2.5,,7.5
1,failed,,1e-05,False,1.0,2.0,,out of memory,
2,complete,nan,1e-05,False,1.0,2,,,
3,running,,1e-05,False,1.0,2,,,
4,,0.25,0.01,True,1.0,,,,
"""
SPACE = {
    "rank": Integer(1, 8, when={"fp16": True, "clip": None}),
    "lr": Real(1e-5, 1e-2, prior="log-uniform"),
    "fp16": Categorical([True, False]),
    "clip": Categorical([None, 1.0]),
}


def test_a_table_by_hand() -> None:
    trials = read_table(io.StringIO(TABLE), make_study(SPACE))
    assert [trial.state for trial in trials] == ["complete", "failed", "failed", "lost", "complete"]
    assert trials[0].params == {"lr": 0.001, "fp16": True, "clip": None, "rank": 4}
    assert isinstance(trials[0].params["rank"], int)
    assert (trials[0].value, trials[0].cost, trials[0].outcomes) == (0.5, 2.5, {"gb": 7.5})
    assert (trials[1].reason, trials[1].value, trials[1].outcomes) == ("out of memory", None, {})
    assert trials[4].params == {"lr": 0.01, "fp16": True, "clip": 1.0}


def test_the_plainest_table_has_names_and_a_score() -> None:
    study = make_study({"x": Real(0, 1), "how": Categorical(["a", "b"])})
    (trial,) = read_table(["how,x,note,value\n", "b, 0.25 ,hello,0.5\n"], study)
    assert (trial.params, trial.value, trial.state) == ({"x": 0.25, "how": "b"}, 0.5, TrialState.COMPLETE)


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        ("", SettingsError, "needs a column for parameter 'x', 'params.x' or 'x', but has []"),
        ("x\n0.5\n", SettingsError, "needs a column for the value, 'value'"),
        ("x,value\nfast,0.5\n", SettingsError, "row 1, column 'x': must be a number, but got 'fast'"),
        ("x,value\n0.5,0.5\n0.5,good\n", SettingsError, "row 2, column 'value': must be a number, but got 'good'"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place(table: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        read_table(io.StringIO(table), make_study({"x": Real(0, 1)}))
    assert message in str(caught.value)


def test_a_choice_that_does_not_exist() -> None:
    study = make_study({"how": Categorical(["a", None])})
    with pytest.raises(ParamsError, match=r"row 1, column 'how': must be one of \['a', ''\], but got 'c'"):
        read_table(["how,value\n", "c,1\n"], study)
