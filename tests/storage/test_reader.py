"""Looking at stored studies: nothing changes, nobody waits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from durable import store_of

from llamatune_torch import LlamaTune, Outcome, Real, SchemaError, SettingsError, StorageError, TrialState, load_study
from llamatune_torch.storage import database
from llamatune_torch.storage.definition import remember
from llamatune_torch.storage.reader import Reader, find_study

SPACE = {"x": Real(0, 1)}


def tuner(url: str, name: str = "mine") -> LlamaTune:
    return LlamaTune(SPACE, storage=url, name=name, n_initial=1000, max_evals=7, seed=3)


def test_a_study_as_it_is(url: str) -> None:
    mine = tuner(url)
    mine.tell(mine.ask(), 0.5)
    mine.tell(mine.ask(), Outcome.failure("out of memory"))
    trial = mine.ask()
    stored = Reader(url).look()
    assert repr(stored.study) == repr(mine.study) == repr(load_study(url, "mine"))
    assert (stored.name, stored.study.is_settled) == ("mine", True)
    assert (stored.settings["seed"], stored.settings["max_evals"]) == (3, 7)
    assert list(stored.workers) == [trial.worker]
    assert 0 <= stored.workers[trial.worker or ""].silent_for < 60
    assert trial.started is not None
    assert 0 <= stored.now - trial.started < 60


def test_reading_a_study_loads_no_torch(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    mine = tuner(url)
    mine.tell(mine.ask(), 0.5)
    code = (
        f"from llamatune_torch import load_study; print(load_study({url!r}).summary()); import sys; print(*sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "best value (maximize): 0.5 in trial 0" in shown
    assert not {"torch", "botorch", "gpytorch", "scipy", "pandas"} & set(shown.splitlines()[-1].split())


def test_it_sees_what_others_do_meanwhile(url: str) -> None:
    mine, reader = tuner(url), Reader(url)
    trial = mine.ask()
    assert reader.look().study.pending == [trial]
    mine.tell(trial, 0.5)
    assert reader.look().study.best_value == 0.5
    assert reader.look().workers == {}


def test_the_only_study_needs_no_name_and_several_are_listed(url: str) -> None:
    tuner(url, "one")
    assert Reader(url).look().name == "one"
    tuner(url, "two")
    assert Reader(url).names() == ["one", "two"]
    with pytest.raises(StorageError, match=r"has several studies, say the name of one: \['one', 'two'\]"):
        load_study(url)
    with pytest.raises(StorageError, match=r"has no study 'three', only \['one', 'two'\]"):
        load_study(url, "three")


def test_a_database_without_studies(url: str) -> None:
    database.Database(url)
    assert Reader(url).names() == []
    assert find_study(url, "mine") is None
    with pytest.raises(StorageError, match="has no study"):
        load_study(url)


def test_a_file_that_is_not_there_is_not_made(sqlite_url: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"there is no .*study\.db"):
        load_study(sqlite_url)
    assert find_study(sqlite_url, "mine") is None
    assert not list(tmp_path.iterdir())


def test_an_empty_file_has_no_studies_and_stays_empty(sqlite_url: str, tmp_path: Path) -> None:
    (tmp_path / "study.db").touch()
    assert Reader(sqlite_url).names() == []
    assert (tmp_path / "study.db").read_bytes() == b""


def test_what_is_no_study_file(sqlite_url: str, tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("a diary\n" * 1000)
    with pytest.raises(SchemaError, match=r"study\.db is damaged, or no database at all"):
        load_study(sqlite_url)
    with pytest.raises(SettingsError, match="storage must be a URL"):
        load_study("study.db")


def test_a_file_of_a_newer_version(sqlite_url: str) -> None:
    tuner(sqlite_url)
    database.Database(sqlite_url).write(lambda t: t.run("UPDATE llamatune_schema SET version = 99"))
    with pytest.raises(SchemaError, match="newer version"):
        load_study(sqlite_url)


def test_a_file_of_an_older_version_is_brought_up_to_date(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tuner(sqlite_url)
    mine.tell(mine.ask(), 0.5)
    newer = (*database.MIGRATIONS, ("ALTER TABLE llamatune_studies ADD COLUMN mood TEXT",))
    monkeypatch.setattr(database, "MIGRATIONS", newer)
    assert load_study(sqlite_url).best_value == 0.5
    assert database.Database(sqlite_url, reading=True).version == len(newer)


def test_a_reader_cannot_write(url: str) -> None:
    tuner(url)
    opened = database.Database(url, reading=True)
    if opened.kind == "sqlite":
        with pytest.raises(Exception, match="readonly"):
            opened.write(lambda t: t.run("DELETE FROM llamatune_studies"))


def test_what_is_remembered_stays_with_later_starts(url: str) -> None:
    tuner(url)
    remember(url, "mine", {"launch": {"target": "spec.py"}})
    tuner(url)
    stored = Reader(url).look()
    assert stored.settings["launch"] == {"target": "spec.py"}
    assert stored.settings["seed"] == 3


def test_a_read_only_disk(small_disk: Path) -> None:
    url = f"sqlite:///{small_disk}/study.db"
    mine = tuner(url)
    mine.tell(mine.ask(), 0.5)
    del mine  # which closes it
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert load_study(url).best_value == 0.5


def test_a_running_study_is_read_while_somebody_writes(sqlite_url: str) -> None:
    mine = tuner(sqlite_url)
    mine.ask()
    with store_of(mine).session.database._engine.connect() as writer, writer.begin():
        assert len(load_study(sqlite_url).in_state(TrialState.RUNNING)) == 1


def test_a_reader_that_may_not_mark_the_file_sees_what_happens_later(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of another user. Nobody writes at the first look, so that SQLite takes the file for one that never changes."""
    mine = tuner(sqlite_url)
    mine.tell(mine.ask(), 0.5)
    store_of(mine).session.database._engine.dispose()
    assert not (tmp_path / "study.db-wal").exists()
    with monkeypatch.context() as patch:
        patch.setattr(database.os, "access", lambda *_: False)
        reader = Reader(sqlite_url)
        assert reader.look().study.best_value == 0.5
        mine.tell(mine.ask(), 0.75)
        assert reader.look().study.best_value == 0.75
        store_of(mine).session.database._engine.dispose()
        assert reader.look().study.best_value == 0.75
