"""Snapshots of past studies live with the study that learns from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from durable import execute

from llamatune_torch import LlamaTune, Real, SchemaError, StudyMismatchError, load_study
from llamatune_torch.past import PastStudy, PastTrial
from llamatune_torch.storage.document import from_document, restore, to_document
from llamatune_torch.storage.reader import Reader
from llamatune_torch.storage.snapshots import read_past


def old(shift: float = 0.0, name: str = "old") -> PastStudy:
    trials = [PastTrial({"x": i / 9}, (i / 9 - 0.4 - shift) ** 2) for i in range(10)]
    trials += [PastTrial({"x": 0.95}, None), PastTrial({"x": 0.99}, float("inf"))]
    return PastStudy(name, "minimize", tuple(trials), {"parameters": 1e8})


def tuner(url: str, **arguments: Any) -> LlamaTune:
    return LlamaTune({"x": Real(0, 1)}, storage=url, direction="minimize", progress=False, **arguments)


def test_a_later_start_and_a_worker_have_the_snapshots_that_the_first_one_stored(url: str) -> None:
    first = tuner(url, past=[old(), old(0.1)], context={"parameters": 1e9})
    trial = first.ask()
    worker = tuner(url)
    assert worker.study.past == first.study.past
    assert worker.study.context == {"parameters": 1e9}
    assert len(first.study.past) == 2
    worker.tell(trial.number, 0.1)
    alone = LlamaTune({"x": Real(0, 1)}, direction="minimize", past=[old(0.1), old()], context={"parameters": 1e9})
    alone.tell(alone.ask(), 0.1)
    assert worker.ask().params == alone.ask().params
    assert load_study(url).past == first.study.past


def test_another_past_is_a_mismatch_unless_it_is_accepted(url: str) -> None:
    tuner(url, past=[old()])
    tuner(url, past=[old(name="the same under another name")])
    with pytest.raises(StudyMismatchError, match=r"past studies: stored 'old' \(\w+\), given 'new' \(\w+\)"):
        tuner(url, past=[old(0.1, name="new")])
    with pytest.raises(StudyMismatchError, match=r'context: stored \{\}, given \{"tokens":3.0\}'):
        tuner(url, context={"tokens": 3.0})
    accepted = tuner(url, past=[old(0.1)], context={"tokens": 3.0}, extend=True)
    assert tuner(url).study.past == accepted.study.past == (old(0.1),)
    assert tuner(url).study.context == {"tokens": 3.0}


def test_a_study_without_a_past_can_be_given_one(url: str) -> None:
    tuner(url).ask()
    with pytest.raises(StudyMismatchError, match="past studies: stored none, given 'old'"):
        tuner(url, past=[old()])
    assert tuner(url, past=[old()], extend=True).study.past == (old(),)


def test_a_document_has_the_past_and_restores_it(sqlite_url: str, tmp_path: Path) -> None:
    made = tuner(sqlite_url, past=[old()], context={"parameters": 1e9}, name="mine")
    made.tell(made.ask(), 0.3)
    document = json.loads(json.dumps(to_document(Reader(sqlite_url).look()), allow_nan=False))
    other = f"sqlite:///{tmp_path}/other.db"
    restore(other, "mine", from_document(document))
    restored = load_study(other)
    assert restored.past == made.study.past
    assert restored.context == {"parameters": 1e9}
    assert tuner(other, name="mine").ask().params == tuner(sqlite_url, name="mine").ask().params


def test_a_snapshot_that_is_gone_or_damaged_is_said(sqlite_url: str) -> None:
    tuner(sqlite_url, past=[old()])
    execute(sqlite_url, "UPDATE llamatune_past SET document = '{\"name\": 3}'")
    with pytest.raises(SchemaError, match="past"):
        load_study(sqlite_url)
    execute(sqlite_url, "DELETE FROM llamatune_past")
    with pytest.raises(SchemaError, match=f"the database has no past study '{old().key}'"):
        load_study(sqlite_url)


@pytest.mark.parametrize(
    "change",
    [
        {"direction": "up"},
        {"trials": [[{"x": 1}]]},
        {"trials": [[{"x": 1}, "high"]]},
        {"trials": 3},
        {"context": {"parameters": -1}},
        {"name": 4},
    ],
)
def test_what_no_snapshot_says_is_refused(change: dict[str, Any]) -> None:
    written = json.loads(json.dumps(old().to_json()))
    assert read_past(written, "past") == old()
    with pytest.raises(SchemaError):
        read_past({**written, **change}, "past")
