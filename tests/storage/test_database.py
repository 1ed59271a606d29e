"""The door to SQL: URLs, files that are damaged, foreign, older or newer, connections that break."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import time
import traceback
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from durable import SPACE, states, tuner

from llamatune_torch import LlamaTune, SchemaError, SettingsError, StorageError, load_study
from llamatune_torch.storage import database

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("gpt2.db", "storage must be a URL such as 'sqlite:///study.db' or .*, but got 'gpt2.db'"),
        ("mysql://localhost/x", "storage must be a URL .*, but got one of 'mysql'"),
        ("sqlite://", "storage must name a file, as in 'sqlite:///study.db', but got 'sqlite://'"),
        ("sqlite:///:memory:", "storage must name a file"),
        (7, "storage must be a URL .*, but got 7"),
    ],
)
def test_a_storage_that_is_none(url: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        LlamaTune(SPACE, storage=url)


def test_passwords_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "OPENING_PATIENCE", 0.2)
    with pytest.raises(
        StorageError, match=r"postgresql://me:\*\*\*@127.0.0.1:1/x\?connect_timeout=1 did not allow"
    ) as caught:
        database.Database("postgresql://me:secret@127.0.0.1:1/x?connect_timeout=1")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:s3cr3t@host:s3cr3t/db",
        "postgresql://me:s3cr3t@s3cr3t@host/db",
        "postgresql+nodriver://me:s3cr3t@host/db",
        "postgresql+asyncpg://me:s3cr3t@host/db",
        "mysql://me:s3cr3t@host/db",
        "me:s3cr3t@host/db",
        "sqlite+nodriver:///study.db?password=s3cr3t",
        "sqlite:///:memory:?password=s3cr3t",
    ],
)
def test_a_url_that_is_of_no_use_is_an_error_without_its_password(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        database.Database(url)
    assert "s3cr3t" not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__cause__ is None


def test_a_password_in_the_query_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "OPENING_PATIENCE", 0.2)
    url = "postgresql://me@127.0.0.1:1/db?password=s3cr3t&sslpassword=s3cr3t&connect_timeout=1"
    with pytest.raises(StorageError) as caught:
        database.Database(url)
    assert "s3cr3t" not in str(caught.value)
    assert "postgresql://me@127.0.0.1:1/db" in str(caught.value)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=f"cannot be made: there is no folder {tmp_path}/nowhere"):
        tuner(f"sqlite:///{tmp_path}/nowhere/study.db")


def test_a_read_only_file(small_disk: Path) -> None:
    url = f"sqlite:///{small_disk}/study.db"
    tuner(url)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    # Not "for 10 s": nothing would change by waiting.
    with pytest.raises(
        StorageError, match=r"study\.db did not allow to be opened: .*(readonly|read-only|unable to open)"
    ):
        tuner(url)


def test_a_file_that_is_no_database(sqlite_url: str, tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("a diary\n" * 1000)
    with pytest.raises(SchemaError, match=r"study\.db is damaged, or no database at all: file is not a database"):
        tuner(sqlite_url)
    assert (tmp_path / "study.db").read_text().startswith("a diary")


def test_a_damaged_file(sqlite_url: str, tmp_path: Path) -> None:
    mine = tuner(sqlite_url)
    for trial in mine.ask(50):
        mine.tell(trial, 0.5)
    del mine  # which closes it, so that everything is in the one file
    path = tmp_path / "study.db"
    content = bytearray(path.read_bytes())
    content[4096 * 5 : 4096 * 7] = b"\xff" * 8192
    path.write_bytes(content)
    with pytest.raises(SchemaError, match=r"study\.db is damaged"):
        tuner(sqlite_url)


def test_a_database_of_something_else(sqlite_url: str, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "study.db")) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    with pytest.raises(SchemaError, match=r"is a database of something else: it has the tables \['recipes'\]"):
        tuner(sqlite_url)
    with closing(sqlite3.connect(tmp_path / "study.db")) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("recipes",)]


def test_a_relative_path_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    mine = tuner("sqlite:///study.db", grace=1.0)
    trial = mine.ask()
    monkeypatch.chdir(tmp_path / "elsewhere")
    time.sleep(0.6)  # a sign of life has a connection of its own
    mine.tell(trial, 0.5)
    assert not list((tmp_path / "elsewhere").iterdir())
    assert (tmp_path / "study.db").exists()


def test_a_server_that_hangs_up_is_called_again(postgres_url: str) -> None:
    mine = tuner(postgres_url)
    trial = mine.ask()
    hang_up = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND usename = :name"
    name = postgres_url.split("/")[2].split("@")[0]
    opened = database.Database(postgres_url)
    for act in (lambda: mine.report(trial, 1, 0.5), lambda: mine.tell(trial, 0.75), mine.ask):
        opened.write(lambda transaction: transaction.rows(hang_up, name=name))
        act()
    assert states(mine.study) == ["complete", "running"]


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    for folder in (home, elsewhere):
        folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(elsewhere)
    opened = tuner("sqlite:///~/x.db")
    opened.tell(opened.ask(), 0.5)
    assert (home / "x.db").exists()
    assert not list(elsewhere.iterdir())
    assert len(load_study("sqlite:///~/x.db", "s").completed) == 1


def test_no_home_folder_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=r"storage is 'sqlite:///~nobody-at-all/x.db', but there is no home folder"):
        tuner("sqlite:///~nobody-at-all/x.db")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 3)  # nobody that the system knows
    with pytest.raises(SettingsError, match=r"storage is 'sqlite:///~/x.db', but there is no home folder for its ~"):
        tuner("sqlite:///~/x.db")
    assert not list(tmp_path.iterdir())
