"""One process's view of a stored study: what is read, what is committed, what others do meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from durable import execute, store_of, tuner

from llamatune_torch import (
    Cause,
    Integer,
    Outcome,
    Real,
    SchemaError,
    StorageError,
    Trial,
    TrialState,
    TrialStateError,
    load_study,
)
from llamatune_torch.storage import session
from llamatune_torch.storage.serialization import read_trial
from llamatune_torch.storage.session import LockedStudy


def test_a_load_reads_only_what_has_changed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = tuner(url), tuner(url)
    for _ in range(20):
        one.tell(one.ask(), 0.5)
    two.ask()
    read: list[int] = []

    def counting(row: Mapping[str, Any], *rest: Any, **named: Any) -> Trial:
        read.append(row["number"])
        return read_trial(row, *rest, **named)

    monkeypatch.setattr(session, "read_trial", counting)
    two.ask()
    assert read == []
    one.tell(one.ask(), 0.5)
    read.clear()
    two.ask()
    assert read == [22]


def test_only_what_was_committed_is_known_here(url: str) -> None:
    mine = tuner(url)
    trial = mine.ask()
    before = mine.study

    def work(locked: LockedStudy) -> None:
        locked.put(trial.given_up(Cause.ABANDONED, "no", locked.now))
        locked.settle("loss", "minimize")
        assert locked.study.pending == []
        assert (locked.study.metric, locked.study.direction) == ("loss", "minimize")
        raise TrialStateError("changed my mind")

    with pytest.raises(TrialStateError, match="changed my mind"):
        store_of(mine).session.write(work, "a test")
    assert mine.study is before
    assert store_of(mine).session.refresh() == before


def test_a_trial_is_read_as_it_was_written_also_where_it_does_not_fit_the_space(url: str) -> None:
    tuner(url).ask()
    other = tuner(url, space={"x": Real(2, 3), "n": Integer(1, 8)}, extend=True)
    shown, written = store_of(other).session.write(lambda locked: (locked.trials[0], locked.read(0)), "to be read")
    assert (shown.state, shown.cause) == (TrialState.LOST, Cause.OUTSIDE)
    assert (written.state, written.params) == (TrialState.RUNNING, shown.params)


def test_a_study_that_was_deleted_is_named(url: str) -> None:
    mine = tuner(url)
    execute(url, "DELETE FROM llamatune_studies")
    with pytest.raises(StorageError, match="the study has been deleted from its database"):
        mine.ask()


def test_what_could_not_be_written_is_known_here_until_somebody_changes_it(url: str) -> None:
    mine, other = tuner(url), tuner(url)
    trial = mine.ask()
    here = store_of(mine).session
    assert here.find_open(0) == here.find_open(trial) == trial
    here.remember(trial.finished_with(Outcome(0.5), 0.0))
    assert mine.study.best_value == 0.5
    assert here.refresh().best_value == 0.5  # the row has not changed
    with pytest.raises(TrialStateError, match="trial 0 has finished"):
        here.find_open(0)
    other.tell(0, 0.75)
    assert here.refresh().best_value == 0.75


def test_a_trial_that_has_gone_from_the_database_is_not_written_in_silence(url: str) -> None:
    mine = tuner(url)
    mine.tell(mine.ask(), 0.5)
    trial = mine.ask()
    execute(url, "DELETE FROM llamatune_trials WHERE number = 1")
    with pytest.raises(StorageError, match="trial 1 cannot be written: the database has no such trial"):
        store_of(mine).session.write(lambda locked: locked.put(trial), "a test")


def test_a_gap_between_trials_is_named(url: str) -> None:
    mine = tuner(url)
    for _ in range(3):
        mine.tell(mine.ask(), 0.5)
    execute(url, "DELETE FROM llamatune_trials WHERE number = 1")
    with pytest.raises(SchemaError, match="trial 1 is not in the database, but trial 2 is"):
        load_study(url)
    with pytest.raises(SchemaError, match="trial 1 is not in the database, but trial 2 is"):
        tuner(url)


@pytest.mark.parametrize("column", ["lease_owner", "lease_until", "suggest_seconds"])
def test_a_damaged_column_of_a_study_is_named(column: str, tmp_path: Path) -> None:
    """SQLite keeps anything in any column."""
    url = f"sqlite:///{tmp_path}/study.db"
    mine = tuner(url)
    execute(url, f"UPDATE llamatune_studies SET {column} = x'00ff'")
    with pytest.raises(SchemaError, match=f"study .*: {column} must be"):
        mine.ask()


def test_a_damaged_sign_of_life_is_named(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    tuner(url).ask()
    execute(url, "UPDATE llamatune_workers SET heartbeat = 'soon'")
    with pytest.raises(SchemaError, match=r"worker .*: heartbeat must be a number, but got 'soon'"):
        tuner(url).ask()
