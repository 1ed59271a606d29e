"""Files of a database that are deleted, moved, replaced or cut short while a search has them open."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from durable import eventually, hill, states, store_of, tuner

from llamatune_torch import StorageError, load_study


def replace(path: Path) -> None:
    shutil.copy(path, path.with_name("copy"))
    path.with_name("copy").rename(path)


def cut(path: Path) -> None:
    os.truncate(path, 0)


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


GONE = "was deleted, moved or replaced while .*study.db was open"
CUT = "study.db-wal has lost its end"
WAYS = [
    ("study.db", Path.unlink, GONE),
    ("study.db", lambda path: path.rename(path.with_name("elsewhere.db")), GONE),
    ("study.db", replace, GONE),
    ("study.db-wal", Path.unlink, GONE),
    ("study.db-wal", replace, GONE),
    ("study.db-wal", cut, CUT),
    ("study.db-wal", halve, CUT),
    ("study.db-shm", Path.unlink, GONE),
]


@pytest.mark.parametrize(("name", "harm", "message"), WAYS)
def test_a_search_that_loses_its_files_says_so_at_once_and_keeps_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, harm: Callable[[Path], Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "studies"
    folder.mkdir()

    def evaluate(params: dict[str, Any]) -> float:
        if len(mine.study.trials) == 4:
            harm(folder / name)
        return hill(params)

    mine = tuner(f"sqlite:///{folder}/study.db", evaluate, max_evals=12)
    with pytest.raises(StorageError, match=f"(?s){message}.*The result of trial 3 is value=.* it is kept in"):
        mine.optimize()
    assert states(mine.study) == ["complete"] * 4
    assert len(list(folder.glob("*.unsaved-*"))) == 1
    with pytest.raises(StorageError, match=message):
        mine.ask()


def test_a_folder_that_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "studies"
    folder.mkdir()
    mine = tuner(f"sqlite:///{folder}/study.db")
    trial = mine.ask()
    shutil.rmtree(folder)
    with pytest.raises(StorageError, match=f"{GONE}.*kept in {tmp_path}/llamatune-"):
        mine.tell(trial, 0.5)
    assert not folder.exists()


def test_no_new_file_is_made_in_the_place_of_one_that_is_gone(sqlite_url: str, tmp_path: Path) -> None:
    mine = tuner(sqlite_url)
    store_of(mine).session.database._engine.dispose()
    (tmp_path / "study.db").unlink()
    with pytest.raises(StorageError, match=GONE):
        mine.ask()
    assert not (tmp_path / "study.db").exists()


def test_the_loss_is_said_also_while_a_trial_trains(
    sqlite_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine = tuner(sqlite_url, grace=0.4)
    mine.ask()
    (tmp_path / "study.db").unlink()
    eventually(lambda: "no sign of life could be given" in caplog.text)
    assert "study.db was deleted, moved or replaced" in caplog.text


def test_a_file_that_comes_back_is_written_again(sqlite_url: str, tmp_path: Path) -> None:
    mine = tuner(sqlite_url)
    trial = mine.ask()
    (tmp_path / "study.db").rename(tmp_path / "elsewhere.db")
    with pytest.raises(StorageError):
        mine.tell(trial, 0.5)
    (tmp_path / "elsewhere.db").rename(tmp_path / "study.db")
    mine.ask()
    assert load_study(sqlite_url).best_value == 0.5


def test_an_index_that_is_cut_short_is_built_again(sqlite_url: str, tmp_path: Path) -> None:
    """Without that, the system kills the process (SIGBUS)."""
    mine = tuner(sqlite_url)
    trial = mine.ask()
    os.truncate(tmp_path / "study.db-shm", 0)
    mine.tell(trial, 0.5)
    assert load_study(sqlite_url).best_value == 0.5


def test_another_programs_checkpoint_does_no_harm(sqlite_url: str, tmp_path: Path) -> None:
    mine = tuner(sqlite_url)
    trial = mine.ask()
    with closing(sqlite3.connect(tmp_path / "study.db")) as other:
        assert other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
    assert (tmp_path / "study.db-wal").stat().st_size == 0
    mine.tell(trial, 0.5)
    assert load_study(sqlite_url).best_value == 0.5


def test_an_interrupted_transaction_does_no_harm(sqlite_url: str) -> None:
    """Its connection is closed; the last one to close removes the log and its index."""
    mine = tuner(sqlite_url)
    trial = mine.ask()
    store_of(mine)._heartbeat.numbers.clear()

    def interrupt(_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store_of(mine).session.write(interrupt, "a test")
    mine.tell(trial, 0.5)
    assert load_study(sqlite_url).best_value == 0.5
