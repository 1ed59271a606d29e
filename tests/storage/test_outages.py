"""Databases that are away for longer than anybody waits: locked files, suspended servers."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest
from durable import eventually, hill, states, store_of, tuner, unsaved

from llamatune_torch import LlamaTune, Outcome, StorageError, Trial, load_study
from llamatune_torch.runtime import loop
from llamatune_torch.runtime.evaluation import OnParams
from llamatune_torch.runtime.runners import ExecutorRunner
from llamatune_torch.storage import database, session
from llamatune_torch.storage import unsaved as unsaved_module


@contextmanager
def parallel_search(url: str, folder: Path, max_evals: int, release_at: int) -> Iterator[LlamaTune]:
    """Four trials at a time; the fifth locks the database, and the result number ``release_at`` sets it free."""
    calls = threading.Lock()
    count = [0]
    with closing(sqlite3.connect(folder / "study.db", isolation_level=None, check_same_thread=False)) as connection:

        def evaluate(params: dict[str, Any]) -> float:
            with calls:
                count[0] += 1
                number = count[0]
            time.sleep(0.3 * (1 + number % 4))
            if number == 5:
                connection.execute("BEGIN IMMEDIATE")
            return hill(params)

        def note(mine: LlamaTune, trial: Trial) -> None:
            if len(mine.study.completed) == release_at:
                connection.execute("ROLLBACK")

        yield tuner(url, evaluate, max_evals=max_evals, callbacks=[note])


def test_running_trials_go_on_while_the_database_is_away(
    sqlite_url: str, tmp_path: Path, impatient: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    closed: list[bool] = []
    monkeypatch.setattr(ExecutorRunner, "close", lambda self: closed.append(True))
    with (
        parallel_search(sqlite_url, tmp_path, 20, release_at=-1) as mine,
        ThreadPoolExecutor(4) as pool,
        pytest.raises(StorageError, match=r"database is locked.* it is kept in "),
    ):
        mine.optimize(executor=pool)
    assert closed == [True]
    assert "the storage is away; " in caplog.text
    assert set(states(mine.study)) == {"complete"}  # each that had begun
    assert len(mine.study.trials) > 5
    assert len(unsaved(tmp_path)) >= 4
    again = tuner(sqlite_url)
    assert again.study.trials == mine.study.trials
    assert unsaved(tmp_path) == []


def test_a_search_goes_on_when_the_database_is_back_while_something_runs(
    sqlite_url: str, tmp_path: Path, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_OUTAGE", 0.1)
    with parallel_search(sqlite_url, tmp_path, 12, release_at=6) as mine, ThreadPoolExecutor(4) as pool:
        mine.optimize(executor=pool)
    assert states(mine.study) == ["complete"] * 12
    assert load_study(sqlite_url).trials == mine.study.trials
    assert unsaved(tmp_path) == []


def test_what_cannot_be_given_back_is_no_reason_to_raise(
    sqlite_url: str, tmp_path: Path, impatient: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    closed: list[bool] = []
    monkeypatch.setattr(ExecutorRunner, "close", lambda self: closed.append(True))
    going = threading.Event()
    with closing(sqlite3.connect(tmp_path / "study.db", isolation_level=None, check_same_thread=False)) as connection:

        def evaluate(params: dict[str, Any]) -> float:
            if not going.is_set():
                going.set()
                connection.execute("BEGIN IMMEDIATE")
                raise KeyboardInterrupt
            time.sleep(1)
            return 0.5

        mine = tuner(sqlite_url, evaluate, max_evals=4)
        with ThreadPoolExecutor(2) as pool, pytest.raises(StorageError, match="database is locked"):
            mine.optimize(executor=pool)
    assert closed == [True]
    assert "running trials go on" in caplog.text


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "PATIENCE", 3.0)
    monkeypatch.setattr(database, "SILENCE_SECONDS", 1.5)
    monkeypatch.setattr(unsaved_module, "HANGING_SECONDS", 0.3)


@contextmanager
def frozen(url: str, with_postmaster: bool) -> Iterator[None]:
    """The server's processes that serve connections are suspended, and the one that takes new connections."""
    folder = Path(parse_qs(urlsplit(url).query)["host"][0])
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        ).fetchall()
    processes = [row[0] for row in rows]
    if with_postmaster:
        processes.append(int((folder / "data" / "postmaster.pid").read_text().split()[0]))
    try:
        for process in processes:
            os.kill(process, signal.SIGSTOP)
        yield
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)


def test_a_server_that_answers_nothing(
    postgres_url: str, tmp_path: Path, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    url = f"{postgres_url}&connect_timeout=2"
    mine = tuner(url)
    trial, seen = mine.ask(), []

    def look() -> None:
        eventually(lambda: bool(list(tmp_path.glob("*.unsaved-*"))))
        seen.append(time.monotonic() - start)

    looking = threading.Thread(target=look)
    with frozen(postgres_url, with_postmaster=True):
        start = time.monotonic()
        looking.start()
        with pytest.raises(StorageError, match=f"value=0.5 .*kept in {tmp_path}"):
            mine.tell(trial, 0.5)
        looking.join()
    assert seen[0] < 1.4  # before the first attempt came to an end
    assert tuner(url).study.best_value == 0.5
    assert not list(tmp_path.glob("*.unsaved-*"))


def test_a_connection_that_answers_nothing_is_replaced(
    postgres_url: str, tmp_path: Path, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mine = tuner(postgres_url)
    trial = mine.ask()
    store_of(mine)._heartbeat.numbers.clear()
    with frozen(postgres_url, with_postmaster=False):
        assert mine.tell(trial, 0.5).value == 0.5
    assert load_study(postgres_url).best_value == 0.5
    assert not list(tmp_path.glob("*.unsaved-*"))


@pytest.mark.parametrize("kept_away", [False, True])
def test_an_outcome_that_the_study_cannot_take_yet_is_asked_again(
    url: str, monkeypatch: pytest.MonkeyPatch, kept_away: bool
) -> None:
    """The first Trainer settles the metric with its outcome: an outage then must not cost the trial."""
    monkeypatch.setattr(loop, "_POLL", 0.01)
    monkeypatch.setattr(loop, "MOST_PUT_OFFS", 4)
    mine = tuner(url, hill, max_evals=2)
    refusals = 0

    def on_outcome(trial: Trial, outcome: Outcome) -> Outcome:
        nonlocal refusals
        if refusals < 3 or kept_away:
            refusals += 1
            raise StorageError("the database is away")
        return outcome

    evaluate = OnParams(hill, mine.study.space)
    with ThreadPoolExecutor(1) as pool:
        runner = ExecutorRunner(pool, 1)
        if kept_away:
            with pytest.raises(StorageError, match="the database is away"):
                mine.run(evaluate, runner, on_outcome)
            return
        study = mine.run(evaluate, runner, on_outcome)
    assert refusals == 3
    assert states(study) == ["complete"] * 2
