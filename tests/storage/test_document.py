"""A study as a document, and trials from a table: nothing is lost, and what cannot be read is named."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
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
    StorageError,
    Study,
    Trial,
    TrialState,
)
from llamatune_torch.storage.document import from_document, restore, to_document
from llamatune_torch.storage.reader import Reader, Snapshot
from llamatune_torch.study import Goal

NUMBERS = st.floats(allow_nan=False)
GOALS = st.builds(Goal, st.sampled_from(["maximize", "minimize"]), st.sampled_from([None, "value", "eval_f1"]))


def snapshot(study: Study) -> Snapshot:
    return Snapshot("mine", study, {"seed": 3, "max_evals": 50}, {}, 0.0)


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
    return Study(space, draw(GOALS), (), tuple(trials))


@given(studies())
def test_a_study_survives_the_way_to_strict_json_and_back(study: Study) -> None:
    document = to_document(snapshot(study))
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
